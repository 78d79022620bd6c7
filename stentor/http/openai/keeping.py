"""Chats that are kept: a request may ask for it, by ``x-stentor-conversation: ID`` or by ``store: true``.

What was answered is noted on its way to the client and kept before its end goes out, as calls of the LLMRing surface:
whoever has the whole answer finds it in the conversation. Requests that don't ask cost a look at their headers.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from stentor.core.errors import Refused
from stentor.core.operator import Operate, OperatorCall
from stentor.core.principal import Principal
from stentor.flows.ask import Ask
from stentor.flows.client import AnswerHead, Client
from stentor.http.connection import Connection
from stentor.http.openai.text import TextEndpoints
from stentor.telemetry.logs import Log

HEADER = b"x-stentor-conversation"
TITLE_CHARS = 80
KEPT_MAX_BYTES = 4 * 1024 * 1024
ROLES = {"developer": "system", "function": "tool"}
Json = dict[str, Any]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Noted:
    """Passes an answer on to ``client`` and notes it. ``body`` is set for a whole answer, ``frames`` hold a stream."""

    def __init__(self, client: Client, keep: Callable[["Noted"], Awaitable[None]]) -> None:
        self._client = client
        self._keep = keep
        self.request_id = client.request_id
        self.received_s = client.received_s
        self.body: bytes | None = None
        self.frames: list[bytes] = []
        self.cost_nano: int | None = None
        self._size = 0

    def _note(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= KEPT_MAX_BYTES:
            self.frames.append(data)

    async def start_stream(self, head: AnswerHead) -> None:
        """See ``Client``."""
        await self._client.start_stream(head)

    async def write(self, data: bytes) -> None:
        """See ``Client``."""
        self._note(data)
        await self._client.write(data)

    async def end_stream(self, data: bytes) -> None:
        """See ``Client``."""
        self._note(data)
        if self._size <= KEPT_MAX_BYTES:
            await self._keep(self)
        await self._client.end_stream(data)

    async def fail_stream(self, refusal: Refused) -> None:
        """See ``Client``."""
        await self._client.fail_stream(refusal)

    async def answer(self, head: AnswerHead, body: bytes) -> None:
        """See ``Client``."""
        self.body, self.cost_nano = body, head.cost_nano
        if len(body) <= KEPT_MAX_BYTES:
            await self._keep(self)
        await self._client.answer(head, body)


class KeptChat:
    """The chat endpoint. ``operate`` asks the authority."""

    def __init__(self, text: TextEndpoints, operate: Operate, log: Log) -> None:
        self._text = text
        self._operate = operate
        self._log = log

    async def chat(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/chat/completions"""
        ask = await self._text.read_chat(connection)
        named = connection.header(HEADER)
        if named is None and "store" not in ask.fields:
            await self._text.answer(connection, principal, ask, connection)
            return
        kept = await self._find_conversation(principal, ask, named)
        if kept is None:
            await self._text.answer(connection, principal, ask, connection)
            return

        async def keep(noted: Noted) -> None:
            try:
                await self._keep(principal, ask, kept, noted)
            except (Refused, msgspec.DecodeError) as error:
                request_id = connection.request_id
                self._log.event("conversation_not_kept", level="warning", request_id=request_id, message=str(error))

        await self._text.answer(connection, principal, ask, Noted(connection, keep))

    async def _find_conversation(self, principal: Principal, ask: Ask, named: bytes | None) -> Json | None:
        """The conversation that was named, an empty one for ``store: true``, or None. Raises Refused."""
        if named is None:
            wanted = bytes(ask.fields["store"]).strip() == b"true" and "ring" in principal.scopes
            return {} if wanted else None
        if "ring" not in principal.scopes:
            raise Refused(
                "insufficient_scope", "A key needs the scope 'ring' to keep what x-stentor-conversation names."
            )
        name = named.decode("latin-1").strip()
        if not name.replace("-", "").isalnum() or len(name) > 64:
            raise Refused("not_found", f"Conversation not found: '{name[:64]}'.")
        found: Json = await self._ask(principal, "GET", f"/api/v1/conversations/{name}?include_messages=false")
        return found

    async def _keep(self, principal: Principal, ask: Ask, kept: Json, noted: Noted) -> None:
        asked = [message for message in _decode(ask.fields["messages"]) if isinstance(message, dict)]
        if not kept:
            title = next(
                (m["content"] for m in asked if m.get("role") == "user" and isinstance(m.get("content"), str)), None
            )
            new = {"title": title[:TITLE_CHARS] if title else None, "model_alias": ask.model[:255]}
            kept = await self._ask(principal, "POST", "/api/v1/conversations", new)
        elif kept["message_count"]:
            asked = _new_turn(asked)
        reply = _reply(noted)
        facts: Json = {"request_id": noted.request_id, "model": ask.model}
        if noted.cost_nano is not None:
            facts["cost"] = noted.cost_nano / 1e9
        reply["metadata"] = facts
        messages = [*(_message(message) for message in asked), reply]
        await self._ask(principal, "POST", f"/api/v1/conversations/{kept['id']}/messages/batch", {"messages": messages})

    async def _ask(self, principal: Principal, method: str, target: str, body: Json | None = None) -> Any:
        path, _, query = target.partition("?")
        call = OperatorCall(method, path, query.encode(), b"" if body is None else _encode(body), principal)
        answer = await self._operate(call)
        found = _decode(answer.body)
        if answer.status != 200:
            raise Refused("not_found" if answer.status == 404 else "invalid_request", str(found.get("detail"))[:500])
        return found


def _new_turn(messages: list[Json]) -> list[Json]:
    """What came after the last answer: the rest has been kept before."""
    last = max((at for at, message in enumerate(messages) if message.get("role") == "assistant"), default=-1)
    return messages[last + 1 :]


def _message(message: Json) -> Json:
    role = str(message.get("role"))
    rest = {name: message[name] for name in ("name", "tool_call_id") if message.get(name) is not None}
    return {
        "role": ROLES.get(role, role),
        "content": message.get("content"),
        "tool_calls": message.get("tool_calls"),
        "metadata": rest,
    }


def _reply(noted: Noted) -> Json:
    """The answer as a message: of several, the first."""
    if noted.body is not None:
        answer = _decode(noted.body)
        message = answer["choices"][0]["message"]
        usage = answer.get("usage") or {}
        return _assistant(message.get("content"), message.get("tool_calls"), usage)
    content: list[str] = []
    calls: dict[int, Json] = {}
    usage = {}
    for line in b"".join(noted.frames).split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        event = _decode(line[6:])
        usage = event.get("usage") or usage
        for choice in event.get("choices") or []:
            if choice.get("index", 0) == 0:
                _add_delta(choice.get("delta") or {}, content, calls)
    return _assistant("".join(content), [calls[at] for at in sorted(calls)] or None, usage)


def _add_delta(delta: Json, content: list[str], calls: dict[int, Json]) -> None:
    if isinstance(delta.get("content"), str):
        content.append(delta["content"])
    for part in delta.get("tool_calls") or []:
        call = calls.setdefault(
            part.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = part.get("id") or call["id"]
        for name, text in (part.get("function") or {}).items():
            call["function"][name] = call["function"].get(name, "") + (text or "")


def _assistant(content: Any, calls: Any, usage: Json) -> Json:
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": calls,
        "input_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
    }
