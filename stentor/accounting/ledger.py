"""Money that comes in: top-ups and adjustments, and the check that the books agree with themselves."""

from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec
from sqlalchemy import Connection

from stentor.accounting import table
from stentor.accounting.meters import calendar_window
from stentor.accounting.usage import Amount, sum_between
from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ProjectId, UserId

LedgerKind = Literal["opening", "top_up", "adjustment", "period_close"]


class LedgerEntry(msgspec.Struct, frozen=True):
    """One row of a user's ledger, nano-USD; positive adds to the balance."""

    id: int
    user_id: UserId
    kind: str
    amount_nano: int
    reference: str | None
    note: str
    actor: str
    created_us: int


class Balance(msgspec.Struct, frozen=True):
    """What was paid in, what of it was charged, and what is left, in nano-USD."""

    credited_nano: int
    charged_nano: int

    @property
    def left_nano(self) -> int:
        """The balance."""
        return self.credited_nano - self.charged_nano


class Deposit(msgspec.Struct, frozen=True):
    """A movement to be booked. ``reference`` names it from outside: booked again, it changes nothing."""

    user_id: UserId
    kind: LedgerKind
    amount_nano: int
    note: str = ""
    reference: str | None = None


def balance_key(user_id: UserId) -> table.BucketKey:
    """The bucket of a user's balance."""
    return ("balance", user_id, "none", 0)


def find_balance(connection: Connection, user_id: UserId) -> Balance:
    """A user's balance; of one who never had any: zero."""
    found = table.find_bucket(connection, balance_key(user_id))
    return Balance(found[0] or 0, found[1]) if found is not None else Balance(0, 0)


def book(connection: Connection, deposit: Deposit, actor: str, now_us: int) -> tuple[Balance, bool]:
    """Book a movement; returns the balance and whether it was new.

    Raises Refused for zero, for a sum out of range, for a reference used for something else, and for an adjustment
    that would take the balance below zero.
    """
    if deposit.reference is not None:
        known = table.find_ledger_reference(connection, deposit.reference)
        if known is not None:
            if (known[1], known[2]) != (deposit.user_id, deposit.amount_nano):
                raise Refused(
                    "conflict", f"The reference '{deposit.reference}' was used for another booking.", param="reference"
                )
            return find_balance(connection, deposit.user_id), False
    if deposit.amount_nano == 0 or abs(deposit.amount_nano) >= 2**62:
        raise Refused("invalid_request", "An amount must not be zero, and less than 4 billion dollars.", param="amount")
    balance = find_balance(connection, deposit.user_id)
    if balance.credited_nano + deposit.amount_nano >= 2**62:
        text = f"The balance has {balance.left_nano} nano-USD; with this it would pass 4 billion dollars."
        raise Refused("invalid_request", text, param="amount")
    if deposit.amount_nano < 0:
        # What nodes have borrowed may be spent at this moment: it can't be taken off before they have returned it.
        left_nano = balance.left_nano - table.find_leased(connection, balance_key(deposit.user_id))
        if left_nano + deposit.amount_nano < 0:
            raise cannot_take_off(left_nano, -deposit.amount_nano)
    values = msgspec.structs.asdict(deposit) | {"actor": actor, "created_us": now_us}
    table.add_ledger_row(connection, values)
    credited, charged = table.raise_capacity(connection, balance_key(deposit.user_id), deposit.amount_nano)
    return Balance(credited, charged), True


def is_booked(connection: Connection, reference: str | None) -> bool:
    """Whether there is a booking with this reference."""
    return reference is not None and table.find_ledger_reference(connection, reference) is not None


def cannot_take_off(left_nano: int, wanted_nano: int) -> Refused:
    """More was to be taken off a balance than it has left."""
    text = f"The balance has {max(left_nano, 0)} nano-USD left; {wanted_nano} can't be taken off."
    return Refused("invalid_request", text, param="amount")


def list_ledger(
    connection: Connection, user_id: UserId, *, before_id: int | None = None, limit: int = 100
) -> list[LedgerEntry]:
    """A user's ledger, newest first; page on with the last one's id."""
    return [LedgerEntry(*row) for row in table.list_ledger(connection, user_id, before_id, limit)]


def used_by_key(connection: Connection, key_id: KeyId) -> tuple[int, int]:
    """Tokens and nano-USD that count against a key's own limits."""
    tokens = table.find_bucket(connection, ("key_tokens", key_id, "none", 0))
    spent = table.find_bucket(connection, ("key_spending", key_id, "none", 0))
    return (0 if tokens is None else tokens[1], 0 if spent is None else spent[1])


def budget_used(connection: Connection, project_id: ProjectId, window: str, window_start: int) -> int:
    """What a project used of a budget in a window."""
    found = table.find_bucket(connection, ("project_budget", project_id, window, window_start))
    return 0 if found is None else found[1]


def clear_budget(connection: Connection, project_id: ProjectId, window: str) -> None:
    """Forget what was counted for a budget, in all its windows."""
    table.delete_buckets(connection, "project_budget", project_id, window)


def start_budget(connection: Connection, project_id: ProjectId, window: str, window_start: int, limit_nano: int) -> int:
    """As :func:`start_limit`, for a project's budget."""
    return start_limit(connection, ("project_budget", project_id, window, window_start), limit_nano)


_COUNTED: dict[str, tuple[str, Amount]] = {
    "project_budget": ("project_id", "cost_nano"),
    "key_budget": ("key_id", "cost_nano"),
    "key_spending": ("key_id", "cost_nano"),
    "key_tokens": ("key_id", "billable_tokens"),
}


def start_limit(connection: Connection, key: table.BucketKey, limit: int, line: Sequence[str] = ()) -> int:
    """Make a limit's bucket (kind, subject, window, window's start) agree with all events of its window.

    ``line`` are the keys that count against it, where they are more than its subject. Returns how much of that had not
    been counted in the bucket yet: settlements that knew of the limit already have.
    """
    found = table.find_bucket(connection, key)
    counted = 0 if found is None else found[1]
    column, amount = _COUNTED[key[0]]
    used = sum(sum_between(connection, (column, name), amount, key[3], None) for name in line or (key[1],))
    table.set_bucket(connection, key, limit, used)
    return used - counted


def find_used(connection: Connection, key: table.BucketKey) -> int:
    """What of a limit's bucket is used."""
    found = table.find_bucket(connection, key)
    return 0 if found is None else found[1]


def clear_limit(connection: Connection, kind: str, subject: str, window: str) -> None:
    """Forget what was counted for a limit, in all its windows."""
    table.delete_buckets(connection, kind, subject, window)


def key_budget_used(connection: Connection, key_id: KeyId, window: str, window_start: int) -> int:
    """What a key used of its budget in a window."""
    found = table.find_bucket(connection, ("key_budget", key_id, window, window_start))
    return 0 if found is None else found[1]


class Mismatch(msgspec.Struct, frozen=True):
    """A bucket that disagrees with the events or the ledger. ``amount`` names what: used or credited."""

    kind: str
    subject: str
    amount: str
    in_bucket: int
    in_books: int


def check_books(connection: Connection, lines: Mapping[str, str]) -> list[Mismatch]:
    """Compare every balance with opening + top-ups + adjustments and with the charges, and every bucket with events.

    ``lines`` names what keys count together under, where that isn't their own id.
    """
    paid = table.sum_ledger(connection)
    found = _compare(connection, "balance", table.sum_events(connection, "user_id", "charged_nano"))
    credited = {row[0]: row[3] or 0 for row in table.list_buckets(connection, "balance")}
    for subject in sorted(paid.keys() | credited.keys()):
        if credited.get(subject, 0) != paid.get(subject, 0):
            found.append(Mismatch("balance", subject, "credited", credited.get(subject, 0), paid.get(subject, 0)))
    members: dict[str, list[str]] = {}
    for key_id, line_id in lines.items():
        members.setdefault(line_id, [line_id]).append(key_id)
    for kind, amount in (("key_tokens", "tokens"), ("key_spending", "cost_nano")):
        sums: dict[str, int] = {}
        for key_id, total in table.sum_events(connection, "key_id", amount, folded=True).items():
            line_id = lines.get(key_id, key_id)
            sums[line_id] = sums.get(line_id, 0) + total
        found += _compare(connection, kind, sums)
    for kind in ("project_budget", "key_budget"):
        for subject, window, start, capacity, used in table.list_buckets(connection, kind):
            if capacity is None:
                continue  # a budget that was lifted while something of it was borrowed
            end = None if window == "none" else calendar_window(window, start)[1]
            column = _COUNTED[kind][0]
            names = members.get(subject, [subject]) if kind == "key_budget" else [subject]
            cost = sum(sum_between(connection, (column, name), "cost_nano", start, end) for name in names)
            if cost != used:
                found.append(Mismatch(kind, subject, "used", used, cost))
    return found


def _compare(connection: Connection, kind: str, sums: dict[str, int]) -> list[Mismatch]:
    # A limit that was lifted while some of it was borrowed leaves an empty bucket until that is returned.
    rows = [row for row in table.list_buckets(connection, kind) if kind == "balance" or row[3] is not None or row[4]]
    buckets = {row[0]: row[4] for row in rows}
    # A key without limits has no bucket of its own; a balance exists for everybody who was ever charged.
    subjects = buckets.keys() | {subject for subject, total in sums.items() if total and kind == "balance"}
    return [
        Mismatch(kind, subject, "used", buckets.get(subject, 0), sums.get(subject, 0))
        for subject in sorted(subjects)
        if buckets.get(subject, 0) != sums.get(subject, 0)
    ]
