"""What the endpoints of all dialects share: reading a body, and running a flow for a caller who speaks otherwise."""

from stentor.core.principal import Principal
from stentor.flows.ask import Ask
from stentor.flows.calls import Calls
from stentor.flows.chat import ChatFlow
from stentor.flows.client import Client
from stentor.flows.dialects.voice import Occasion, Voice
from stentor.flows.inputs import InputsAsk
from stentor.http.connection import Connection
from stentor.http.dialects.client import DialectClient
from stentor.http.errors import Envelope
from stentor.http.openai.text import labels_of


class DialectService:
    """The flows, for dialects: ``flow`` generates, ``inputs`` only reads."""

    def __init__(self, flow: ChatFlow, inputs: ChatFlow, calls: Calls, body_max_bytes: int) -> None:
        self._flow = flow
        self._inputs = inputs
        self._calls = calls
        self._body_max_bytes = body_max_bytes

    async def read_body(self, connection: Connection) -> bytes:
        """The request's body. Raises Refused (413), ClientGone."""
        return await connection.read_body(self._body_max_bytes)

    async def run(
        self, connection: Connection, principal: Principal, ask: Ask, voice: Voice, envelope: Envelope
    ) -> None:
        """Answer ``ask`` in ``voice``. Raises Refused as long as nothing was sent."""
        await self._run(self._flow, connection, principal, ask, DialectClient(connection, voice, envelope))

    async def run_inputs(self, connection: Connection, principal: Principal, ask: InputsAsk, client: Client) -> None:
        """Answer what generates nothing, to ``client``. Raises Refused."""
        await self._run(self._inputs, connection, principal, ask, client)

    async def _run(
        self, flow: ChatFlow, connection: Connection, principal: Principal, ask: Ask, client: Client
    ) -> None:
        call = self._calls.enter(principal.key_id)
        connection.watch(call)
        try:
            await flow.run(principal, ask, client, call, labels_of(connection))
        finally:
            call.closing = True
            self._calls.leave(call)


def occasion_of(connection: Connection) -> Occasion:
    """Which request this is."""
    return Occasion(connection.request_id, connection.received_s)
