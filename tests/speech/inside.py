"""A gateway and its authority in the test's own process, engines in theirs: for what no client reaches yet."""

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from stentor.accounting.usage import UsageEvent, UsageFilter
from stentor.app.authority import Authority
from stentor.app.gateway import GatewayParts
from stentor.audit.log import Actor
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.core.principal import Principal
from stentor.flows.listening.stream import SoundStream
from stentor.http.gateway import HttpSettings
from stentor.settings import load_settings
from stentor.store.database import Database
from stentor.telemetry.logs import Log
from stentor.telemetry.trace import NoTracer
from tests.kinds.models import CACHE
from tests.serving import free_ports

OPERATOR = Actor("tester", "cli")


class Inside:
    """What is under test, and who asks."""

    def __init__(self, authority: Authority, parts: GatewayParts, principal: Principal) -> None:
        self.authority = authority
        self.parts = parts
        self.principal = principal

    async def add_caller(self, name: str, balance_nano: int) -> Principal:
        """A prepaid user's key."""
        management = self.authority.management
        await management.add_user(OPERATOR, UserAsk(name, tier="payg"))
        await management.top_up(OPERATOR, name, balance_nano)
        made = await management.add_key(OPERATOR, KeyAsk(name))
        return await self.find_principal(made.key)

    async def find_principal(self, key: str) -> Principal:
        return await self.parts.authenticator.authenticate([(b"authorization", f"Bearer {key}".encode())])

    async def events(self, stream: SoundStream) -> list[UsageEvent]:
        """The stream's attempts in the books, the first one first."""
        every = (await self.authority.management.list_usage(UsageFilter())).events
        return sorted((each for each in every if each.request_id == stream.request_id), key=lambda each: each.attempt)

    def is_at_rest(self) -> bool:
        """Whether nothing runs and nothing is held."""
        running = sum(self.authority.scheduler.running_by_model().values())
        return not running and not self.authority.books.open_requests and not len(self.parts.calls)


@contextlib.asynccontextmanager
async def inside(folder: Path, config: str, **settings: Any) -> AsyncIterator[Inside]:
    """The parts of a server, without its surface."""
    (folder / "stentor.toml").write_text(config)
    given = {
        "STENTOR_DATA_DIR": str(folder / "data"),
        "STENTOR_MODEL_CACHE": str(CACHE),
        "STENTOR_DURABILITY": "process",
        "STENTOR_SLOT_FIRST_PORT": str(free_ports(4)),
        "STENTOR_SLOT_COUNT": "4",
        **{f"STENTOR_{name}": text for name, text in settings.items()},
    }
    own = {name: text for name, text in os.environ.items() if not name.startswith(("STENTOR_", "LLM"))}
    read, _ = load_settings({"config": str(folder / "stentor.toml")}, {**own, **given}, folder)
    log = Log(read.telemetry)
    database = Database.open(read.store)
    authority = await Authority.open(read, database, log)
    first = await authority.first_run(admin_key=False)
    assert first is not None
    pepper = authority.keyring.pepper()
    parts = GatewayParts(HttpSettings(), authority.books, authority.scheduler, pepper, NoTracer(), log, read.egress)
    try:
        held = Inside(authority, parts, None)  # type: ignore[arg-type]
        held.principal = await held.find_principal(first.api_key)
        yield held
    finally:
        authority.management.close()
        await authority.models.downloads.close()
        await authority.outbound.close()
        await authority.ring.close()
        await authority.scheduler.shutdown(0.0)
        await parts.close()
        database.close()
        log.close()
