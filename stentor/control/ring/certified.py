"""Which logs a receipt is to certify, and which have none yet."""

from typing import Any

from sqlalchemy import Connection

from stentor.accounting.usage import UsageEvent
from stentor.control.ring.reading import read_time
from stentor.control.ring.usage import OWN_ORIGIN, Selection, event_name, find_events
from stentor.core.errors import Refused
from stentor.history import logs
from stentor.history.conversations import to_nano
from stentor.receipts.batch import Item
from stentor.receipts.office import ReceiptOffice
from stentor.receipts.values import GenerateRequest
from stentor.store.database import Database

BATCH_MAX = 10_000
KINDS = {"client": "client", "stentor": "usage"}


def item_of_log(log: logs.ClientLog) -> Item:
    """A client's log as a receipt sees it."""
    said = log.metadata or {}
    return Item(
        "client",
        log.id,
        log.created_us,
        log.provider,
        log.model,
        log.alias or "",
        log.profile or "",
        log.conversation_id,
        log.input_tokens,
        log.output_tokens,
        log.cost_nano,
        _nano(said.get("input_cost")),
        _nano(said.get("output_cost")),
    )


def item_of_event(event: UsageEvent) -> Item:
    """A usage event as a receipt sees it."""
    tokens = (event.input_tokens, event.output_tokens)
    return Item(
        "usage", event_name(event), event.settled_us, OWN_ORIGIN, event.model, event.model, "", None, *tokens,
        event.cost_nano,
    )  # fmt: skip


def _nano(usd: Any) -> int:
    valid = isinstance(usd, int | float) and not isinstance(usd, bool) and 0 <= usd <= 1e9
    return to_nano(float(usd)) if valid else 0


class Certified:
    """Finds the logs behind receipts."""

    def __init__(self, database: Database, office: ReceiptOffice) -> None:
        self._database = database
        self._office = office

    async def choose(self, project_id: str, wanted: GenerateRequest) -> list[Item]:
        """The project's logs that ``wanted`` names, oldest first. Raises Refused where it names none or too many."""
        where = _filter(wanted)
        items = await self._items(Selection(project_id, where, wanted.metered_by), BATCH_MAX + 1)
        if wanted.since_last_receipt:
            items = await self._without_receipt(project_id, wanted.metered_by, items)
        if len(items) > BATCH_MAX:
            raise Refused(
                "invalid_request",
                f"That is more than {BATCH_MAX} logs; certify them in parts, by start and end date.",
            )
        return items[::-1]

    async def list_uncertified(self, project_id: str, metered_by: str) -> list[Item]:
        """The project's newest logs without a receipt: ten thousand of a client's; of those that were metered here,
        as many as there are among the newest ten thousand.
        """
        where = logs.LogFilter(uncertified=True)
        items = await self._items(Selection(project_id, where, metered_by), BATCH_MAX)
        return await self._without_receipt(project_id, metered_by, items)

    async def _without_receipt(self, project_id: str, metered_by: str, items: list[Item]) -> list[Item]:
        done = await self._office.certified(project_id, KINDS[metered_by], [item.id for item in items])
        return [item for item in items if item.id not in done]

    async def _items(self, selection: Selection, most: int) -> list[Item]:
        def work(connection: Connection) -> list[Item]:
            if selection.metered_by == "stentor":
                return [item_of_event(event) for event in find_events(connection, selection, most)]
            return [item_of_log(log) for log in logs.list_logs(connection, selection.project_id, selection.where, most)]

        return await self._database.study(work)


def _filter(wanted: GenerateRequest) -> logs.LogFilter:
    by_dates = wanted.start_date is not None or wanted.end_date is not None
    ways = [wanted.conversation_id is not None, by_dates, wanted.log_ids is not None, wanted.since_last_receipt]
    if not any(ways):
        raise Refused(
            "invalid_request",
            "Must specify one of: conversation_id, start_date and end_date, log_ids, or since_last_receipt=true",
        )
    if sum(ways) > 1:
        raise Refused("invalid_request", "Specify only one of conversation_id, dates, log_ids, since_last_receipt.")
    return logs.LogFilter(
        since_us=read_time(wanted.start_date, ("body", "start_date")),
        until_us=read_time(wanted.end_date, ("body", "end_date"), end=True),
        conversation_id=wanted.conversation_id,
        ids=None if wanted.log_ids is None else tuple(wanted.log_ids),
        uncertified=True if wanted.since_last_receipt else None,
    )
