"""Models of other servers as they come in: what an API caller may say of one, and its price before anything else."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from sqlalchemy import Connection

from stentor.accounting.prices import PriceEntry, ensure_price
from stentor.audit.log import SYSTEM, Actor, record_change
from stentor.control.books import LocalBooks
from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.runtime.remote_spec import RemotePrice, RemoteSpec, find_remote_problem
from stentor.runtime.remotes import FindProvider
from stentor.runtime.spec import ModelSpec
from stentor.store.database import Database

CheckAddress = Callable[[str], None]


def write_prices(connection: Connection, specs: Iterable[ModelSpec], actor: Actor, now_us: int) -> list[PriceEntry]:
    """Give every remote model of ``specs`` the price of its definition; returns those that are new."""
    return [
        entry
        for spec in specs
        if spec.remote is not None
        if (entry := _write_price(connection, spec.id, spec.remote.price, actor, now_us)) is not None
    ]


def _write_price(
    connection: Connection, model: str, price: RemotePrice, actor: Actor, now_us: int
) -> PriceEntry | None:
    entry = ensure_price(connection, model, price.amounts(), now_us)
    if entry is not None:
        after = msgspec.to_builtins(entry.price)
        record_change(connection, now_us, actor, "price_set", ("model", model), after=after)
    return entry


async def ensure_prices(database: Database, specs: Iterable[ModelSpec], clock: Clock) -> None:
    """Before the books open: what the settings file says remote models cost."""
    wanted = [spec for spec in specs if spec.remote is not None]
    if wanted:
        await database.write(lambda connection: write_prices(connection, wanted, SYSTEM, clock.now_us()))


class RemoteModels:
    """What is asked of a remote model before it may be registered."""

    def __init__(
        self, database: Database, books: LocalBooks, find_provider: FindProvider, check: CheckAddress, clock: Clock
    ) -> None:
        self._database = database
        self._books = books
        self._find_provider = find_provider
        self._check = check
        self._clock = clock

    def read(self, fields: dict[str, Any]) -> RemoteSpec | None:
        """The remote part of a definition as an API caller says it, put in order in ``fields``; None without one.

        Raises Refused: an API caller's address is guarded, and a provider's credential goes to its own address alone.
        """
        said = fields.get("remote")
        if said is None:
            return None
        if not isinstance(said, dict):
            raise Refused("invalid_request", "'remote' must be an object.", param="remote")
        said = {name: value for name, value in said.items() if value is not None and name != "trusted"}
        provider = self._find_provider(str(said.get("provider", "")))
        if said.get("provider") and provider is None:
            raise Refused("invalid_request", f"There is no provider '{str(said['provider'])[:64]}'.", param="remote")
        if provider is not None:
            if said.get("base_url"):
                text = "Name a provider or a base_url: a provider's credential is sent to its own address alone."
                raise Refused("invalid_request", text, param="remote")
            said.setdefault("kind", provider.kind)
        try:
            remote = msgspec.convert(said, RemoteSpec)
        except msgspec.ValidationError as error:
            raise Refused("invalid_request", f"'remote' can't be used: {error}.", param="remote") from None
        problem = find_remote_problem(remote)
        if problem is not None:
            raise Refused("invalid_request", f"'remote' can't be used: {problem}", param="remote")
        if remote.base_url:
            self._check(remote.base_url)
        fields["remote"], fields["engine"] = said, "remote"
        return remote

    async def set_price(self, actor: Actor, model: str, price: RemotePrice) -> None:
        """Make ``price`` the model's from now on: before the model is served, or never."""

        def work(connection: Connection) -> PriceEntry | None:
            return _write_price(connection, model, price, actor, self._clock.now_us())

        if await self._database.write(work) is not None:
            await self._books.load_prices()

    async def set_file_prices(self, specs: Iterable[ModelSpec]) -> None:
        """What a settings file that was read again says remote models cost."""
        wanted = [spec for spec in specs if spec.remote is not None]
        if not wanted:
            return
        now_us = self._clock.now_us()
        if await self._database.write(lambda connection: write_prices(connection, wanted, SYSTEM, now_us)):
            await self._books.load_prices()
