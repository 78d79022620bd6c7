"""What becomes of a settlement whose leases were lost: on record, paid by nobody, counted against nothing."""

from stentor.accounting.allowance import Charge
from stentor.accounting.settlement import EVENT_COLUMNS, Settlement
from stentor.core.books import Usage
from stentor.core.errors import LeasesLost


def test_what_nobody_pays_counts_against_no_limit() -> None:
    facts = dict.fromkeys(EVENT_COLUMNS, 0) | {"request_id": "r", "cost_nano": 30, "charged_nano": 30, "billable": True}
    facts |= {"input_tokens": 10, "output_tokens": 20, "absorbed_nano": 5}
    first = Settlement(Usage(10, 0, 20), Charge(30, 5, 30, 0), tuple(facts.values()))
    first.finish(fresh=False, failure=LeasesLost())
    again = first.absorbed(7)
    assert again is not None
    assert (again.charge.cost_nano, again.charge.tokens, again.charge.absorbed_nano) == (0, 0, 35)
    told = dict(zip(EVENT_COLUMNS, again.row, strict=True))
    assert told == facts | {"cost_nano": 0, "charged_nano": 0, "absorbed_nano": 35, "billable": False}
