"""An answer as a row of parts, one open at a time: thoughts, text, a refusal, calls.

Chat chunks may mix the pieces of several calls; dialects with events of their own for each part want them one after
the other. So a part is held back until those before it are complete.
"""

from typing import Any, Literal, Protocol

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.flows.dialects.chunks import Choice, ToolCall

PartKind = Literal["thinking", "text", "refusal", "call"]

_decode_any = msgspec.json.Decoder().decode


class Part:
    """One part as it grows: ``text`` holds words, or a call's arguments."""

    __slots__ = (
        "_checked", "_complete", "call_id", "kind", "logprobs", "logprobs_told", "name", "number", "opened", "pieces",
        "told",
    )  # fmt: skip

    def __init__(self, kind: PartKind, number: int) -> None:
        self.kind = kind
        self.number = number
        self.name = ""
        self.call_id = ""
        self.pieces: list[str] = []
        self.logprobs: list[msgspec.Raw] = []
        self.opened = False
        self.told = self.logprobs_told = 0
        self._checked = -1
        self._complete = False

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def arguments(self) -> Any:
        """A call's arguments as a JSON object. What isn't one is handed over as it is, under a name no tool has."""
        text = self.text or "{}"
        if self.kind == "call" and not (text.lstrip().startswith("{") and is_json(text)):
            return {"unreadable_arguments": text}
        return msgspec.Raw(text.encode())

    def is_complete(self) -> bool:
        """Whether nothing more can belong to it, once another part has begun."""
        if self.kind != "call":
            return True
        if self._checked != len(self.pieces):
            self._checked = len(self.pieces)
            self._complete = is_json(self.text)
        return self._complete


class Listener(Protocol):
    """Hears of the parts in order; ``grew`` never comes before ``opened`` or after ``closed``."""

    def opened(self, part: Part) -> None:
        """It begins."""
        ...

    def grew(self, part: Part, text: str, logprobs: list[msgspec.Raw]) -> None:
        """``text`` was added to it."""
        ...

    def closed(self, part: Part) -> None:
        """It is complete, or nothing more will come."""
        ...


class Parts:
    """The parts of one answer; tell it the choices as they come, then ``finish``."""

    def __init__(self, listener: Listener) -> None:
        self.all: list[Part] = []
        self.finish_reason: str | None = None
        self._listener = listener
        self._live = 0
        self._calls: dict[int, Part] = {}

    def take(self, choice: Choice) -> None:
        """Something more was said."""
        said = choice.said
        if thought := said.thought:
            self._add("thinking", thought, [])
        if said.content:
            logprobs = choice.logprobs.content if choice.logprobs is not None else None
            self._add("text", said.content, logprobs or [])
        if said.refusal:
            self._add("refusal", said.refusal, [])
        for number, call in enumerate(said.tool_calls or ()):
            # The calls of a whole answer carry no index: their order is one.
            self._add_call(call, number if choice.message is not None else call.index)
        if choice.finish_reason is not None:
            self.finish_reason = choice.finish_reason

    def add_empty_text(self) -> None:
        """Nothing was said, and the dialect wants to say so."""
        self._begin("text")
        self._pump()

    def finish(self) -> None:
        """Nothing more will come."""
        while self._live < len(self.all):
            part = self.all[self._live]
            self._tell(part)
            self._listener.closed(part)
            self._live += 1

    def _begin(self, kind: PartKind) -> Part:
        part = Part(kind, len(self.all))
        self.all.append(part)
        return part

    def _add(self, kind: PartKind, text: str, logprobs: list[msgspec.Raw]) -> None:
        last = self.all[-1] if self.all else None
        part = last if last is not None and last.kind == kind else self._begin(kind)
        part.pieces.append(text)
        part.logprobs += logprobs
        self._pump()

    def _add_call(self, call: ToolCall, index: int) -> None:
        part = self._calls.get(index)
        if part is None:
            part = self._calls[index] = self._begin("call")
        if part.number < self._live:
            return  # white space after the arguments
        part.call_id = part.call_id or call.id or ""
        if call.function is not None:
            part.name = part.name or call.function.name or ""
            if call.function.arguments:
                part.pieces.append(call.function.arguments)
        self._pump()

    def _pump(self) -> None:
        while True:
            part = self.all[self._live]
            self._tell(part)
            if self._live + 1 == len(self.all) or not part.is_complete():
                return
            self._listener.closed(part)
            self._live += 1

    def _tell(self, part: Part) -> None:
        if not part.opened:
            part.opened = True
            self._listener.opened(part)
        if part.told < len(part.pieces):
            text, logprobs = "".join(part.pieces[part.told :]), part.logprobs[part.logprobs_told :]
            part.told, part.logprobs_told = len(part.pieces), len(part.logprobs)
            self._listener.grew(part, text, logprobs)


def is_json(text: str) -> bool:
    """Whether ``text`` is one whole JSON value."""
    try:
        _decode_any(text)
    except UNREADABLE:
        return False
    return True
