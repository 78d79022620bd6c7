"""What an answer sounds like in a dialect: chat frames in, the dialect's bytes out."""

from typing import Any, NamedTuple, Protocol

from stentor.core.ids import RequestId
from stentor.flows.answer import WireUsage
from stentor.flows.client import AnswerHead
from stentor.flows.dialects.chunks import Chunk, read_chunks
from stentor.flows.dialects.parts import Listener, Parts

EVENT_STREAM = b"text/event-stream"


class Occasion(NamedTuple):
    """Which request is answered: its id, and when it was received (monotonic seconds)."""

    request_id: RequestId
    received_s: float

    @property
    def name(self) -> str:
        """The id without dashes, for the ids of what is said."""
        return self.request_id.replace("-", "")


class Voice(Protocol):
    """Says one answer. Either ``whole`` is called once, or ``begin``, then ``take`` per read, then ``end`` once.

    ``take`` and ``end`` give the pieces to send, each of which the client may see as a chunk of its own. They raise
    EngineRubbish for frames that aren't chat completion chunks. ``failure`` may be called at any time after ``begin``;
    None: the dialect has no words for it, and the connection is cut so that nobody takes the answer for whole.
    """

    media_type: bytes
    whole_type: bytes

    def begin(self, head: AnswerHead) -> bytes:
        """What comes before the first word."""
        ...

    def take(self, frames: bytes) -> list[bytes]:
        """Some whole frames, before the answer is finished."""
        ...

    def end(self, frames: bytes) -> list[bytes]:
        """The frames from the first finishing one to the last: usage and ``[DONE]`` are among them."""
        ...

    def failure(self, message: str, envelope: dict[str, Any]) -> bytes | None:
        """How it is said that the answer ends early; ``envelope`` is the body of the dialect's error answer."""
        ...

    def whole(self, head: AnswerHead, body: bytes) -> bytes:
        """The answer for a client that wants no stream; ``body`` is a ``chat.completion``."""
        ...


class PartsVoice(Listener):
    """What the voices share that say an answer part by part: who inherits hears of the parts and puts its words out."""

    def __init__(self, occasion: Occasion) -> None:
        self._occasion = occasion
        self._parts = Parts(self)
        self._out: list[bytes] = []
        self._usage = WireUsage()

    def take(self, frames: bytes) -> list[bytes]:
        """Some whole frames, before the answer is finished. Raises EngineRubbish."""
        for chunk in read_chunks(frames):
            self._take(chunk)
        return self._flush()

    def _take(self, chunk: Chunk) -> None:
        for choice in chunk.choices:
            self._parts.take(choice)
        self._usage = chunk.usage or self._usage

    def _flush(self) -> list[bytes]:
        out, self._out = self._out, []
        return [b"".join(out)] if out else []
