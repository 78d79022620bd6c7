"""What operators are told of: limits that are being used up, costs that nobody paid, engines that fail and fail.

Nothing of it happens in a request. What a settlement absorbs is written down in its own transaction; the rest is looked
at by the clock, from what is durable, so that a crash loses nothing and repeats nothing.
"""

from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from stentor.accounting.meters import calendar_window
from stentor.accounting.settlement import EVENT_COLUMNS, Settlement
from stentor.alerts.outbox import choose_starts, find_passed, forget_alerts, raise_alerts
from stentor.alerts.values import Alert
from stentor.core.clock import Clock
from stentor.core.ids import InstanceId
from stentor.core.scheduler import CrashLoop
from stentor.store.database import Database
from stentor.store.leader import Leader

_HOUR_US = 3_600_000_000
_PLACES = {name: place for place, name in enumerate(EVENT_COLUMNS)}


def note_absorbed(connection: Connection, items: Sequence[Settlement], fresh: Sequence[bool]) -> None:
    """Tell of what new events cost beyond what was reserved, in the transaction that settles them."""
    absorbed = [item for item, new in zip(items, fresh, strict=True) if item.charge.absorbed_nano and new]
    if absorbed:
        raise_alerts(connection, map(_absorbed_alert, absorbed), max(item.charge.settled_us for item in absorbed))


def _absorbed_alert(item: Settlement) -> Alert:
    """One an hour for each key: a model that reports too much does so in every request."""
    row, charge = item.row, item.charge
    key_id, model = row[_PLACES["key_id"]], row[_PLACES["model"]]
    data = {
        "request_id": row[_PLACES["request_id"]],
        "model": model,
        "key_id": key_id,
        "user_id": row[_PLACES["user_id"]],
        "project_id": row[_PLACES["project_id"]],
        "absorbed_nano": charge.absorbed_nano,
        "cost_nano": charge.cost_nano,
    }
    text = f"A request to {model} cost {charge.absorbed_nano} nano-USD more than was reserved, which nobody paid."
    return Alert(f"absorbed:{key_id}:{row[_PLACES['settled_us']] // _HOUR_US}", "absorbed_cost", text, data)


class Alarms:
    """The two looks by the clock; the job table calls them."""

    def __init__(
        self,
        database: Database,
        leader: Leader,
        clock: Clock,
        thresholds: Sequence[int],
        list_crash_loops: Callable[[], list[CrashLoop]],
    ) -> None:
        self._database = database
        self._leader = leader
        self._clock = clock
        self._thresholds = thresholds
        self._list_crash_loops = list_crash_loops
        self._known_loops: dict[InstanceId, int] = {}

    async def check_limits(self) -> int:
        """Tell of limits that passed a threshold; how many alerts that made. Raises NotLeader."""
        now_us = self._clock.now_us()
        starts = choose_starts(_starts("day", now_us), _starts("month", now_us), now_us)
        fresh = await self._database.read(lambda connection: find_passed(connection, self._thresholds, starts))
        if not fresh:
            return 0
        return await self._leader.maintain(lambda connection: raise_alerts(connection, fresh, now_us))

    async def check_engines(self) -> int:
        """Tell of this machine's engines that have begun to fail again and again; how many alerts that made."""
        loops = {loop.instance: loop for loop in self._list_crash_loops()}
        now_us = self._clock.now_us()
        self._known_loops = {instance: since for instance, since in self._known_loops.items() if instance in loops}
        fresh = {instance: now_us for instance in loops if instance not in self._known_loops}
        if not fresh:
            return 0
        node = self._database.node_id
        alerts = [_crash_alert(loops[instance], node, since_us) for instance, since_us in fresh.items()]
        raised = await self._database.write(lambda connection: raise_alerts(connection, alerts, now_us))
        self._known_loops |= fresh
        return raised

    async def forget(self) -> int:
        """Remove what is older than ninety days; how many alerts that were. Raises NotLeader."""
        total = 0
        now_us = self._clock.now_us()
        while count := await self._leader.maintain(lambda connection: forget_alerts(connection, now_us)):
            total += count
        return total


def _starts(window: str, now_us: int) -> tuple[int, int]:
    """When the window began that runs now, and the one before."""
    start_us = calendar_window(window, now_us)[0]
    return start_us, calendar_window(window, start_us - 1)[0]


def _crash_alert(loop: CrashLoop, node: str, since_us: int) -> Alert:
    text = f"An engine of {loop.model} failed too often and is left alone for a while: {loop.reason}"
    data = {
        "model": loop.model,
        "instance": loop.instance,
        "restarts": loop.restarts,
        "reason": loop.reason,
        "node": node or None,
    }
    return Alert(f"engine:{node}:{loop.instance}:{since_us}", "engine_crash_loop", text, data)
