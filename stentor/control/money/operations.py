"""The operations on prices, as JSON rows."""

import msgspec

from stentor.accounting.prices import PriceEntry
from stentor.control.money.plans import Plans, PriceAsk
from stentor.control.reading import Operation, Row, actor_of, limit_of, page_of, read_body, text_of
from stentor.core.operator import Task


class MoneyOperations:
    """What things cost."""

    def __init__(self, plans: Plans) -> None:
        self._plans = plans

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "list_prices": self.list_prices,
            "list_price_history": self.list_price_history,
            "set_price": self.set_price,
        }

    async def list_prices(self, task: Task) -> Row:
        """What each model costs now."""
        limit = limit_of(task.query)
        entries = await self._plans.list_current_prices(after=text_of(task.query, "after") or "", limit=limit)
        return page_of([_row(entry) for entry in entries], entries[-1].model if len(entries) == limit else None)

    async def list_price_history(self, task: Task) -> Row:
        """All prices of a model."""
        return page_of([_row(entry) for entry in await self._plans.list_price_history(task.params["model"])], None)

    async def set_price(self, task: Task) -> Row:
        """A new price."""
        return _row(await self._plans.set_price(actor_of(task), read_body(task.body, PriceAsk)))


def _row(entry: PriceEntry) -> Row:
    return {"model": entry.model, "effective_us": entry.effective_us, **msgspec.to_builtins(entry.price)}
