"""Questions to an engine over loopback: is it there, does it answer, what does it hold."""

import asyncio
from typing import Any, NamedTuple

import aiohttp
import msgspec

from stentor.core.errors import UNREADABLE
from stentor.runtime.spec import SPEECH_TYPES, ModelSpec

_HEALTH_TIMEOUT_S = 5.0
_ANSWER_MAX_BYTES = 1 << 20


class EngineAddress(NamedTuple):
    """Where an engine serves and the token it wants (empty: none)."""

    url: str
    token: str


class Props(msgspec.Struct, frozen=True):
    """What an engine of the llama family says it holds: tokens per place, and places; ``sees`` and ``hears`` None
    where it doesn't say."""

    context_size: int
    places: int
    sees: bool | None = None
    hears: bool | None = None


class _Settings(msgspec.Struct):
    n_ctx: int


class _Modalities(msgspec.Struct):
    vision: bool | None = None
    audio: bool | None = None


class _Props(msgspec.Struct):
    default_generation_settings: _Settings
    total_slots: int
    modalities: _Modalities | None = None


_decode_props = msgspec.json.Decoder(_Props).decode


class Probe:
    """One small HTTP client for all engines of a server; made on first use, on the running loop."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close the client; a later question opens it again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def ask_health(self, engine: EngineAddress, path: str) -> str:
        """``ok``, or what was met instead: ``no answer``, ``status 503``, …"""
        try:
            status, _body = await self._ask("GET", engine, path, None, _HEALTH_TIMEOUT_S)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return "no answer"
        return "ok" if status == 200 else f"status {status}"

    async def ask_canary(self, engine: EngineAddress, spec: ModelSpec, timeout_s: float) -> str | None:
        """Make the engine do its work once, as small as possible; None when it did, else what went wrong."""
        question = choose_canary(spec)
        if question is None:
            return None
        path, body = question
        try:
            status, answer = await self._ask("POST", engine, path, body, timeout_s)
        except TimeoutError:
            return f"{path} gave no answer within {timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as problem:
            return f"{path} broke off: {type(problem).__name__}"
        if status != 200:
            return f"{path} answered with status {status}"
        return None if _is_answer(answer) else f"{path} answered with something else than the JSON of an answer"

    async def find_props(self, engine: EngineAddress) -> Props | None:
        """What the engine really holds; None where it doesn't say."""
        try:
            status, answer = await self._ask("GET", engine, "/props", None, _HEALTH_TIMEOUT_S)
            if status != 200:
                return None
            props = _decode_props(answer)
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        takes = props.modalities or _Modalities()
        return Props(props.default_generation_settings.n_ctx, props.total_slots, takes.vision, takes.audio)

    async def _ask(
        self, method: str, engine: EngineAddress, path: str, body: dict[str, Any] | None, timeout_s: float
    ) -> tuple[int, bytes]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
            )
        headers = {"Authorization": f"Bearer {engine.token}"} if engine.token else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        async with (
            asyncio.timeout(timeout_s),
            self._session.request(
                method,
                engine.url + path,
                data=None if body is None else msgspec.json.encode(body),
                headers=headers,
                allow_redirects=False,
            ) as response,
        ):
            return response.status, await _read_limited(response)


async def _read_limited(response: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size_bytes = 0
    async for part in response.content.iter_any():
        parts.append(part)
        size_bytes += len(part)
        if size_bytes > _ANSWER_MAX_BYTES:
            break
    return b"".join(parts)


def choose_canary(spec: ModelSpec) -> tuple[str, dict[str, Any]] | None:
    """Path and body of the smallest request that uses the model; None for types that have none yet."""
    model = spec.upstream_model or spec.id
    if spec.kind in ("embedding", "vision-embedding"):
        return "/v1/embeddings", {"model": model, "input": "a"}
    if spec.kind == "reranker":
        return "/v1/rerank", {"model": model, "query": "a", "documents": ["a"]}
    if spec.engine in SPEECH_TYPES:
        return "/v1/canary", {}
    if spec.kind in ("audio", "tts", "listen") and spec.engine not in ("llama", "llama-server"):
        return None
    if spec.engine == "command":
        hello = [{"role": "user", "content": "a"}]
        return "/v1/chat/completions", {"model": model, "messages": hello, "max_tokens": 1, "stream": False}
    # The grammar keeps the one token a whole character: half of one makes some builds answer 500 in perfect health.
    question = {"model": model, "prompt": "a", "max_tokens": 1, "temperature": 0, "grammar": "root ::= [a-z]"}
    return "/v1/completions", question


def _is_answer(answer: bytes) -> bool:
    try:
        body = msgspec.json.decode(answer)
    except UNREADABLE:
        return False
    return isinstance(body, dict) and any(body.get(field) for field in ("choices", "data", "results"))
