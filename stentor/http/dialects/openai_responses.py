"""``/v1/responses``: the OpenAI Responses API over the chat flow."""

from stentor.core.principal import Principal
from stentor.flows.dialects.responses_answer import ResponsesVoice
from stentor.flows.dialects.responses_request import read_responses
from stentor.http.connection import Connection
from stentor.http.dialects.service import DialectService, occasion_of


class ResponsesEndpoints:
    """One endpoint: nothing is kept that could be fetched, listed or deleted later."""

    def __init__(self, service: DialectService) -> None:
        self._service = service

    async def create(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/responses"""
        asked = read_responses(await self._service.read_body(connection))
        voice = ResponsesVoice(occasion_of(connection), asked.echo)
        await self._service.run(connection, principal, asked.ask, voice, "openai")
