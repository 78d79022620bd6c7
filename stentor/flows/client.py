"""The caller's side of a request, as the flows see it: plain primitives, no web framework."""

from typing import NamedTuple, Protocol

from stentor.core.errors import Refused
from stentor.core.ids import RequestId
from stentor.flows.answer import Progress


class AnswerHead(NamedTuple):
    """What is known when the answer starts: for the response's headers, and for dialects that begin with the prompt."""

    model: str
    instance: str
    overhead_us: int
    cost_nano: int | None
    prompt: Progress | None = None


class Labels(NamedTuple):
    """The caller's own names for a request: ``x-client-request-id``, and the W3C trace it belongs to."""

    client_request_id: str | None = None
    traceparent: str | None = None


class Client(Protocol):
    """The caller's side of a connection, as plain primitives."""

    request_id: RequestId
    received_s: float

    async def start_stream(self, head: AnswerHead) -> None:
        """Send status 200 and the headers of an event stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Send some of the stream; returns when there is room for more."""
        ...

    async def end_stream(self, data: bytes) -> None:
        """Send the last bytes and end the stream."""
        ...

    async def fail_stream(self, refusal: Refused) -> None:
        """Say in the stream that it ends early, and end it without a clean end."""
        ...

    async def answer(self, head: AnswerHead, body: bytes) -> None:
        """Send a whole JSON answer."""
        ...


class MediaClient(Client, Protocol):
    """A client that takes other things than JSON and events."""

    async def start_stream(self, head: AnswerHead, media_type: bytes = b"text/event-stream") -> None:
        """Send status 200 and the headers of a stream."""
        ...

    async def answer(self, head: AnswerHead, body: bytes, media_type: bytes = b"application/json") -> None:
        """Send a whole answer."""
        ...
