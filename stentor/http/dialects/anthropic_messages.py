"""``/v1/messages``: the Anthropic Messages API over the chat flow."""

from stentor.core.principal import Principal
from stentor.flows.dialects.messages_answer import MessagesVoice
from stentor.flows.dialects.messages_request import read_count, read_messages
from stentor.http.connection import Connection
from stentor.http.dialects.service import DialectService, occasion_of


class MessagesEndpoints:
    """Messages, and how long they would be."""

    def __init__(self, service: DialectService) -> None:
        self._service = service

    async def create(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/messages"""
        _name_request(connection)
        ask = read_messages(await self._service.read_body(connection))
        await self._service.run(connection, principal, ask, MessagesVoice(occasion_of(connection)), "anthropic")

    async def count_tokens(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/messages/count_tokens"""
        _name_request(connection)
        ask = read_count(await self._service.read_body(connection))
        await self._service.run_inputs(connection, principal, ask, connection)


def _name_request(connection: Connection) -> None:
    """Anthropic's clients look for the request's id under a name of their own."""
    connection.exchange.more_headers.append((b"request-id", connection.request_id.encode()))
