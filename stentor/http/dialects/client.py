"""A caller who speaks a dialect: what the flow says as chat frames reaches them in their own words."""

from stentor.core.errors import Refused
from stentor.flows.answer import EngineRubbish
from stentor.flows.client import AnswerHead
from stentor.flows.dialects.voice import Voice
from stentor.http.connection import Connection
from stentor.http.errors import Envelope, error_object


class DialectClient:
    """Behind ``stentor.flows.client.Client``, over a connection."""

    __slots__ = ("_connection", "_envelope", "_opening", "_voice", "received_s", "request_id")

    def __init__(self, connection: Connection, voice: Voice, envelope: Envelope) -> None:
        self.request_id = connection.request_id
        self.received_s = connection.received_s
        self._connection = connection
        self._voice = voice
        self._envelope: Envelope = envelope
        self._opening = b""
        connection.fail = self.fail_stream

    async def start_stream(self, head: AnswerHead) -> None:
        await self._connection.start_stream(head, self._voice.media_type)
        # Goes out with the first words: head and answer are one packet.
        self._opening = self._voice.begin(head)

    async def write(self, data: bytes) -> None:
        for piece in self._opened(self._voice.take(data)):
            await self._connection.write(piece)

    async def end_stream(self, data: bytes) -> None:
        try:
            pieces = self._opened(self._voice.end(data))
        except EngineRubbish:
            await self.fail_stream(Refused("engine_failed", "The end of the engine's answer can't be read."))
            return
        for piece in pieces[:-1]:
            await self._connection.write(piece)
        await self._connection.end_stream(pieces[-1] if pieces else b"")

    def _opened(self, pieces: list[bytes]) -> list[bytes]:
        if not self._opening:
            return pieces
        opening, self._opening = self._opening, b""
        return [opening + pieces[0], *pieces[1:]] if pieces else [opening]

    async def fail_stream(self, refusal: Refused) -> None:
        said = self._voice.failure(refusal.message, error_object(refusal, self._envelope))
        if said is None:
            await self._connection.cut()
        else:
            await self._connection.end_stream(b"".join(self._opened([said])))

    async def answer(self, head: AnswerHead, body: bytes) -> None:
        await self._connection.answer(head, self._voice.whole(head, body), self._voice.whole_type)
