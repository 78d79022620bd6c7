"""What the endpoints of all dialects share: reading a body, and running a chat for a caller who speaks otherwise."""

from stentor.core.principal import Principal
from stentor.flows.ask import Ask
from stentor.flows.calls import Calls
from stentor.flows.chat import ChatFlow
from stentor.flows.dialects.voice import Occasion, Voice
from stentor.http.connection import Connection
from stentor.http.dialects.client import DialectClient
from stentor.http.errors import Envelope
from stentor.http.openai.text import labels_of


class DialectService:
    """The chat flow, for dialects."""

    def __init__(self, flow: ChatFlow, calls: Calls, body_max_bytes: int) -> None:
        self._flow = flow
        self._calls = calls
        self._body_max_bytes = body_max_bytes

    async def read_body(self, connection: Connection) -> bytes:
        """The request's body. Raises Refused (413), ClientGone."""
        return await connection.read_body(self._body_max_bytes)

    async def run(
        self, connection: Connection, principal: Principal, ask: Ask, voice: Voice, envelope: Envelope
    ) -> None:
        """Answer ``ask`` in ``voice``. Raises Refused as long as nothing was sent."""
        client = DialectClient(connection, voice, envelope)
        call = self._calls.enter(principal.key_id)
        connection.watch(call)
        try:
            await self._flow.run(principal, ask, client, call, labels_of(connection))
        finally:
            call.closing = True
            self._calls.leave(call)


def occasion_of(connection: Connection) -> Occasion:
    """Which request this is."""
    return Occasion(connection.request_id, connection.received_s)
