"""Management while no server runs: the same parts and the same routes, opened under the same lock, in this process."""

import msgspec

from stentor.app.authority import Authority
from stentor.app.gateway import GatewayParts
from stentor.app.managed import managed_handlers
from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.http.gateway import HttpSettings
from stentor.http.loopback import call_app
from stentor.settings import Settings
from stentor.store.database import Database
from stentor.telemetry.logs import Log
from stentor.telemetry.trace import NoTracer


class Offline:
    """Answers management requests until it is closed; no engine is started by itself."""

    def __init__(self, database: Database, authority: Authority, gateway: GatewayParts, log: Log) -> None:
        self._database = database
        self._authority = authority
        self._gateway = gateway
        self._log = log
        operators = managed_handlers(authority)
        self._app = gateway.app(
            operators, authority.render_metrics, self.answer, authority.sessions, operator_socket=True
        )

    async def answer(self, call: OperatorCall) -> OperatorAnswer:
        """Answer one request as the running server would."""
        return await call_app(self._app, call)

    def operation_names(self) -> set[str]:
        """What the authority can be asked to do."""
        return self._authority.operations.names() | self._authority.ring.operations.names()

    async def close(self) -> None:
        """Close everything; the data folder is free again."""
        self._authority.management.close()
        await self._authority.models.downloads.close()
        await self._authority.outbound.close()
        await self._authority.ring.close()
        await self._authority.scheduler.shutdown(0.0)
        await self._gateway.close()
        self._database.close()
        self._log.close()


async def open_offline(settings: Settings) -> Offline:
    """Open store, vault and books of ``settings``. Raises StentorError."""
    log = Log(msgspec.structs.replace(settings.telemetry, log_level="WARNING"))
    database = Database.open(settings.store)
    try:
        authority = await Authority.open(settings, database, log)
    except BaseException:
        database.close()
        log.close()
        raise
    gateway = GatewayParts(
        HttpSettings(),
        authority.books,
        authority.scheduler,
        authority.keyring.pepper(),
        NoTracer(),
        log,
    )
    return Offline(database, authority, gateway, log)
