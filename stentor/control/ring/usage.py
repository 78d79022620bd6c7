"""Usage as projects see it: what their clients logged, what was metered here, or both."""

from typing import NamedTuple

from sqlalchemy import Connection

from stentor.accounting.usage import UsageEvent, UsageFilter, list_usage, list_usage_by_names, sum_project_usage
from stentor.control.ring.reading import choice_of, number_of, read_body, text_of, time_of
from stentor.control.ring.tenants import Tenants
from stentor.core.clock import DAY_US, Clock, time_text
from stentor.core.ring import RingAnswer, RingCall
from stentor.history import logs
from stentor.history.conversations import NANO, to_nano
from stentor.history.times import Period, period_start
from stentor.history.values import (
    GroupUsage,
    OriginUsage,
    PeriodUsage,
    UsageLogEntry,
    UsageLogRequest,
    UsageLogResponse,
    UsageStats,
    UsageSummary,
)
from stentor.receipts.usage import usd_text
from stentor.registry.registry import Registry
from stentor.store.database import Database

METERS = ("client", "stentor", "all")
WINDOW_US = 30 * DAY_US
OWN_ORIGIN = "stentor"
OFFSET_MOST = 10_000
NEAR = 1_000  # what reads more than so many rows waits for its turn, as reports do
COST_MOST_NANO = 10**18  # as much as a client may say itself


class Selection(NamedTuple):
    """Whose logs, which ones, and by whose count."""

    project_id: str
    where: logs.LogFilter
    metered_by: str


def entry_of_log(log: logs.ClientLog) -> UsageLogEntry:
    """A client's log on the wire."""
    return UsageLogEntry(
        log.id,
        time_text(log.created_us),
        log.provider,
        log.model,
        log.alias,
        log.profile,
        log.origin,
        log.input_tokens,
        log.output_tokens,
        log.cached_tokens,
        log.cost_nano / NANO,
        log.metadata,
        log.conversation_id,
        log.id_at_origin,
        "client",
    )


def entry_of_event(event: UsageEvent) -> UsageLogEntry:
    """A usage event on the wire, as a log of this server's own."""
    return UsageLogEntry(
        event_name(event),
        time_text(event.settled_us),
        OWN_ORIGIN,
        event.model,
        event.model,
        None,
        OWN_ORIGIN,
        event.input_tokens,
        event.output_tokens,
        event.cached_tokens,
        event.cost_nano / NANO,
        {"status": event.status, "endpoint": event.endpoint, "engine": event.engine},
        None,
        event.client_request_id,
        "stentor",
    )


def event_name(event: UsageEvent) -> str:
    """An event's id among logs: its request's, with the attempt if it isn't the first."""
    return event.request_id if event.attempt == 1 else f"{event.request_id}/{event.attempt}"


class RingUsage:
    """``log``, ``logs`` and ``stats``."""

    def __init__(self, database: Database, registry: Registry, tenants: Tenants, clock: Clock) -> None:
        self._database = database
        self._registry = registry
        self._tenants = tenants
        self._clock = clock

    async def log(self, call: RingCall) -> RingAnswer:
        """Keep a call that a client made."""
        wanted = read_body(call, UsageLogRequest)
        cost_nano = await self.cost_of(wanted)
        principal, now_us = call.principal, self._clock.now_us()

        def work(connection: Connection) -> logs.ClientLog:
            self._tenants.check_room(principal, "logs", lambda: logs.count_logs(connection, principal.project_id))
            return logs.add_log(connection, principal.project_id, principal.key_id, wanted, cost_nano, now_us)

        log = await self._database.write(work)
        return RingAnswer(UsageLogResponse(log.id, log.cost_nano / NANO, time_text(log.created_us)))

    async def cost_of(self, wanted: UsageLogRequest) -> int:
        """What the client says it cost, else the registry's price, in nano-USD."""
        if wanted.cost is not None:
            return to_nano(wanted.cost)
        cached = min(wanted.cached_input_tokens, wanted.input_tokens)
        tokens = (wanted.input_tokens, cached, wanted.output_tokens)
        return min(await self._registry.find_cost(wanted.provider, wanted.model, tokens), COST_MOST_NANO)

    async def logs(self, call: RingCall) -> RingAnswer:
        """A page of logs, newest first."""
        where = logs.LogFilter(
            time_of(call, "start_date"),
            time_of(call, "end_date", end=True),
            text_of(call, "alias"),
            text_of(call, "model"),
            text_of(call, "origin"),
        )
        selection = Selection(call.principal.project_id, where, choice_of(call, "metered_by", METERS))
        # Who asks for both kinds gets what is passed over read as well: there it ends sooner.
        most = 10**9 if selection.metered_by == "client" else OFFSET_MOST
        limit, offset = number_of(call, "limit", 50, 1, 500), number_of(call, "offset", 0, 0, most)
        return RingAnswer(await self.entries(selection, limit, offset))

    async def entries(self, selection: Selection, limit: int, offset: int) -> list[UsageLogEntry]:
        """A page of logs by whoever counted, newest first."""

        def work(connection: Connection) -> list[UsageLogEntry]:
            if selection.metered_by == "client":
                page = logs.list_logs(connection, selection.project_id, selection.where, limit, offset)
                return [entry_of_log(log) for log in page]
            # Two sorted lists in one: so much of each that the page is surely among them.
            entries = [entry_of_event(event) for event in find_events(connection, selection, offset + limit)]
            if selection.metered_by == "all":
                own = logs.list_logs(connection, selection.project_id, selection.where, offset + limit)
                entries = sorted([*entries, *map(entry_of_log, own)], key=lambda one: one.logged_at, reverse=True)
            return entries[offset : offset + limit]

        far = offset + limit > NEAR
        return await (self._database.study(work) if far else self._database.read(work))

    async def stats(self, call: RingCall) -> RingAnswer:
        """Sums, by default over the last thirty days."""
        period: Period = choice_of(call, "group_by", ("day", "week", "month"))  # type: ignore[assignment]
        metered_by = choice_of(call, "metered_by", METERS)
        until_us = time_of(call, "end_date", end=True) or self._clock.now_us() + 1
        since_us = time_of(call, "start_date")
        since_us = until_us - WINDOW_US if since_us is None else since_us
        project_id = call.principal.project_id

        def work(connection: Connection) -> list[logs.UsageGroup]:
            groups: list[logs.UsageGroup] = []
            if metered_by != "stentor":
                groups += logs.sum_logs(connection, project_id, since_us, until_us)
            if metered_by != "client":
                rows = sum_project_usage(connection, project_id, since_us, until_us)
                groups += [logs.UsageGroup(day, model, OWN_ORIGIN, model, *sums) for day, model, *sums in rows]
            return groups

        return RingAnswer(summarize(await self._database.study(work), period))


def find_events(connection: Connection, selection: Selection, most: int) -> list[UsageEvent]:
    """The project's usage events that fit, newest first."""
    where = selection.where
    if where.ids is not None:
        return list_usage_by_names(connection, selection.project_id, where.ids)
    if where.conversation_id is not None or where.origin not in (None, OWN_ORIGIN):
        return []
    if where.alias is not None and where.model is not None and where.alias != where.model:
        return []
    wanted = UsageFilter(
        project_id=selection.project_id,
        model=where.model or where.alias,
        since_us=where.since_us,
        until_us=where.until_us,
    )
    return list_usage(connection, wanted, limit=most).events


def summarize(groups: list[logs.UsageGroup], period: Period) -> UsageStats:
    """Sums of sums, each exact to the nano-USD."""
    days: dict[str, dict[str, list[int]]] = {}
    models: dict[str, list[int]] = {}
    aliases: dict[str, list[int]] = {}
    origins: dict[str, list[int]] = {}
    total = [0, 0, 0, 0]
    for group in groups:
        numbers = (group.requests, group.cost_nano, group.input_tokens, group.output_tokens)
        day = days.setdefault(period_start(group.day, period), {})
        targets = [total, models.setdefault(group.model, [0] * 4), day.setdefault(group.model, [0] * 4)]
        if group.alias:
            targets.append(aliases.setdefault(group.alias, [0] * 4))
        if group.origin:
            targets.append(origins.setdefault(group.origin, [0] * 4))
        for target in targets:
            for at, number in enumerate(numbers):
                target[at] += number
    return UsageStats(
        UsageSummary(total[0], usd_text(total[1]), total[2] + total[3], len(models), len(origins)),
        [_period(date, by_model) for date, by_model in sorted(days.items())],
        {name: _group(sums) for name, sums in sorted(models.items())},
        {name: OriginUsage(sums[0], usd_text(sums[1])) for name, sums in sorted(origins.items())},
        {name: _group(sums) for name, sums in sorted(aliases.items())},
    )


def _period(date: str, by_model: dict[str, list[int]]) -> PeriodUsage:
    top = max(by_model, key=lambda name: (by_model[name][0], name))
    sums = by_model.values()
    return PeriodUsage(date, sum(one[0] for one in sums), usd_text(sum(one[1] for one in sums)), top)


def _group(sums: list[int]) -> GroupUsage:
    return GroupUsage(sums[0], usd_text(sums[1]), sums[2], sums[3])
