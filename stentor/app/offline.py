"""The books without a server: the admin API's application, opened for a few calls of the command line."""

from stentor.app.authority import Authority
from stentor.app.gateway import GatewayParts
from stentor.core.operator import OperatorAnswer, OperatorCall
from stentor.http.admin.handlers import AdminEndpoints
from stentor.http.gateway import HttpSettings
from stentor.http.loopback import call_app
from stentor.settings import Settings
from stentor.store.database import Database
from stentor.telemetry.logs import Log
from stentor.telemetry.settings import TelemetrySettings
from stentor.telemetry.trace import NoTracer


class Offline:
    """An opened installation that serves nobody else; engines are not started. Close it to let a server in."""

    def __init__(self, authority: Authority, database: Database, log: Log) -> None:
        self._database = database
        self._log = log
        self._authority = authority
        self._parts = GatewayParts(
            HttpSettings(), authority.books, authority.scheduler, authority.keyring.pepper(), NoTracer(), log
        )
        operators = AdminEndpoints(authority.operations).handlers()
        self._app = self._parts.app(operators, authority.render_metrics, operator_socket=True)

    async def answer(self, call: OperatorCall) -> OperatorAnswer:
        """Answer one request of the admin API."""
        return await call_app(self._app, call)

    async def close(self) -> None:
        """Close everything, last the lock on the data folder."""
        self._authority.management.close()
        await self._parts.close()
        self._database.close()
        self._log.close()


async def open_offline(settings: Settings) -> Offline:
    """Open the books of ``settings``. Raises StentorError where another process holds them or they can't be opened."""
    log = Log(TelemetrySettings(log_level="error", log_format=settings.telemetry.log_format))
    database: Database | None = None
    try:
        database = Database.open(settings.store)
        return Offline(await Authority.open(settings, database, log), database, log)
    except BaseException:
        if database is not None:
            database.close()
        log.close()
        raise
