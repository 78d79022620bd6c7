"""What models answer, conversations and others: from the connection to the flow and back."""

from collections.abc import Callable

from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.flows.ask import Ask, read_chat, read_completion
from stentor.flows.calls import Calls
from stentor.flows.chat import ChatFlow
from stentor.flows.client import Client, Labels
from stentor.flows.embedding import read_embeddings
from stentor.flows.inputs import InputsAsk
from stentor.flows.rerank import read_rerank
from stentor.flows.tokenizing import read_tokenize
from stentor.http.connection import Connection

LABEL_MAX_CHARS = 128


class TextEndpoints:
    """The endpoints that generate, over one flow, and those that only read, over another."""

    def __init__(self, flow: ChatFlow, inputs: ChatFlow, calls: Calls, body_max_bytes: int) -> None:
        self._flow = flow
        self._inputs = inputs
        self._calls = calls
        self._body_max_bytes = body_max_bytes

    async def completion(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/completions"""
        await self._serve(connection, principal, read_completion)

    async def embeddings(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/embeddings"""
        await self._serve(connection, principal, read_embeddings)

    async def rerank(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/rerank"""
        await self._serve(connection, principal, read_rerank)

    async def tokenize(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/tokenize"""
        await self._serve(connection, principal, read_tokenize)

    async def _serve(self, connection: Connection, principal: Principal, read: Callable[[bytes], Ask]) -> None:
        ask = read(await connection.read_body(self._body_max_bytes))
        await self.answer(connection, principal, ask, connection)

    async def read_chat(self, connection: Connection) -> Ask:
        """A chat request's body, read."""
        return read_chat(await connection.read_body(self._body_max_bytes))

    async def answer(self, connection: Connection, principal: Principal, ask: Ask, client: Client) -> None:
        """Run the flow on ``connection``; ``client`` is what it answers to: the connection, or something before it."""
        flow = self._inputs if isinstance(ask, InputsAsk) else self._flow
        labels = labels_of(connection)
        call = self._calls.enter(principal.key_id)
        connection.watch(call)
        try:
            await flow.run(principal, ask, client, call, labels)
        finally:
            call.closing = True
            self._calls.leave(call)


def labels_of(connection: Connection) -> Labels:
    """The caller's own names for its request."""
    return Labels(_label(connection, b"x-client-request-id"), _label(connection, b"traceparent"))


def _label(connection: Connection, name: bytes) -> str | None:
    value = connection.header(name)
    return value.decode("latin-1").strip()[:LABEL_MAX_CHARS] if value is not None else None


def not_in_models(name: str) -> Refused:
    """404 for a model that isn't there, or that the key may not use: both look the same."""
    return Refused(
        "model_not_found", f"There is no model '{name[:128]}'; GET /v1/models lists what you can use.", param="model"
    )
