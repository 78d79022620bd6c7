"""The price list: which price a model has at a moment. Versions are never changed, only followed by later ones."""

import re
from bisect import bisect_right

import msgspec
from sqlalchemy import Connection

from stentor.accounting import table
from stentor.accounting.price import Price
from stentor.core.errors import Refused
from stentor.core.ids import ModelId

EVERY_LOCAL_MODEL = "*"
HIGHEST_NANO = 10**15
_MODEL = re.compile(r"[!-~]{1,255}", re.ASCII)
_FOREVER_US = 2**63 - 1


class PriceList:
    """All prices in memory, by model and time. Replaced as a whole when one is added."""

    def __init__(self, rows: list[tuple[str, int, Price]]) -> None:
        by_model: dict[str, list[tuple[int, Price]]] = {}
        for model, effective_us, price in sorted(rows, key=lambda row: (row[0], row[1])):
            by_model.setdefault(model, []).append((effective_us, price))
        self._by_model = by_model
        self._now: dict[str, tuple[Price, int, int]] = {}  # and from when until when it holds

    def find_own_price(self, model: str, now_us: int) -> Price | None:
        """The price that was set for exactly this model, as a remote one must have it; None if none is known."""
        return self._find(model, now_us)

    def get_price(self, model: ModelId, now_us: int) -> Price:
        """The price of a local model at ``now_us``. Raises Refused if none is known: unknown is never free."""
        held = self._now.get(model)
        if held is not None and held[1] <= now_us < held[2]:
            return held[0]
        found = self._find(model, now_us) or self._find(EVERY_LOCAL_MODEL, now_us)
        if found is None:
            raise Refused("model_unavailable", f"The model '{model}' has no price yet, so it can't be used.")
        spans = [self._find_span(name, now_us) for name in (model, EVERY_LOCAL_MODEL)]
        self._now[model] = (found, max(start for start, _ in spans), min(end for _, end in spans))
        return found

    def _find(self, model: str, now_us: int) -> Price | None:
        versions = self._by_model.get(model, [])
        index = bisect_right(versions, now_us, key=lambda version: version[0])
        return versions[index - 1][1] if index else None

    def _find_span(self, model: str, now_us: int) -> tuple[int, int]:
        """From when until before when nothing changes in what is known of this name."""
        versions = self._by_model.get(model, [])
        index = bisect_right(versions, now_us, key=lambda version: version[0])
        start_us = versions[index - 1][0] if index else 0
        return start_us, versions[index][0] if index < len(versions) else _FOREVER_US


class PriceEntry(msgspec.Struct, frozen=True):
    """A row of the price list as people see it."""

    model: str
    effective_us: int
    price: Price


def list_prices(connection: Connection) -> list[PriceEntry]:
    """All prices by model and time."""
    return [_entry(row) for row in table.list_prices(connection)]


def load_prices(connection: Connection) -> PriceList:
    """The price list of the database."""
    return PriceList([(entry.model, entry.effective_us, entry.price) for entry in list_prices(connection)])


def add_price(connection: Connection, model: str, effective_us: int, price: Price, now_us: int) -> PriceEntry:
    """Add a version; ``price.version`` is given by the database. Raises Refused for one that lies in the past."""
    if effective_us < now_us:
        raise Refused("invalid_request", "A price can't start in the past: requests were settled at the old one.")
    amounts = msgspec.structs.asdict(price)
    del amounts["version"]
    if any(amount is not None and not 0 <= amount <= HIGHEST_NANO for amount in amounts.values()):
        raise Refused("invalid_request", f"A price lies between 0 and {HIGHEST_NANO} nano-USD per million units.")
    if not _MODEL.fullmatch(model):
        raise Refused("invalid_request", "A price is for a model's name, or '*' for every local one.", param="model")
    if effective_us >= 2**62:
        raise Refused("invalid_request", "effective_us is microseconds since 1970, below 2^62.", param="effective_us")
    if table.find_price(connection, model, effective_us) is not None:
        raise Refused("conflict", f"'{model}' has a price from that moment on already; versions are never changed.")
    version = table.add_price(
        connection, {"model": model, "effective_us": effective_us, "created_us": now_us, **amounts}
    )
    return PriceEntry(model, effective_us, msgspec.structs.replace(price, version=version))


def ensure_price(connection: Connection, model: str, amounts: dict[str, int | None], now_us: int) -> PriceEntry | None:
    """Make ``amounts`` the model's price from now on; None if they are that already."""
    own = [entry for entry in list_prices(connection) if entry.model == model and entry.effective_us <= now_us]
    wanted = Price(0, **amounts)  # type: ignore[arg-type]
    if own and msgspec.structs.replace(own[-1].price, version=0) == wanted:
        return None
    return add_price(connection, model, now_us, wanted, now_us)


def _entry(row: table.AnyRow) -> PriceEntry:
    values = dict(row._mapping)
    model, effective_us = values.pop("model"), values.pop("effective_us")
    return PriceEntry(model, effective_us, Price(**values))
