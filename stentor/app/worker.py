"""One gateway worker: ``python -m stentor.app.worker LINE_FD LISTEN_FD PARENT_PID``, spawned by the control process.

It holds no truth: what it knows it was told over its line, and when the line is lost it says ``server_restarting`` to
whom it still can, and exits within two seconds.
"""

import asyncio
import os
import signal
import socket
import sys

import msgspec
import uvloop

from stentor.app.gateway import GatewayParts, tune_collector
from stentor.app.hello import WorkerHello
from stentor.control.workers.client import AuthorityClient
from stentor.core.errors import StentorError
from stentor.http.forward import OperatorForward
from stentor.http.server import STOP_S, HttpServer, tls_context
from stentor.telemetry.logs import Log, route_crashes, route_stdlib
from stentor.telemetry.trace import open_tracer
from stentor.version import VERSION

LOST_EXIT_S = 1.5
LOST_FLUSH_S = 0.1


def main(argv: list[str]) -> int:
    """Run until the authority says so, or is gone."""
    line_fd, listen_fd, parent = (int(word) for word in argv)
    if os.getppid() != parent:
        return 1
    # Ctrl-C reaches the whole group; when to end is the authority's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = socket.socket(fileno=line_fd)
    line.setblocking(False)
    listening = socket.socket(fileno=listen_fd)
    try:
        return uvloop.run(_serve(line, listening))
    except StentorError as error:
        print(f"stentor: {error}", file=sys.stderr)  # noqa: T201  # the log may not exist yet
        return 1


async def _serve(line: socket.socket, listening: socket.socket) -> int:
    authority = AuthorityClient()
    hello = msgspec.msgpack.decode(await authority.connect(line), type=WorkerHello)
    log = Log(hello.telemetry)
    route_stdlib(log)
    route_crashes(log)
    tracer = open_tracer(hello.telemetry, VERSION)
    parts = GatewayParts(hello.http, authority, authority, hello.pepper, tracer, log, hello.egress)
    forward = OperatorForward(authority, hello.http.body_max_bytes)
    server = HttpServer(
        parts.app(forward.handlers(), forward.render_metrics, authority.operate, authority), tls_context(hello.http.tls)
    )
    await server.begin(listening)
    tune_collector()
    authority.tell_ready()
    drain_s = await _wait_for_end(authority, parts)
    if drain_s is not None:
        server.stop_accepting()
        await parts.drain(drain_s)
    if authority.is_lost:
        # Without books nothing may be finished: what the client has is all it gets. A reader that stalls is left.
        await parts.calls.wait_idle(LOST_EXIT_S)
    await server.end(LOST_FLUSH_S if authority.is_lost else STOP_S)
    await parts.close()
    authority.hang_up()
    log.close()
    return 0 if drain_s is not None else 1


async def _wait_for_end(authority: AuthorityClient, parts: GatewayParts) -> float | None:
    """The seconds in which to finish, or None when the authority is lost; a second word ends what still runs."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[float | None] = loop.create_future()

    def drain(drain_s: float) -> None:
        if end.done():
            parts.calls.interrupt_all("server_shutdown")
        else:
            end.set_result(drain_s)

    def lose() -> None:
        parts.calls.interrupt_all("server_restarting")
        if not end.done():
            end.set_result(None)

    authority.on_lost(lose)
    authority.on_drain(drain)
    loop.add_signal_handler(signal.SIGTERM, drain, 5.0)
    return await end


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
