"""What all engines for speech share: a program that serves one model to one gateway, over HTTP on loopback.

It reads one JSON line of :class:`SpeechConfig` on stdin (the token never stands in argv or the environment), loads its
model, serves on 127.0.0.1, writes its log to stderr, and ends with status 0 on SIGTERM. A problem that trying again
can't solve ends with one line ``error: …`` and :data:`EXIT_BAD_MODEL`.

Work is done in threads, a piece at a time (half a minute of audio, a sentence): each request has one piece in a queue
that is first come, first served, so a long one and many short ones take turns. No more threads work at once than the
engine was given, whatever the number of requests.
"""

import asyncio
import hmac
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import NoReturn, Protocol, TypeVar, runtime_checkable

import msgspec
from aiohttp import WSMsgType, web

from stentor.core.lazy import load
from stentor.engines.answer import Handler, Pieces
from stentor.engines.bounds import bound_memory

EXIT_USAGE = 64
EXIT_BAD_MODEL = 65
EXIT_UNAVAILABLE = 69
JSON = "application/json"
NDJSON = "application/x-ndjson"
_CONFIG_MAX_BYTES = 1 << 20
_BODY_MAX_BYTES = 8 << 20
_MESSAGE_MAX_BYTES = 1 << 20
_MESSAGES_MAX = 256
_UNREAD_MAX_BYTES = 2 << 20  # a minute of sound
_HEARTBEAT_S = 30.0
IDLE_S = 600.0  # how long a conversation may say nothing
_SEND_S = 30.0  # how long what is said may lie there unread
# Beyond the places: the canary, and requests that are being replaced by their second try.
_SPARE_PLACES = 8


class SpeechConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything an engine is told. ``model_path`` is a file or a folder (empty: it has none); ``places`` is how many
    requests it serves at a time, ``threads`` how many threads it may keep busy in all."""

    model_path: str = ""
    alias: str
    port: int
    token: str
    threads: int = 1
    places: int = 4

    @property
    def workers(self) -> int:
        """How many pieces of work are done at once."""
        return max(1, min(self.places, self.threads))

    @property
    def threads_each(self) -> int:
        """Threads for one piece of work."""
        return max(1, self.threads // self.workers)


class Problem(Exception):
    """Why a request can't be served: a ``code`` for the gateway, a text for the caller, an HTTP status."""

    def __init__(self, code: str, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


FETCH_AGAIN = "Fetch it again, or correct its source."


class BadModel(Exception):
    """A model that can't be loaded however often it is tried. The text is for the operator, one line."""


Order = TypeVar("Order", bound=msgspec.Struct)
Result = TypeVar("Result")
_Serve = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Socket:
    """A WebSocket as a handler sees it: what is said, in order, and the engine's threads to work in.

    No more than a minute of sound lies there unread; who is silent for ``idle_s`` or doesn't listen is hung up on.
    """

    def __init__(
        self,
        socket: web.WebSocketResponse,
        threads: ThreadPoolExecutor,
        idle_s: float = IDLE_S,
        send_s: float = _SEND_S,
    ) -> None:
        self._socket = socket
        self._threads = threads
        self._idle_s = idle_s
        self._send_s = send_s
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue(_MESSAGES_MAX)
        self._unread = 0
        self._read = asyncio.Event()

    async def take_in(self) -> None:
        """Read on until the other side hangs up; it waits while much lies unread."""
        async for message in self._socket:
            if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                continue
            await self._messages.put(message.data)
            self._unread += len(message.data)
            while self._unread > _UNREAD_MAX_BYTES:
                self._read.clear()
                await self._read.wait()
        await self._messages.put(None)

    async def receive(self) -> str | bytes | None:
        """The next message, None when the other side is gone. Raises Problem where nothing is said for too long."""
        try:
            async with asyncio.timeout(self._idle_s):
                message = await self._messages.get()
        except TimeoutError:
            raise Problem("idle", f"Nothing was sent for {self._idle_s:g} s.") from None
        if message is not None:
            self._unread -= len(message)
            self._read.set()
        return message

    def has_more(self) -> bool:
        """Whether something lies there unread."""
        return not self._messages.empty()

    async def send(self, data: bytes) -> None:
        """Say something, in words. Raises ConnectionError where nobody listens."""
        try:
            async with asyncio.timeout(self._send_s):
                await self._socket.send_str(data.decode())
        except TimeoutError:
            raise ConnectionAbortedError(f"what was said was not read for {self._send_s:g} s") from None

    async def work(self, do: Callable[[], Result]) -> Result:
        """One piece of work, when its turn comes."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, do)


class Engine(Protocol):
    """One kind of engine."""

    def load(self) -> None:
        """Load the model; before that nothing is served. Raises BadModel."""
        ...

    def check(self) -> None:
        """Make the model do its work once, as small as possible. Raises any error where it can't."""
        ...

    def handlers(self) -> Mapping[str, Handler]:
        """What is served, by path; all by POST."""
        ...


@runtime_checkable
class TalkingEngine(Protocol):
    """An engine that also talks over WebSockets."""

    def sockets(self) -> Mapping[str, Callable[[Socket], Awaitable[None]]]:
        """Who talks, by path: until the other side is gone. Raises Problem, which is told before it hangs up."""
        ...


@runtime_checkable
class BoundedEngine(Protocol):
    """An engine that strangers' files reach: beyond what its work needs it gets no memory, whatever they claim."""

    def room_bytes(self, loaded_bytes: int) -> int | None:
        """What its work needs at most beyond the ``loaded_bytes`` after loading; None where nobody can tell."""
        ...


def read_order(body: bytes, kind: type[Order]) -> Order:
    """A request's JSON. Raises Problem."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem("invalid_request", f"The engine can't read its order: {error}") from None


def need(library: str, extra: str) -> ModuleType:
    """The library of an optional extra. Raises BadModel with the command that installs it."""
    try:
        return load(library)
    except ImportError as error:
        raise BadModel(f"{error}: this engine is an optional extra. Run: pip install 'stentor[{extra}]'") from None


def run(make: Callable[[SpeechConfig], Engine]) -> None:
    """The whole program: configuration, model, service. Ends the process."""
    try:
        config = msgspec.json.decode(sys.stdin.buffer.readline(_CONFIG_MAX_BYTES), type=SpeechConfig)
    except msgspec.DecodeError as problem:
        end(EXIT_USAGE, f"error: one JSON line of configuration is expected on stdin: {problem}")
    engine = make(config)
    try:
        engine.load()
        if isinstance(engine, BoundedEngine):
            bound_memory(engine.room_bytes)
        engine.check()  # files of another model may well load
    except BadModel as problem:
        end(EXIT_BAD_MODEL, f"error: {problem}")
    except Exception as error:  # noqa: BLE001 - over files that aren't theirs, libraries raise what they like
        traceback.print_exc()
        end(EXIT_BAD_MODEL, f"error: {_say_unusable(config, error)}")
    asyncio.run(_Service(config, engine).serve())


def _say_unusable(config: SpeechConfig, error: Exception) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory while loading {config.model_path or config.alias}"
    words = str(error).strip().splitlines()[:1]
    said = ": ".join([type(error).__name__, *words])
    step = f"Its files may be damaged, or those of another kind of model. {FETCH_AGAIN}"
    return f"the model {config.model_path or config.alias} can't do its work ({said}). {step}"


def end(status: int, line: str = "") -> NoReturn:
    """End at once: threads in a library's hands can't be waited for."""
    if line:
        sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    os._exit(status)


class _Service:
    """One engine on its port."""

    def __init__(self, config: SpeechConfig, engine: Engine) -> None:
        self._config = config
        self._engine = engine
        self._threads = ThreadPoolExecutor(config.workers, thread_name_prefix="work")
        self._active = 0
        self._fresh = True  # it has just done its work once

    async def serve(self) -> None:
        """Serve until SIGTERM or SIGINT; ends the process."""
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        app = web.Application(client_max_size=_BODY_MAX_BYTES)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/canary", self._guard(self._canary))
        for path, handler in self._engine.handlers().items():
            app.router.add_post(path, self._guard(self._work(handler)))
        if isinstance(self._engine, TalkingEngine):
            for path, talk in self._engine.sockets().items():
                app.router.add_get(path, self._guard(self._talk(talk)))
        # A client that leaves cancels its handler: that is how work is stopped.
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", self._config.port).start()
        except OSError as problem:
            end(EXIT_UNAVAILABLE, f"error: port {self._config.port} can't be served: {problem.strerror}")
        sys.stderr.write(f"serving {self._config.alias} at http://127.0.0.1:{self._config.port}\n")
        sys.stderr.flush()
        await stopped.wait()
        # Whatever still works was given its time by the supervisor.
        end(0, "stopping")

    def _guard(self, handler: _Serve) -> _Serve:
        expected = f"Bearer {self._config.token}".encode()

        async def guarded(request: web.Request) -> web.StreamResponse:
            given = request.headers.get("Authorization", "").encode("utf-8", "replace")
            if not hmac.compare_digest(given, expected):
                return _refuse(Problem("unauthorized", "The engine's token is needed.", 401))
            return await handler(request)

        return guarded

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _canary(self, _request: web.Request) -> web.Response:
        if not self._fresh:
            await asyncio.get_running_loop().run_in_executor(self._threads, self._engine.check)
        self._fresh = False
        return web.json_response({"results": ["ok"]})

    def _work(self, handler: Handler) -> _Serve:
        async def work(request: web.Request) -> web.StreamResponse:
            if self._active >= self._config.places + _SPARE_PLACES:
                return _refuse(Problem("overloaded", "The engine has more requests than places.", 503))
            self._active += 1
            try:
                return await self._answer(request, handler)
            except Problem as problem:
                return _refuse(problem)
            finally:
                self._active -= 1

        return work

    def _talk(self, talk: Callable[[Socket], Awaitable[None]]) -> _Serve:
        async def serve(request: web.Request) -> web.StreamResponse:
            if self._active >= self._config.places + _SPARE_PLACES:
                return _refuse(Problem("overloaded", "The engine has more requests than places.", 503))
            response = web.WebSocketResponse(max_msg_size=_MESSAGE_MAX_BYTES, heartbeat=_HEARTBEAT_S)
            await response.prepare(request)
            socket = Socket(response, self._threads)
            self._active += 1
            reading = asyncio.create_task(socket.take_in())
            try:
                await _talk_out(talk, socket)
            except ConnectionError:
                _break_off(request)  # it left, or doesn't listen
            finally:
                self._active -= 1
                reading.cancel()
                await response.close()
            return response

        return serve

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        left = threading.Event()
        pieces = Pieces(handler, await request.read(), left, self._threads)
        try:
            first = await pieces.next()
            response = web.StreamResponse(headers={"Content-Type": pieces.media_type})
            piece = first
            await response.prepare(request)
            while piece is not None:
                await response.write(piece)
                piece = await pieces.next()
        except Problem:
            if pieces.begun:
                _break_off(request)
            raise
        finally:
            # A piece under way is finished first: no library can be stopped in the middle.
            left.set()
        await response.write_eof()
        return response


async def _talk_out(talk: Callable[[Socket], Awaitable[None]], socket: Socket) -> None:
    try:
        await talk(socket)
    except Problem as problem:
        await socket.send(msgspec.json.encode({"event": "error", "code": problem.code, "message": str(problem)}))


def _refuse(problem: Problem) -> web.Response:
    return web.json_response({"error": {"code": problem.code, "message": str(problem)}}, status=problem.status)


def _break_off(request: web.Request) -> None:
    """Close the connection without the end of the answer, so that it is seen to be cut."""
    if request.transport is not None:
        request.transport.abort()
