"""The door out, on real sockets: names that change their mind, redirects, silence, floods, and servers that die.

127.0.0.2 plays the public internet (it is allowed), 127.0.0.3 the machine inside that must not be reached.
"""

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from stentor.egress.outbound import Outbound, OutboundFailed, Patience, StreamedBody
from stentor.egress.settings import EgressSettings
from stentor.egress.targets import EgressRefused

PUBLIC, INSIDE = "127.0.0.2", "127.0.0.3"
Serve = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


class Web:
    """A hand-written HTTP server on ``host``; ``seen`` are the request heads it got."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self.seen: list[str] = []
        self.connections = 0
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            await self._talk(reader, writer)
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                self.seen.append(head)
                for line in head.lower().split("\r\n"):
                    if line.startswith("content-length:"):
                        await reader.readexactly(int(line[15:]))
                await self._serve(head, writer)
                if writer.is_closing():
                    break
            await writer.drain()


@contextlib.asynccontextmanager
async def web(serve: Serve, *hosts: str, port: int = 0) -> AsyncIterator[Web]:
    made = Web(serve)
    async with contextlib.AsyncExitStack() as stack:
        for host in hosts or (PUBLIC,):
            server = await asyncio.start_server(made.handle, host, made.port or port)
            made.port = server.sockets[0].getsockname()[1]
            await stack.enter_async_context(server)
        try:
            yield made
        finally:
            for task in made.tasks:
                task.cancel()
            await asyncio.gather(*made.tasks, return_exceptions=True)


def say(body: bytes, status: str = "200 OK", *headers: str) -> Serve:
    async def serve(_head: str, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    return serve


def send_to(location: str) -> Serve:
    return say(b"", "302 Found", f"Location: {location}")


class Dns(asyncio.DatagramProtocol):
    """A name server that answers with the next address of a list each time it is asked."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        number = min(self.asked, len(self.addresses) - 1)
        self.asked += 1
        addresses = [bytes(map(int, each.split("."))) for each in self.addresses[number].split("+")]
        head = data[:2] + struct.pack(">HHHHH", 0x8180, 1, len(addresses), 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + each for each in addresses)
        self.transport.sendto(head + data[12:] + records, peer)  # type: ignore[attr-defined]


class Ask(asyncio.DatagramProtocol):
    def __init__(self, question: bytes) -> None:
        self._question = question
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.sendto(self._question)  # type: ignore[attr-defined]

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        self.answer.set_result(data)


@contextlib.asynccontextmanager
async def names(*addresses: str) -> AsyncIterator[tuple[Dns, Callable[[str, int], Awaitable[list[str]]]]]:
    """A name server, and a resolver that asks it."""
    loop = asyncio.get_running_loop()
    transport, dns = await loop.create_datagram_endpoint(lambda: Dns(*addresses), local_addr=("127.0.0.1", 0))
    place = transport.get_extra_info("sockname")

    async def look(host: str, _port: int) -> list[str]:
        name = b"".join(bytes([len(label)]) + label.encode() for label in host.split(".")) + b"\0"
        question = os.urandom(2) + struct.pack(">HHHHH", 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1)
        asking, ask = await loop.create_datagram_endpoint(lambda: Ask(question), remote_addr=place)
        async with asyncio.timeout(30):
            data = await ask.answer
        asking.close()
        records = data[len(question) :]
        return [".".join(map(str, records[at + 12 : at + 16])) for at in range(0, len(records), 16)]

    try:
        yield dns, look
    finally:
        transport.close()


@contextlib.asynccontextmanager
async def door(*allow: str, look: Callable[..., Awaitable[list[str]]] | None = None) -> AsyncIterator[Outbound]:
    settings = EgressSettings(allow=allow or (PUBLIC,))
    outbound = Outbound(settings) if look is None else Outbound(settings, look)
    try:
        yield outbound
    finally:
        await outbound.close()


async def fetch(outbound: Outbound, url: str, **more: object) -> bytes:
    limits = {"limit_bytes": 10_000, "deadline_s": 5.0, **more}
    return (await outbound.fetch(url, **limits)).body  # type: ignore[arg-type]


async def test_a_name_is_looked_up_once_and_the_checked_address_is_connected_to() -> None:
    async with web(say(b"hello"), PUBLIC) as server, names(PUBLIC, INSIDE) as (dns, look), door(look=look) as outbound:
        assert await fetch(outbound, f"http://rebind.example:{server.port}/") == b"hello"
        assert dns.asked == 1
        assert server.seen[0].split("\r\n")[1] == f"Host: rebind.example:{server.port}"


async def test_a_name_that_leads_inside_the_second_time_is_refused_then() -> None:
    shut = say(b"secret", "200 OK", "Connection: close")
    async with (
        web(shut, PUBLIC, INSIDE) as server,
        names(PUBLIC, INSIDE) as (dns, look),
        door(look=look) as outbound,
    ):
        url = f"http://rebind.example:{server.port}/"
        await fetch(outbound, url)
        with pytest.raises(EgressRefused, match="isn't public"):
            await fetch(outbound, url)
        assert (server.connections, dns.asked) == (1, 2)


@pytest.mark.parametrize("answer", ["127.0.0.3", "127.0.0.2+127.0.0.3", "10.0.0.1", "169.254.169.254", "0.0.0.0"])
async def test_one_address_inside_is_enough_to_refuse_a_name(answer: str) -> None:
    async with names(answer) as (_, look), door(look=look) as outbound:
        with pytest.raises(EgressRefused) as caught:
            await fetch(outbound, "http://mixed.example:8080/")
        assert answer not in caught.value.message, "whoever asks must not learn where names lead inside"


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.3:{port}/",
        "//127.0.0.3:{port}/",
        "http://[::ffff:127.0.0.3]:{port}/",
        "http://2130706435:{port}/",
        "http://user@127.0.0.2:{port}/",
        "file:///etc/passwd",
        "gopher://127.0.0.2:{port}/x",
        "http://169.254.169.254/latest/",
        "http://inside.example:{port}/",
    ],
)
async def test_a_redirect_is_checked_like_the_first_address(location: str) -> None:
    async def serve(head: str, writer: asyncio.StreamWriter) -> None:
        await send_to(location.format(port=server.port))(head, writer)

    async with (
        web(serve, PUBLIC, INSIDE) as server,
        names(INSIDE) as (_, look),
        door(look=look) as outbound,
    ):
        with pytest.raises(EgressRefused):
            await fetch(outbound, f"http://{PUBLIC}:{server.port}/")
        assert server.connections == 1


async def test_a_fair_redirect_is_followed_and_leaves_the_headers_behind() -> None:
    async def serve(head: str, writer: asyncio.StreamWriter) -> None:
        if " /first " in head:
            await send_to(f"http://localhost.example:{server.port}/second")(head, writer)
        else:
            await say(b"there")(head, writer)

    async with web(serve) as server, names(PUBLIC) as (_, look), door(look=look) as outbound:
        body = await fetch(outbound, f"http://{PUBLIC}:{server.port}/first", headers={"Authorization": "Bearer t0p"})
        assert body == b"there"
        assert "t0p" in server.seen[0]
        assert "t0p" not in server.seen[1]


async def test_a_redirect_without_end_is_left() -> None:
    async with web(send_to("/again")) as server, door() as outbound:
        with pytest.raises(OutboundFailed, match="redirects more than 3 times"):
            await fetch(outbound, f"http://{PUBLIC}:{server.port}/")
        assert len(server.seen) == 4


async def test_a_post_follows_nothing() -> None:
    async with web(send_to("http://127.0.0.3/")) as server, door() as outbound:
        answer = await outbound.send("POST", f"http://{PUBLIC}:{server.port}/", headers={}, body=b"{}")
        assert answer.status == 302
        answer.release()


async def test_the_operators_word_is_enough_and_opens_nothing_else() -> None:
    async with web(say(b"mine"), INSIDE) as server, door() as outbound:
        url = f"http://{INSIDE}:{server.port}/"
        answer = await outbound.send("GET", url, headers={}, trusted=True)
        assert await answer.read() == b"mine"
        answer.release()
        # The trusted connection lies idle now; an address of somebody else's must not find it.
        with pytest.raises(EgressRefused):
            await outbound.send("GET", url, headers={})
        with pytest.raises(EgressRefused):
            await outbound.send("GET", f"http://user:x@{INSIDE}:{server.port}/", headers={}, trusted=True)


async def test_no_proxy_no_cookies_no_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://{INSIDE}:9/")
    async with web(say(b"x", "200 OK", "Set-Cookie: a=b")) as server, door() as outbound:
        for _ in range(2):
            await fetch(outbound, f"http://{PUBLIC}:{server.port}/")
        assert "cookie" not in server.seen[1].lower()
        assert "Accept-Encoding: identity" in server.seen[1]


async def test_a_compressed_answer_is_not_taken() -> None:
    async with web(say(b"\x1f\x8b", "200 OK", "Content-Encoding: gzip")) as server, door() as outbound:
        with pytest.raises(OutboundFailed, match="compressed"):
            await fetch(outbound, f"http://{PUBLIC}:{server.port}/")


async def test_a_body_over_the_limit_is_not_read_on() -> None:
    async def endless(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10_000):
            writer.write(b"400\r\n" + bytes(1024) + b"\r\n")
            await writer.drain()

    for serve in (endless, say(b"x", "200 OK", "X: y"), say(bytes(20_000))):
        async with web(serve) as server, door() as outbound:
            url = f"http://{PUBLIC}:{server.port}/"
            if serve is not endless and server.port:
                with contextlib.suppress(OutboundFailed):
                    assert len(await fetch(outbound, url)) == 1
                continue
            with pytest.raises(OutboundFailed, match="more than 10000 bytes"):
                await fetch(outbound, url)


async def test_silence_has_an_end() -> None:
    async def silent(_head: str, _writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async def falls_silent(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await asyncio.sleep(30)

    async with web(silent) as server, door() as outbound:
        url = f"http://{PUBLIC}:{server.port}/"
        with pytest.raises(OutboundFailed) as caught:
            await outbound.send("POST", url, headers={}, body=b"{}", patience=Patience(0.2, 5))
        assert (caught.value.trouble, caught.value.answered) == ("timeout", False)
        with pytest.raises(OutboundFailed, match=r"longer than 0\.2 s"):
            await fetch(outbound, url, deadline_s=0.2)
    async with web(falls_silent) as server, door() as outbound:
        url = f"http://{PUBLIC}:{server.port}/"
        answer = await outbound.send("POST", url, headers={}, body=b"{}", patience=Patience(5, 0.2))
        assert await answer.read() == b"half"
        with pytest.raises(OutboundFailed) as caught:
            await answer.read()
        answer.release()
        assert (caught.value.trouble, caught.value.answered) == ("timeout", True)


async def test_a_connection_that_died_while_idle_is_replaced_once() -> None:
    async def once(head: str, writer: asyncio.StreamWriter) -> None:
        if len(server.seen) == 2:
            writer.close()  # it had looked alive
            return
        await say(b"ok")(head, writer)

    async with web(once) as server, door() as outbound:
        url = f"http://{PUBLIC}:{server.port}/"
        for _ in range(2):
            answer = await outbound.send("POST", url, headers={}, body=b"{}")
            assert await answer.read_at_most(100) == b"ok"
            answer.release()
        assert len(server.seen) == 3


async def test_a_body_that_is_read_while_it_is_sent_begins_anew_on_a_new_connection() -> None:
    made = 0

    async def read() -> AsyncIterator[bytes]:
        nonlocal made
        made += 1
        yield b"half "
        yield b"whole"

    async def once(head: str, writer: asyncio.StreamWriter) -> None:
        if len(server.seen) == 2:
            writer.close()
            return
        await say(b"ok")(head, writer)

    async with web(once) as server, door() as outbound:
        for _ in range(2):
            body = StreamedBody("audio/wav", 10, read)
            answer = await outbound.send("POST", f"http://{PUBLIC}:{server.port}/", headers={}, body=body)
            assert await answer.read_at_most(100) == b"ok"
            answer.release()
        assert (made, len(server.seen)) == (3, 3)
        assert all("Content-Length: 10\r\n" in head and "Content-Type: audio/wav\r\n" in head for head in server.seen)


async def test_the_wait_for_an_answer_begins_when_the_question_is_sent() -> None:
    pieces = 10

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(pieces):
            await asyncio.sleep(0.5)
            yield b"x"

    async with web(say(b"ok")) as server, door() as outbound:
        body = StreamedBody("audio/wav", pieces, slow)
        url = f"http://{PUBLIC}:{server.port}/"
        # It takes longer to send than an answer may take.
        answer = await outbound.send("POST", url, headers={}, body=body, patience=Patience(4, 4))
        assert await answer.read_at_most(100) == b"ok"
        answer.release()


async def test_two_idle_connections_that_both_died_are_a_failure_like_any() -> None:
    both = asyncio.Barrier(2)

    async def twice(head: str, writer: asyncio.StreamWriter) -> None:
        if len(server.seen) > 2:
            writer.close()
            return
        await both.wait()
        await say(b"ok")(head, writer)

    async with web(twice) as server, door() as outbound:
        url = f"http://{PUBLIC}:{server.port}/"

        async def ask() -> None:
            answer = await outbound.send("POST", url, headers={}, body=b"{}")
            await answer.read_at_most(100)
            answer.release()

        await asyncio.gather(ask(), ask())
        with pytest.raises(OutboundFailed) as caught:
            await ask()
        assert (caught.value.trouble, server.connections, len(server.seen)) == ("broke_off", 2, 4)


async def test_a_new_connection_that_dies_is_not_tried_again() -> None:
    async def dies(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with web(dies) as server, door() as outbound:
        with pytest.raises(OutboundFailed) as caught:
            await outbound.send("POST", f"http://{PUBLIC}:{server.port}/", headers={}, body=b"{}")
        assert (caught.value.trouble, len(server.seen)) == ("broke_off", 1)


async def test_nobody_there_and_no_such_name() -> None:
    async def unknown(_host: str, _port: int) -> list[str]:
        raise OSError("no such name")

    async with web(say(b"")) as server:
        port = server.port
    async with door(look=unknown) as outbound:
        with pytest.raises(OutboundFailed) as caught:
            await fetch(outbound, f"http://{PUBLIC}:{port}/")
        assert caught.value.trouble == "unreachable"
        with pytest.raises(OutboundFailed, match="can't be looked up"):
            await fetch(outbound, "http://nowhere.example/")


async def test_rubbish_is_called_rubbish() -> None:
    async def rubbish(_head: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")

    async with web(rubbish) as server, door() as outbound:
        with pytest.raises(OutboundFailed) as caught:
            await fetch(outbound, f"http://{PUBLIC}:{server.port}/")
        assert caught.value.trouble == "rubbish"
