"""The one door out of this machine: HTTP to addresses that somebody else named, or that the operator configured.

What an operator wrote into the settings file is trusted as it stands. Everything else is guarded: the address is read
strictly, its name is looked up once, every address found must be public or allowed (``EGRESS_ALLOW``), and the
connection goes to the addresses that were checked. Redirects are followed for fetches alone, each checked anew. No
proxy from the environment, no cookies, no compression, a deadline on every wait and a bound on every size. TLS
certificates are verified.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal
from urllib.parse import urljoin

import aiohttp
import msgspec
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from stentor.core.addresses import AllowList, read_address
from stentor.core.errors import StentorError
from stentor.egress.settings import EgressSettings
from stentor.egress.targets import Target, check_address, check_target, read_target

CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 3.0
REDIRECTS_MAX = 3
ERROR_BODY_BYTES = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
Trouble = Literal["unreachable", "timeout", "broke_off", "rubbish"]
Lookup = Callable[[str, int], Awaitable[list[str]]]


class OutboundFailed(StentorError):
    """A request out came to nothing: ``trouble`` says how, ``answered`` whether any byte had come back.

    The text is for operators and names no credential.
    """

    def __init__(self, trouble: Trouble, problem: str, *, answered: bool = False) -> None:
        super().__init__(problem)
        self.trouble = trouble
        self.answered = answered


class Patience(msgspec.Struct, frozen=True):
    """Seconds: until status and headers are there, and of silence within the answer."""

    first_byte_s: float = 60.0
    stall_s: float = 60.0


class StreamedBody(msgspec.Struct, frozen=True):
    """A body that is read while it is sent: ``make`` reads it from its beginning, ``size_bytes`` in all."""

    content_type: str
    size_bytes: int
    make: Callable[[], AsyncIterator[bytes]]


class Fetched(msgspec.Struct, frozen=True):
    """A whole small answer. ``content_type`` is lower-case and without parameters."""

    status: int
    content_type: str
    body: bytes


async def look_up(host: str, port: int) -> list[str]:
    """The addresses of ``host``, by the machine's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class _Resolver(AbstractResolver):
    """Looks a name up once and hands on its addresses, all of which must be public or allowed if ``allowed`` is set."""

    def __init__(self, look: Lookup, allowed: AllowList | None) -> None:
        self._look = look
        self._allowed = allowed

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        results: list[ResolveResult] = []
        for text in await self._look(host, port):
            try:
                address = read_address(text)
            except ValueError:
                raise OSError(f"the resolver answered something that isn't an address for {host}") from None
            if self._allowed is not None:
                check_address(address, self._allowed)
            kind = socket.AF_INET6 if address.version == 6 else socket.AF_INET
            results.append(
                ResolveResult(hostname=host, host=text, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            )
        if not results:
            raise OSError(f"{host} has no address")
        return results

    async def close(self) -> None:
        """Nothing is kept."""


class OutboundAnswer:
    """An answer whose body hasn't been read yet. ``release`` it, read or not."""

    def __init__(self, response: aiohttp.ClientResponse, stall_s: float) -> None:
        self._response = response
        self._stall_s = stall_s
        self.status = response.status
        self.content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    def header(self, name: str) -> str:
        """A header's value, or nothing."""
        return str(self._response.headers.get(name, ""))

    async def read(self) -> bytes:
        """What has come in; waits for at least a byte; empty at the end. Raises OutboundFailed."""
        with _named_troubles(answered=True):
            async with asyncio.timeout(self._stall_s):
                return await self._response.content.readany()

    async def read_at_most(self, limit_bytes: int) -> bytes:
        """The body up to ``limit_bytes``; what came in of it if it breaks off."""
        parts: list[bytes] = []
        size = 0
        try:
            while size < limit_bytes and (part := await self.read()):
                parts.append(part)
                size += len(part)
        except OutboundFailed:
            pass  # a broken error page is still an error page
        return b"".join(parts)[:limit_bytes]

    def release(self) -> None:
        """Give the connection back if the answer was read to its end, else close it."""
        if not self._response.closed:
            if self._response.content.at_eof():
                self._response.release()
            else:
                self._response.close()


class Outbound:
    """Makes requests out. Make it inside the running loop; close it at the end."""

    def __init__(self, settings: EgressSettings, look: Lookup = look_up) -> None:
        self._allowed = AllowList(settings.allow)
        self._look = look
        self._sessions: dict[bool, aiohttp.ClientSession] = {}

    async def close(self) -> None:
        """Close every connection."""
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    def check(self, url: str, schemes: tuple[str, ...] = ("http", "https")) -> Target:
        """``url`` as far as it can be judged without asking anybody. Raises EgressRefused."""
        target = read_target(url, schemes)
        check_target(target, self._allowed)
        return target

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | StreamedBody | None = None,
        patience: Patience = Patience(),  # noqa: B008  # frozen
        trusted: bool = False,
    ) -> OutboundAnswer:
        """One request; returns when status and headers are there. Follows nothing.

        ``trusted``: the operator wrote this address. Raises EgressRefused, OutboundFailed.
        """
        target = read_target(url) if trusted else self.check(url)
        try:
            return await self._send(method, target, headers, body, patience, trusted)
        except _Stale:
            # A connection that died while it lay idle, before a byte came back: once more, on a new one.
            return await self._send(method, target, headers, body, patience, trusted)

    async def _send(
        self,
        method: str,
        target: Target,
        headers: Mapping[str, str],
        body: bytes | StreamedBody | None,
        patience: Patience,
        trusted: bool,
    ) -> OutboundAnswer:
        session = self._session(trusted or self._allowed.allows_host(target.host))
        trace = _Trace(patience.first_byte_s)
        if isinstance(body, StreamedBody):
            headers = {**headers, "Content-Type": body.content_type, "Content-Length": str(body.size_bytes)}
        try:
            with _named_troubles(answered=False):
                async with asyncio.timeout(CONNECT_TIMEOUT_S + patience.first_byte_s) as trace.deadline:
                    response = await session.request(
                        method,
                        URL(target.url, encoded=True),
                        data=body.make() if isinstance(body, StreamedBody) else body,
                        headers={"Accept-Encoding": "identity", "User-Agent": "stentor", **headers},
                        allow_redirects=False,
                        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
                        trace_request_ctx=trace,
                    )
        except OutboundFailed as error:
            if error.trouble == "broke_off" and trace.reused:
                raise _Stale(error.trouble, str(error)) from None
            raise
        finally:
            trace.deadline = None  # an upstream may answer while its question is still being sent
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise OutboundFailed("rubbish", "it answered compressed, though it was asked not to", answered=True)
        return OutboundAnswer(response, patience.stall_s)

    async def fetch(
        self,
        url: str,
        *,
        limit_bytes: int,
        deadline_s: float,
        headers: Mapping[str, str] | None = None,
        schemes: tuple[str, ...] = ("http", "https"),
    ) -> Fetched:
        """GET a small thing, following at most three redirects, each checked like the first address.

        ``headers`` go to the first host alone. Raises EgressRefused, OutboundFailed (also for a body over the limit).
        """
        try:
            async with asyncio.timeout(deadline_s):
                return await self._fetch(url, limit_bytes, deadline_s, dict(headers or {}), schemes)
        except TimeoutError:
            raise OutboundFailed("timeout", f"it took longer than {deadline_s:g} s") from None

    async def _fetch(
        self, url: str, limit_bytes: int, deadline_s: float, headers: dict[str, str], schemes: tuple[str, ...]
    ) -> Fetched:
        origin = self.check(url, schemes).origin
        for _ in range(REDIRECTS_MAX + 1):
            self.check(url, schemes)
            answer = await self.send("GET", url, headers=headers, patience=Patience(deadline_s, deadline_s))
            try:
                if answer.status not in _REDIRECTS:
                    return Fetched(answer.status, answer.content_type, await _read_within(answer, limit_bytes))
                url = urljoin(url, answer.header("Location"))
            finally:
                answer.release()
            if self.check(url, schemes).origin != origin:
                headers = {}
        raise OutboundFailed("rubbish", f"it redirects more than {REDIRECTS_MAX} times", answered=True)

    def _session(self, trusted: bool) -> aiohttp.ClientSession:
        session = self._sessions.get(trusted)
        if session is None:
            session = self._sessions[trusted] = self._make_session(trusted)
        return session

    def _make_session(self, trusted: bool) -> aiohttp.ClientSession:
        # Two pools: a connection that was made on the operator's word must not serve an address of somebody else's.
        allowed = None if trusted else self._allowed
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(self._look, allowed),
                use_dns_cache=False,
                limit=0,
                keepalive_timeout=KEEP_ALIVE_S,
                socket_factory=None if allowed is None else _checking_factory(allowed),
            ),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trace_configs=[_trace_config()],
        )


class _Stale(OutboundFailed):
    """A kept connection had died; a failure like others if the next one had, too."""


def _checking_factory(allowed: AllowList) -> Callable[[Any], socket.socket]:
    """Sockets for addresses that pass the check once more, at the last moment before they are connected to."""

    def make(info: Any) -> socket.socket:
        family, kind, proto, _, address = info
        check_address(read_address(address[0]), allowed)
        return socket.socket(family, kind, proto)

    return make


class _Trace:
    """What is learnt of one request while it is made."""

    def __init__(self, first_byte_s: float) -> None:
        self.first_byte_s = first_byte_s
        self.reused = False
        self.deadline: asyncio.Timeout | None = None


def _trace_config() -> aiohttp.TraceConfig:
    config = aiohttp.TraceConfig()

    async def note_reuse(_session: aiohttp.ClientSession, context: Any, _params: Any) -> None:
        context.trace_request_ctx.reused = True

    async def note_sent(_session: aiohttp.ClientSession, context: Any, _params: Any) -> None:
        trace: _Trace = context.trace_request_ctx
        if trace.deadline is not None and not trace.deadline.expired():
            # What is left of the time for connecting is no part of the wait for an answer, nor is what is sent.
            trace.deadline.reschedule(asyncio.get_running_loop().time() + trace.first_byte_s)

    config.on_connection_reuseconn.append(note_reuse)
    config.on_request_headers_sent.append(note_sent)
    config.on_request_chunk_sent.append(note_sent)
    return config


async def _read_within(answer: OutboundAnswer, limit_bytes: int) -> bytes:
    announced = answer.header("Content-Length")
    parts: list[bytes] = []
    size = int(announced) if announced.isdigit() else 0
    if size <= limit_bytes:
        size = 0
        while size <= limit_bytes and (part := await answer.read()):
            parts.append(part)
            size += len(part)
    if size > limit_bytes:
        raise OutboundFailed("rubbish", f"it has more than {limit_bytes} bytes", answered=True)
    return b"".join(parts)


@contextlib.contextmanager
def _named_troubles(*, answered: bool) -> Iterator[None]:
    """Turns the client library's errors into OutboundFailed; what it says of hosts stays with operators."""
    try:
        yield
    except TimeoutError as error:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            raise OutboundFailed("unreachable", "no connection in time") from None
        raise OutboundFailed("timeout", "it was silent for too long", answered=answered) from None
    except aiohttp.ClientConnectorError as error:
        raise OutboundFailed("unreachable", _words(error)) from None
    except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
        raise OutboundFailed("broke_off", "it closed the connection", answered=answered) from None
    except (aiohttp.ClientError, OSError) as error:
        raise OutboundFailed("rubbish", f"its answer isn't HTTP ({type(error).__name__})", answered=answered) from None


def _words(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return "its TLS certificate can't be verified, or it doesn't speak TLS"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name can't be looked up"
    return f"it can't be reached ({error.os_error.strerror or type(error.os_error).__name__})"
