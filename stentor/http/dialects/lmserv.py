"""LMServ's ``/chat`` over the chat flow."""

from stentor.core.principal import Principal
from stentor.flows.dialects.lmserv import LmservVoice, read_lmserv
from stentor.http.connection import Connection
from stentor.http.dialects.service import DialectService


class LmservEndpoints:
    """One endpoint; ``/health`` and ``/`` answer LMServ's clients, too."""

    def __init__(self, service: DialectService) -> None:
        self._service = service

    async def chat(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /chat"""
        ask = read_lmserv(await self._service.read_body(connection))
        await self._service.run(connection, principal, ask, LmservVoice(), "lmserv")
