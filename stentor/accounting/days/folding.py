"""Old usage events folded into one row a day and subject, with a period-close row for what balances had paid."""

from sqlalchemy import Connection

from stentor.accounting import table as books
from stentor.accounting.days import table
from stentor.accounting.ledger import balance_key
from stentor.accounting.usage import forget_block, list_oldest_sums, sum_up_old
from stentor.core.ids import UserId


def fold_block(connection: Connection, before_us: int, now_us: int) -> tuple[int, dict[UserId, int]]:
    """Fold the oldest block of events if all of them are older; how many, and of each balance what now counts as paid.

    Where there is no such block, old events that are none yet become one. The newest event of all always stays.

    The ledger gets a row of what was charged, and the balance's bucket loses as much of what was paid in as of what
    was used: what is left stays. Everything is the caller's one transaction.
    """
    sums = list_oldest_sums(connection, before_us)
    if not sums and sum_up_old(connection, before_us):
        sums = list_oldest_sums(connection, before_us)
    charges = forget_block(connection, before_us)
    if charges is None:
        return 0, {}
    count = 0
    for name, amounts in sums:
        table.add_to_day(connection, name, amounts)
        count += amounts[0]
    credited: dict[UserId, int] = {}
    for user_id, amount in charges.items():
        if not amount:
            continue
        books.add_ledger_row(
            connection,
            {
                "user_id": user_id,
                "kind": "period_close",
                "amount_nano": -amount,
                "reference": None,
                "note": "usage folded by RETENTION_DAYS",
                "actor": "system",
                "created_us": now_us,
            },
        )
        credited[UserId(user_id)] = books.move_bucket(connection, balance_key(UserId(user_id)), -amount)
    return count, credited
