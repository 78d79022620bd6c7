"""What the endpoints of all dialects share: reading a body, and running a flow for a caller who speaks otherwise."""

from urllib.parse import quote

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.core.operator import Operate, OperatorCall
from stentor.core.principal import Principal
from stentor.flows.ask import Ask
from stentor.flows.client import Client
from stentor.flows.dialects.voice import Occasion, Voice
from stentor.flows.inputs import InputsAsk
from stentor.http.connection import Connection
from stentor.http.dialects.client import DialectClient
from stentor.http.errors import Envelope
from stentor.http.openai.text import TextEndpoints


class DialectService:
    """What dialects are translations of: ``text`` answers what they ask."""

    def __init__(self, text: TextEndpoints, body_max_bytes: int) -> None:
        self._text = text
        self._body_max_bytes = body_max_bytes

    async def read_body(self, connection: Connection) -> bytes:
        """The request's body. Raises Refused (413), ClientGone."""
        return await connection.read_body(self._body_max_bytes)

    async def run(
        self, connection: Connection, principal: Principal, ask: Ask, voice: Voice, envelope: Envelope
    ) -> None:
        """Answer ``ask`` in ``voice``. Raises Refused as long as nothing was sent."""
        await self._text.answer(connection, principal, ask, DialectClient(connection, voice, envelope))

    async def run_inputs(self, connection: Connection, principal: Principal, ask: InputsAsk, client: Client) -> None:
        """Answer what generates nothing, to ``client``. Raises Refused."""
        await self._text.answer(connection, principal, ask, client)


async def stop_model(operate: Operate, connection: Connection, principal: Principal, model: ModelId) -> None:
    """Stop a model as administrators do: what runs ends first. Raises Refused."""
    path = f"/admin/api/models/{quote(model, safe='')}/stop"
    stopped = await operate(OperatorCall("POST", path, b"", b"", principal, connection.exchange.address or ""))
    if stopped.status != 200:
        raise Refused("conflict", f"The model '{model}' could not be unloaded (status {stopped.status}).")


def occasion_of(connection: Connection) -> Occasion:
    """Which request this is."""
    return Occasion(connection.request_id, connection.received_s)
