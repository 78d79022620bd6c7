"""The registry: each provider's document from memory, the store, the source, or the bundled snapshot, in this order.

A copy that is older than its time is asked for anew, by one caller for all; while the source is down the old copy goes
on serving, with its age. Every content that was ever served has a version of its own, and keeps it.
"""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection

from stentor.core.clock import Clock
from stentor.core.errors import Refused, StentorError, StoreUnavailable
from stentor.registry import table
from stentor.registry.settings import RegistrySettings
from stentor.registry.snapshot import PROVIDERS, SNAPSHOT_AT, snapshot_models
from stentor.registry.values import ProviderDocument, ProviderInfo, ProviderVersion, RegistryResponse
from stentor.telemetry.logs import Log

T = TypeVar("T")
Models = dict[str, dict[str, Any]]
OWN = "stentor"
WHOLE = "*"
RETRY_S = 30.0
OWN_S = 2.0  # how long the list of our own models is kept
PER_MILLION = 1_000_000
COPY = "stentor:registry:1:"
COPY_MAX_BYTES = 16 * 1024 * 1024
_VERSION = re.compile(r"[1-9][0-9]{0,8}", re.ASCII)


class Store(Protocol):
    """The database, as far as the registry needs it."""

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run on a snapshot."""
        ...

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run in a transaction."""
        ...


Fetch = Callable[[str], Awaitable[bytes]]
"""Get a document; raises StentorError where it can't be had."""
ListOwn = Callable[[], Awaitable[Models]]


class Copy(Protocol):
    """What another server has fetched."""

    @property
    def body(self) -> bytes:
        """As it was given to ``keep``."""
        ...

    @property
    def left_s(self) -> float:
        """For how long it is still kept."""
        ...


class Copies(Protocol):
    """What servers with the same source keep for each other. Never fails, never takes long."""

    async def find(self, name: str, most_bytes: int) -> Copy | None:
        """What is kept under ``name``, if it isn't longer than that."""
        ...

    async def keep(self, name: str, body: bytes, keep_s: float) -> None:
        """Keep it for so long."""
        ...


class _Fetched(msgspec.Struct):
    """A source's document on its way between servers; ``ttl_s`` is how long it is fresh from its fetching on."""

    models: Models
    version: int
    ttl_s: float


class _Held(NamedTuple):
    document: ProviderDocument
    checked_s: float  # when it was last known to be current
    asked_s: float  # when the source was last asked


class Answer(NamedTuple):
    """A document, its entity tag, and its age in seconds if it should be newer than it is."""

    document: Any
    etag: str
    age_s: int | None = None


class Registry:
    """``fetch`` None: nothing is ever asked for. ``list_own`` lists this server's models with their prices. Set
    ``copies`` where servers share what they fetch.
    """

    def __init__(
        self, store: Store, settings: RegistrySettings, fetch: Fetch | None, list_own: ListOwn, clock: Clock, log: Log
    ) -> None:
        self.copies: Copies | None = None
        self._store = store
        self._base_url = settings.base_url.rstrip("/") if fetch is not None else ""
        self._ttl_s = settings.ttl_s
        self._fetch = fetch
        self._list_own = list_own
        self._clock = clock
        self._log = log
        self._held: dict[str, _Held] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    @property
    def providers(self) -> tuple[str, ...]:
        """All that have a document here."""
        return (*PROVIDERS, OWN)

    async def get_provider(self, provider: str) -> Answer:
        """A provider's current document. Raises Refused for one that isn't known."""
        if provider not in self.providers:
            raise Refused(
                "not_found", f"The registry has no provider '{provider[:64]}', only {', '.join(self.providers)}."
            )
        held = await self._current(provider)
        tag = f'"{provider}-{held.document.version}"'
        return Answer(held.document, tag, self._age(provider, held))

    async def get_version(self, provider: str, version: str) -> Answer:
        """One version of a provider's document. Raises Refused where there is none."""
        await self.get_provider(provider)
        number = int(version) if _VERSION.fullmatch(version) else 0
        body = await self._store.read(lambda connection: table.find_version(connection, provider, number))
        if body is None and number and self._base_url and provider != OWN:
            body = await self._fetch_version(provider, number)
        if body is None:
            raise Refused("not_found", f"The registry has no version '{version[:20]}' of '{provider}'.")
        document = msgspec.json.decode(body, type=ProviderDocument)
        listed = ProviderVersion(provider, document.version, document.updated_at, list(document.models.values()))
        return Answer(listed, f'"{provider}-{number}"')

    async def get_whole(self, version: str, providers: Sequence[str], capabilities: Sequence[str]) -> Answer:
        """All providers' models, at a version or as they are now, filtered. Raises Refused."""
        answer = await self._whole_version(version) if version else await self._whole_now()
        whole: RegistryResponse = answer.document
        if not providers and not capabilities:
            return answer
        models = {
            name: model
            for name, model in whole.models.items()
            if (not providers or model.get("provider") in providers)
            and all(model.get(f"supports_{capability}") for capability in capabilities)
        }
        kept = {name: info for name, info in whole.providers.items() if not providers or name in providers}
        filtered = msgspec.structs.replace(whole, models=models, providers=kept)
        which = hashlib.sha256(repr((sorted(providers), sorted(capabilities))).encode()).hexdigest()[:12]
        return Answer(filtered, f'"{whole.version}-{which}"', answer.age_s)

    async def _whole_now(self) -> Answer:
        answers = [await self.get_provider(provider) for provider in self.providers]
        models = {name: model for answer in answers for name, model in answer.document.models.items()}
        document = await self._remember(WHOLE, models, 0)
        ages = [answer.age_s for answer in answers if answer.age_s is not None]
        return Answer(self._whole(document), f'"{document.version}"', max(ages, default=None))

    async def _whole_version(self, version: str) -> Answer:
        number = int(version) if _VERSION.fullmatch(version) else 0
        body = await self._store.read(lambda connection: table.find_version(connection, WHOLE, number))
        if body is None:
            raise Refused("not_found", f"The registry has no version '{version[:20]}'.")
        return Answer(self._whole(msgspec.json.decode(body, type=ProviderDocument)), f'"{number}"')

    def _whole(self, document: ProviderDocument) -> RegistryResponse:
        infos = {
            name: ProviderInfo(name, f"{self._base_url}/{name}" if self._base_url and name != OWN else "", None)
            for name in self.providers
        }
        return RegistryResponse(str(document.version), document.updated_at, document.models, infos)

    async def find_cost(self, provider: str, model: str, tokens: tuple[int, int, int]) -> int:
        """What input, cached input and output cost in nano-USD at the registry's price, rounded up; 0 if unknown."""
        if provider not in self.providers:
            return 0
        document: ProviderDocument = (await self.get_provider(provider)).document
        entry = document.models.get(f"{provider}:{model}")
        if entry is None:
            return 0
        given, cached, output = tokens
        cost = (
            (given - cached) * _nano(entry.get("dollars_per_million_tokens_input"))
            + cached * _nano(entry.get("dollars_per_million_tokens_cached_input"))
            + output * _nano(entry.get("dollars_per_million_tokens_output"))
        )
        return -(-cost // PER_MILLION)

    # -- copies ------------------------------------------------------------------------------------------------------

    def _age(self, provider: str, held: _Held) -> int | None:
        if not self._base_url or provider == OWN:
            return None
        age_s = self._clock.monotonic_s() - held.checked_s
        return int(age_s) if age_s > self._ttl_s else None

    def _is_fresh(self, provider: str, held: _Held | None) -> bool:
        if held is None:
            return False
        now_s = self._clock.monotonic_s()
        if provider == OWN:
            return now_s - held.checked_s < OWN_S
        return not self._base_url or now_s - held.checked_s <= self._ttl_s or now_s - held.asked_s < RETRY_S

    async def _current(self, provider: str) -> _Held:
        held = self._held.get(provider)
        if held is not None and self._is_fresh(provider, held):
            return held
        async with self._locks.setdefault(provider, asyncio.Lock()):
            held = self._held.get(provider)
            if held is not None and self._is_fresh(provider, held):
                return held
            held = await (self._renew_own() if provider == OWN else self._renew(provider, held))
            self._held[provider] = held
            return held

    async def _renew_own(self) -> _Held:
        document = await self._remember(OWN, await self._list_own(), 0)
        return _Held(document, self._clock.monotonic_s(), 0.0)

    async def _renew(self, provider: str, held: _Held | None) -> _Held:
        now_s = self._clock.monotonic_s()
        if self._base_url:
            try:
                models, version, age_s = await self._find_or_fetch(provider)
                asked_s = now_s - age_s
                return _Held(await self._remember(provider, models, version), asked_s, asked_s)
            except StoreUnavailable:
                raise
            except StentorError as error:
                self._log.event("registry_source_failed", level="warning", name=provider, message=str(error))
        if held is not None:
            return held._replace(asked_s=now_s)
        kept = await self._store.read(lambda connection: table.find_latest(connection, provider))
        if kept is not None:
            # Of unknown age, so it is told as one that should be newer.
            document = msgspec.json.decode(kept[1], type=ProviderDocument)
            return _Held(document, now_s - self._ttl_s - 1, now_s)
        document = await self._remember(provider, snapshot_models(provider), 0, SNAPSHOT_AT)
        return _Held(document, now_s - self._ttl_s - 1 if self._base_url else now_s, now_s)

    async def _find_or_fetch(self, provider: str) -> tuple[Models, int, float]:
        """Models, version and age of the source's document: another server's copy, or fetched. Raises StentorError."""
        url = f"{self._base_url}/{provider}/models.json"
        copies = self.copies if self._ttl_s > 0 else None
        name = f"{COPY}{hashlib.sha256(url.encode()).hexdigest()[:32]}"
        if copies is not None:
            found = self._read_copy(await copies.find(name, COPY_MAX_BYTES), provider)
            if found is not None:
                return found
        models, version = await self._fetch_document(url, provider)
        if copies is not None:
            await copies.keep(name, msgspec.json.encode(_Fetched(models, version, self._ttl_s)), self._ttl_s)
        return models, version, 0.0

    def _read_copy(self, copy: Copy | None, provider: str) -> tuple[Models, int, float] | None:
        """A copy, if it is one and fresh by this server's own time."""
        if copy is None:
            return None
        try:
            fetched = msgspec.json.decode(copy.body, type=_Fetched)
            models = _read_models(fetched.models, provider, "The shared cache")
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, StentorError) as error:
            self._log.event("registry_copy_unreadable", level="warning", name=provider, message=str(error))
            return None
        age_s = fetched.ttl_s - copy.left_s
        return (models, fetched.version, max(0.0, age_s)) if age_s <= self._ttl_s else None

    async def _fetch_document(self, url: str, provider: str) -> tuple[Models, int]:
        assert self._fetch is not None
        try:
            document = msgspec.json.decode(await self._fetch(url))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise StentorError(f"{url} isn't JSON: {error}") from None
        if not isinstance(document, dict):
            raise StentorError(f"{url} isn't a registry document")
        version = document.get("version")
        return _read_models(document.get("models"), provider, url), version if isinstance(version, int) else 0

    async def _fetch_version(self, provider: str, number: int) -> str | None:
        url = f"{self._base_url}/{provider}/v/{number}/models.json"
        try:
            models, _ = await self._fetch_document(url, provider)
        except StentorError:
            return None
        now_us = self._clock.now_us()
        document = ProviderDocument(provider, number, _time_text(now_us), models)
        body = msgspec.json.encode(document).decode()

        def work(connection: Connection) -> None:
            if table.find_version(connection, provider, number) is None:
                table.add_document(connection, provider, number, body, _digest(models), now_us)

        await self._store.write(work)
        return body

    async def _remember(self, provider: str, models: Models, wanted: int, at: str = "") -> ProviderDocument:
        """The document with these models: the newest one if it has them, else a new version."""
        digest = _digest(models)
        held = self._held.get(provider)
        if held is not None and _digest(held.document.models) == digest:
            return held.document
        now_us = self._clock.now_us()

        def work(connection: Connection) -> ProviderDocument:
            latest = table.find_latest(connection, provider)
            if latest is not None and latest[2] == digest:
                return msgspec.json.decode(latest[1], type=ProviderDocument)
            version = table.next_version(connection, provider, wanted)
            document = ProviderDocument(provider, version, at or _time_text(now_us), models)
            table.add_document(connection, provider, version, msgspec.json.encode(document).decode(), digest, now_us)
            return document

        document = await self._store.write(work)
        if provider == WHOLE:
            self._held[provider] = _Held(document, 0.0, 0.0)
        return document


def _read_models(found: Any, provider: str, url: str) -> Models:
    """A document's models, in either of the forms there are, by ``provider:model``."""
    entries = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(entries, list):
        raise StentorError(f"{url} has no models")
    models: Models = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("model_name"), str):
            continue
        name = entry["model_name"]
        models[f"{provider}:{name}"] = {
            **entry,
            "provider": provider,
            "display_name": entry.get("display_name") or name,
        }
    return models


def _digest(models: Models) -> str:
    return hashlib.sha256(msgspec.json.encode(models, order="deterministic")).hexdigest()


def _nano(dollars: Any) -> int:
    valid = isinstance(dollars, int | float) and not isinstance(dollars, bool) and 0 <= dollars < 1e6
    return round(dollars * 1_000_000_000) if valid else 0


def _time_text(time_us: int) -> str:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
