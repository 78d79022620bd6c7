"""The running server: what is opened in which order, and closed in the opposite one."""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import msgspec
import uvloop

from stentor.app.authority import Authority
from stentor.app.gateway import GatewayParts, tune_collector
from stentor.app.hello import WorkerHello
from stentor.app.managed import managed_handlers
from stentor.app.reload import ModelReload
from stentor.control.people.first_run import ADMIN
from stentor.control.workers.desk import Desk
from stentor.control.workers.workers import Workers, bind, start_listening
from stentor.core.errors import StentorError
from stentor.core.ids import ModelId
from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.core.remote import RemoteKind
from stentor.core.scheduler import ModelCard
from stentor.http.gateway import HttpSettings
from stentor.http.loopback import call_app
from stentor.http.server import HttpServer, tls_context
from stentor.http.spool import sweep
from stentor.http.starting import starting_up
from stentor.settings import Settings
from stentor.settings.checks import is_loopback
from stentor.store.database import Database
from stentor.store.lock import find_holder
from stentor.telemetry.background import keep_going
from stentor.telemetry.logs import Log, route_crashes, route_stdlib
from stentor.telemetry.trace import NoTracer, open_tracer
from stentor.version import VERSION


class Ready(msgspec.Struct, frozen=True):
    """How to reach a server that is ready. ``api_key`` and ``admin_password`` are set at the first start alone."""

    base_url: str
    api_key: str | None
    admin_user: str
    admin_password: str | None
    model: str | None


class RunningHttp(NamedTuple):
    """What serves clients. ``end`` lets it finish within so many seconds; ``hurry`` cuts that short."""

    end: Callable[[float], Coroutine[Any, Any, None]]
    hurry: Callable[[], None]


_ELSEWHERE = get_args(RemoteKind)
OnReady = Callable[[Ready], None]


def run(settings: Settings, *, on_ready: OnReady, admin_key: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises StentorError when the server can't start."""
    log = Log(settings.telemetry)
    route_stdlib(log)
    route_crashes(log)
    try:
        database = Database.open(settings.store)
        try:
            return uvloop.run(_Server(settings, database, log).run(on_ready, admin_key))
        finally:
            database.close()
    finally:
        log.close()


class _Server:
    """One run of the server."""

    def __init__(self, settings: Settings, database: Database, log: Log) -> None:
        self._settings = settings
        self._database = database
        self._log = log
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self, on_ready: OnReady, admin_key: bool) -> int:
        """From the first open to the last close."""
        settings = self._settings
        self._tls = tls_context(_tls_files(settings))
        sweep(settings.spool_dir)
        first_socket = _listen(settings)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(first_socket.close)
            door = await self._open_door(stack, first_socket)
            authority = await Authority.open(settings, self._database, self._log)
            stack.callback(authority.management.close)
            stack.push_async_callback(authority.models.downloads.close)
            stack.push_async_callback(authority.outbound.close)
            stack.push_async_callback(authority.ring.close)
            self._keep(stack, "ring", authority.ring.run)
            await authority.ensure_fixed_key()
            self._watch_signals()
            reload = self._watch_file(stack, authority)
            gateway = self._gateway(authority)
            stack.push_async_callback(gateway.close)
            await self._serve_operator(stack, authority, gateway)
            self._keep(stack, "scheduler", authority.scheduler.run)
            self._keep(stack, "usage-summer", authority.summer.run)
            self._keep(stack, "jobs", authority.jobs.run)
            self._keep(stack, "neighbourhood", authority.neighbourhood.run)
            stack.push_async_callback(authority.scheduler.shutdown, 0.0)
            http = await self._start_http(authority, gateway, first_socket, door)
            await self._start_models(authority)
            self._keep(stack, "reload", reload.run)
            if not self._stop.is_set():
                tune_collector()
                on_ready(await _describe(authority, _url(settings, first_socket), admin_key))
                self._log.event("server_ready", address=_url(settings, first_socket), version=VERSION, pid=os.getpid())
                await self._stop.wait()
            await self._end(authority, http)
        self._log.event("server_stopped")
        return 0

    def _keep(self, stack: contextlib.AsyncExitStack, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Have ``work`` go on in the background until the stack is unwound."""
        task = asyncio.create_task(keep_going(name, work, self._log), name=name)
        stack.push_async_callback(_finish, task)

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()

        def stop(number: int) -> None:
            if self._stop.is_set():
                self._hurry.set()
            self._log.event("server_stopping", signal=number)
            self._stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)

    def _watch_file(self, stack: contextlib.AsyncExitStack, authority: Authority) -> ModelReload:
        """Have SIGHUP read the models again; from a terminal that is closed it means the end instead."""
        reload = ModelReload(self._settings, authority.models.book, authority.remote, self._log)
        loop = asyncio.get_running_loop()
        if sys.stdin is None or not sys.stdin.isatty():
            loop.add_signal_handler(signal.SIGHUP, reload.ask)
            stack.callback(loop.remove_signal_handler, signal.SIGHUP)
        return reload

    def _gateway(self, authority: Authority) -> GatewayParts:
        settings = self._settings
        tracer = open_tracer(settings.telemetry, VERSION)
        if settings.gateway_workers > 1:
            # The workers have their own; opening one here says at once if the extra is missing.
            tracer.close()
            tracer = NoTracer()
        return GatewayParts(
            _http_settings(settings),
            authority.books,
            authority.scheduler,
            authority.keyring.pepper(),
            tracer,
            self._log,
            settings.egress,
        )

    async def _serve_operator(
        self, stack: contextlib.AsyncExitStack, authority: Authority, gateway: GatewayParts
    ) -> None:
        path = self._settings.admin_socket
        self._operators = managed_handlers(authority)
        self._operator_app = gateway.app(
            self._operators,
            authority.render_metrics,
            self._operate,
            authority.sessions,
            operator_socket=True,
        )
        server = HttpServer(self._operator_app)
        await server.begin(_listen_unix(path))
        stack.callback(path.unlink, missing_ok=True)
        stack.push_async_callback(server.end)

    async def _operate(self, call: OperatorCall) -> OperatorAnswer:
        """Answer a management request that this server's own parts or a worker pass on."""
        return await call_app(self._operator_app, call)

    async def _open_door(self, stack: contextlib.AsyncExitStack, first_socket: socket.socket) -> HttpServer | None:
        """Whoever comes before the store is open is told so. Workers listen themselves: until then nobody does."""
        if self._settings.gateway_workers > 1:
            return None
        door = HttpServer(starting_up, self._tls)
        await door.begin(first_socket)
        stack.push_async_callback(door.end)
        return door

    async def _start_http(
        self, authority: Authority, gateway: GatewayParts, first_socket: socket.socket, door: HttpServer | None
    ) -> RunningHttp:
        """From now on requests are served; those for models that are being loaded wait for them."""
        settings = self._settings
        if door is not None:
            server = door
            server.app = gateway.app(self._operators, authority.render_metrics, self._operate, authority.sessions)

            async def end_alone(drain_s: float) -> None:
                server.stop_accepting()
                await gateway.drain(drain_s)
                await server.end()

            return RunningHttp(end_alone, lambda: gateway.calls.interrupt_all("server_shutdown"))
        host, port = first_socket.getsockname()[:2]
        workers = Workers(
            authority.books,
            lambda owner: Desk(owner, authority.books, authority.scheduler, self._operate, authority.sessions),
            _worker_command,
            WorkerHello(_http_settings(settings), settings.telemetry, authority.keyring.pepper(), settings.egress),
            self._log,
        )
        await workers.start(host, port, settings.gateway_workers)
        return RunningHttp(workers.shutdown, workers.hurry)

    async def _start_models(self, authority: Authority) -> None:
        """Wait for the preloaded models; one that doesn't come up is told of, and doesn't hold up the rest."""
        wanted = [spec for spec in self._settings.runtime.models if spec.preload]
        starts = [asyncio.create_task(_await_model(authority, spec.id, self._log)) for spec in wanted]
        if not starts:
            return
        stopping = asyncio.create_task(self._stop.wait())
        everything = asyncio.ensure_future(asyncio.gather(*starts))
        waits: list[asyncio.Future[Any]] = [everything, stopping]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        everything.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await everything

    async def _end(self, authority: Authority, http: RunningHttp) -> None:
        ending = asyncio.create_task(http.end(self._settings.drain_s))
        hurrying = asyncio.create_task(self._hurry.wait())
        await asyncio.wait([ending, hurrying], return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if not ending.done():
            http.hurry()
        await authority.scheduler.shutdown(0.0 if ending.done() else 1.0)
        await ending


async def _await_model(authority: Authority, model: str, log: Log) -> None:
    try:
        await authority.scheduler.await_resumed(ModelId(model))
    except StentorError as error:
        log.event("model_unavailable", level="error", model=model, message=str(error))
        print(f"stentor: {error}", file=sys.stderr)  # noqa: T201  # people watch the start; logs may go elsewhere


async def _describe(authority: Authority, url: str, admin_key: bool) -> Ready:
    """What is told to the operator. What is shown only once is made here, at the last moment: a start that ends
    before must not take it along.
    """
    model = choose_to_try(await authority.scheduler.list_models())
    first = await authority.first_run(admin_key=admin_key)
    return Ready(
        base_url=f"{url}/v1",
        api_key=first.api_key if first else None,
        admin_user=first.admin_user if first else ADMIN,
        admin_password=first.admin_password if first else None,
        model=model,
    )


def choose_to_try(cards: Iterable[ModelCard]) -> str | None:
    """The model to try first: one that can talk, here rather than elsewhere where it may cost money, and ready."""

    def rank(card: ModelCard) -> tuple[bool, bool, bool]:
        return "text" not in card.abilities, card.engine in _ELSEWHERE, card.state != "ready"

    first = min((card for card in cards if card.state != "failed"), key=rank, default=None)
    return None if first is None else first.id


async def _finish(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _http_settings(settings: Settings) -> HttpSettings:
    return HttpSettings(
        body_max_bytes=settings.body_max_bytes,
        allowed_hosts=settings.allowed_hosts,
        cors_origins=settings.cors_origins,
        open_metrics=is_loopback(settings.host),
        ring_bridge=settings.values["RING_KEY_MODE"] == "bridge",
        trusted_proxies=settings.trusted_proxies,
        allow_insecure_admin=bool(settings.values["ALLOW_INSECURE_ADMIN"]),
        audio_max_bytes=settings.values["AUDIO_MAX_MB"] << 20,
        audio_max_s=settings.values["AUDIO_MAX_S"],
        upload_least_bytes_per_s=settings.values["UPLOAD_MIN_KB_S"] << 10,
        spool_dir=str(settings.spool_dir),
        tls=_tls_files(settings),
        own_hosts=(urlsplit(settings.public_url).netloc,) if settings.public_url else (),
    )


def _tls_files(settings: Settings) -> tuple[str, str] | None:
    cert, key = settings.tls_cert, settings.tls_key
    return None if cert is None or key is None else (str(cert), str(key))


def _listen(settings: Settings) -> socket.socket:
    """The address taken: listened on by this process, or only held for the workers, who listen on it together."""
    try:
        alone = bind(settings.host, settings.port, shared=False)
        if settings.gateway_workers == 1:
            return start_listening(alone)
        # Bound alone first: a port can be shared only by those who all want to, and another server might want to.
        host, port = alone.getsockname()[:2]
        alone.close()
        return bind(host, port, shared=True)
    except OSError as error:
        raise _no_address(settings, error) from None


def check_address(settings: Settings) -> None:
    """Raises StentorError where the address is taken now: before a model is fetched in vain."""
    try:
        bind(settings.host, settings.port, shared=False).close()
    except OSError as error:
        raise _no_address(settings, error) from None


def _no_address(settings: Settings, error: OSError) -> StentorError:
    advice = "Name an address of this machine with --host or STENTOR_HOST."
    if error.errno == errno.EADDRINUSE:
        holder = find_holder(settings.data_dir)
        other = holder is not None and holder != os.getpid()
        running = f"A Stentor runs on {settings.data_dir} already (process {holder}). " if other else ""
        advice = f"{running}End what uses the port, or choose another one with --port or STENTOR_PORT."
    elif error.errno == errno.EACCES:
        advice = (
            "Ports below 1024 are root's: choose another one with --port or STENTOR_PORT, behind a proxy if need be."
        )
    return StentorError(f"Can't listen on {settings.host}:{settings.port}: {error.strerror or error}. {advice}")


def _listen_unix(path: Path) -> socket.socket:
    """The operator's socket: whoever may open it is the operator, so nobody else may."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    mask = os.umask(0o177)
    try:
        # By way of the folder, since the path itself may be longer than sockets allow.
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.umask(mask)
        os.close(folder)
    sock.listen(64)
    sock.setblocking(False)
    return sock


def _url(settings: Settings, sock: socket.socket) -> str:
    if settings.public_url:
        return settings.public_url.rstrip("/")
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # an address that can be opened
    scheme = "http" if settings.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _worker_command(line_fd: int, listen_fd: int) -> list[str]:
    return [sys.executable, "-m", "stentor.app.worker", str(line_fd), str(listen_fd), str(os.getpid())]
