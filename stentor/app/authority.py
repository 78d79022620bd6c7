"""The node authority put together: store, keyring, books, scheduler, metrics."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from stentor.app.console import ConsoleParts, add_console
from stentor.app.ring import Ring, RingParts
from stentor.control.books import LocalBooks
from stentor.control.credential_operations import CredentialOperations
from stentor.control.credentials import Credentials
from stentor.control.management import Management
from stentor.control.models.book import ModelBook, open_registered
from stentor.control.models.downloads import DemandedModels, Downloads
from stentor.control.models.operations import ModelOperations
from stentor.control.models.remote import RemoteModels, ensure_prices
from stentor.control.money.summing import UsageSummer
from stentor.control.nodes.neighbourhood import Neighbourhood, node_token
from stentor.control.nodes.shared import SharedBooks, start_books
from stentor.control.observed import ObservedBooks
from stentor.control.operations import Operations
from stentor.control.people.first_run import ensure_first_run, ensure_fixed_key
from stentor.control.ring.keys import ReceiptKeys
from stentor.control.wanted import FirstRun
from stentor.core.clock import Clock, SystemClock
from stentor.core.ids import ModelId
from stentor.egress.outbound import Outbound
from stentor.egress.upstreams import look_at_upstream
from stentor.people.key_text import digest_key
from stentor.runtime.folders import ModelFolders
from stentor.runtime.neighbours import PREFIX as NODE_PREFIX
from stentor.runtime.remotes import Address, Provider
from stentor.runtime.scheduler import LocalScheduler
from stentor.runtime.sources import Sources
from stentor.settings import Settings
from stentor.store.database import Database
from stentor.store.leader import Leader
from stentor.telemetry.logs import Log
from stentor.telemetry.metrics import Metrics, Samples
from stentor.vault.keyring import Keyring
from stentor.version import VERSION


class Models(NamedTuple):
    """What there is to serve: the catalogue's definitions, downloads, and where weights come from."""

    book: ModelBook
    downloads: Downloads
    sources: Sources


class Authority:
    """Everything of which there is exactly one per machine. Make it with :meth:`open`, on the main thread's loop."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        keyring: Keyring,
        scheduler: LocalScheduler,
        books: LocalBooks,
        models: "Models",
        log: Log,
    ) -> None:
        clock: Clock = SystemClock()
        self._log = log
        self.settings = settings
        self.database = database
        self.keyring = keyring
        self.scheduler = scheduler
        self.metrics = Metrics(VERSION)
        self.books = ObservedBooks(books, self.metrics, log)
        self.management = Management(database, books, keyring, clock)
        self.operations = Operations(self.management, scheduler)
        self.leader = Leader(database, "jobs")
        self.outbound = Outbound(settings.egress)
        console = ConsoleParts(
            settings,
            database,
            self.leader,
            books,
            keyring,
            clock,
            self.management,
            scheduler,
            models.book,
            models.sources,
            self.outbound,
            log,
        )
        self.sessions, self.jobs = add_console(self.operations, console)
        self.models = models
        self.ring: Ring
        self.credentials = Credentials(database, keyring, settings.vault, clock, self._check_address, settings.hub)
        self.remote = RemoteModels(database, books, self.credentials.find_provider, self._check_address, clock)
        folders = ModelFolders([*settings.model_dirs, settings.model_cache])
        what = ModelOperations(self.management, models.book, models.downloads, models.sources, folders, self.remote)
        self.operations.add(what.table())
        self.operations.add(CredentialOperations(self.credentials, self._look_at).table())
        scheduler.remotes.connect(self._find_provider, self._look_at)
        self.neighbourhood = self._meet_neighbours(books)
        models.sources.hub.find_token = self.credentials.find_hf_token
        self.summer = UsageSummer(self.leader, clock, shared=settings.store.is_postgres)
        self._watch_gauges()

    @classmethod
    async def open(cls, settings: Settings, database: Database, log: Log) -> "Authority":
        """Open the vault and the books of ``database``. Raises StentorError."""
        clock: Clock = SystemClock()
        keyring = await database.write(lambda connection: Keyring.open(connection, settings.vault, clock.now_us()))
        sources = Sources(settings.model_cache, settings.environ, hub=settings.hub)
        registered, problems = await open_registered(database, settings.runtime.models)
        for problem in problems:
            log.event("model_left_out", level="error", message=problem)
        own = {spec.id for spec in settings.runtime.models}
        models = (*settings.runtime.models, *(spec for spec in registered.values() if spec.id not in own))
        runtime = msgspec.structs.replace(settings.runtime, models=models)
        downloads = Downloads(sources, settings.data_dir / "run" / "downloads.json", clock, log)
        scheduler = LocalScheduler(runtime, DemandedModels(sources, downloads), settings.environ, clock, log)
        await ensure_prices(database, settings.runtime.models, clock)
        books = await start_books(database, scheduler, settings.accounting, clock, log)
        config_dir = settings.data_dir / "config"
        book = ModelBook(database, scheduler, settings.runtime.models, registered, config_dir, clock)
        authority = cls(settings, database, keyring, scheduler, books, Models(book, downloads, sources), log)
        await authority.credentials.load()
        parts = RingParts(books, scheduler, authority.outbound, clock, log, authority.leader)
        authority.ring = await Ring.open(settings, database, keyring, parts)
        authority.books.on_settled = authority.ring.sequencer.wake
        authority.ring.watch(authority.metrics)
        authority.operations.checks.append(authority.ring.examine)
        if isinstance(books, SharedBooks):
            authority.follow_others(books)
        authority.operations.add(ReceiptKeys(authority.ring.office, keyring, authority.management).table())
        return authority

    def _meet_neighbours(self, books: LocalBooks) -> Neighbourhood:
        pepper = self.keyring.pepper()
        if isinstance(books, SharedBooks):
            books.admit_nodes(digest_key(pepper, node_token(pepper, self.database.node_id)))
        url = self.settings.values["NODE_URL"]
        return Neighbourhood(self.database, pepper, self.scheduler.neighbours, url, self._log)

    def follow_others(self, books: SharedBooks) -> None:
        """Have what other nodes change take effect here, beyond the books themselves."""
        follower = books.follower
        assert follower is not None

        async def load_credentials(_name: str) -> None:
            await self.credentials.load()

        follower.also("provider", load_credentials)
        follower.also("model", self.models.book.follow)
        self.sessions.follow(follower)

    def _find_provider(self, name: str) -> Provider | None:
        if name.startswith(NODE_PREFIX):
            return self.scheduler.neighbours.find_provider(name)
        return self.credentials.find_provider(name)

    def _check_address(self, url: str) -> None:
        self.outbound.check(url)

    async def _look_at(self, address: Address) -> str:
        return await look_at_upstream(
            self.outbound, address.kind, address.base_url, address.credential, trusted=address.trusted
        )

    async def first_run(self, *, admin_key: bool) -> FirstRun | None:
        """The admin and a first key, if there is no user yet; returns what was made and is shown once."""
        return await ensure_first_run(self.database, self.keyring, SystemClock(), admin_key=admin_key)

    async def ensure_fixed_key(self) -> None:
        """Let exactly the fixed key of the settings work. Raises StentorError for a bad one."""
        await ensure_fixed_key(self.database, self.keyring, SystemClock(), self.settings.api_key)

    def _watch_gauges(self) -> None:
        watch = self.metrics.watch
        watch("stentor_open_requests", lambda: self.books.open_requests)
        watch("stentor_store_problem", lambda: float(self.database.problem() is not None))
        watch("stentor_store_writer_queue", lambda: float(self.database.queued_writes()))
        watch("stentor_log_events_dropped_total", lambda: self._log.dropped_events)
        watch("stentor_log_fields_dropped_total", lambda: self._log.dropped_fields)
        watch("stentor_queue_depth", lambda: _by_model(self.scheduler.waiting_by_model()))
        watch("stentor_running_requests", lambda: _by_model(self.scheduler.running_by_model()))
        watch("stentor_engines_restarted_total", lambda: _by_model(self.scheduler.restarts_by_model()))
        watch("stentor_memory_planned_bytes", lambda: _by_model(self.scheduler.planned_by_model()))
        watch("stentor_room_waiting", self.scheduler.count_claims)
        watch("stentor_engines_unloaded_total", self._count_departures)
        watch("stentor_instances", self._count_instances)

    def _count_departures(self) -> Samples:
        return [((str(model), cause), float(count)) for (model, cause), count in self.scheduler.departures().items()]

    def _count_instances(self) -> Samples:
        counts = Counter((str(model), state) for model, state in self.scheduler.instance_states())
        return [(labels, float(count)) for labels, count in counts.items()]

    async def render_metrics(self) -> bytes:
        """The exposition text of the whole server."""
        await self.ring.measure()
        return self.metrics.render()


def _by_model(counts: Mapping[ModelId, int]) -> Samples:
    return [((str(model),), float(count)) for model, count in counts.items()]
