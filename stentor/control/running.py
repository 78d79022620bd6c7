"""One open attempt, and the usage event that it becomes."""

import asyncio

from stentor.accounting.accounts import KeyAccount
from stentor.accounting.allowance import Charge, Hold
from stentor.accounting.price import Price
from stentor.control.chain import Member
from stentor.core.books import Close, Open, Usage
from stentor.runtime.place import Place
from stentor.runtime.spec import ServedModel


class Running:
    """One open attempt: what it asked, what it holds, and its place once it has one."""

    __slots__ = (
        "account",
        "ask",
        "chain",
        "closing",
        "hold",
        "lost",
        "model",
        "opened_us",
        "owner",
        "place",
        "price",
        "topped",
    )

    def __init__(self, ask: Open, owner: str, account: KeyAccount, model: ServedModel, opened_us: int) -> None:
        self.ask = ask
        self.owner = owner
        self.account = account
        self.model = model
        self.opened_us = opened_us
        self.price: Price
        self.hold: Hold
        self.place: Place | None = None
        self.chain: Member | None = None
        self.lost = False
        self.closing: asyncio.Event | None = None
        self.topped = False  # whether more was borrowed for it at its end


def event_row(
    running: Running, place: Place, end: Close, usage: Usage, charge: Charge, now_us: int
) -> tuple[object, ...]:
    """The usage event, in the order of the table's columns."""
    ask = running.ask
    principal = running.account.terms.principal
    return (
        ask.request_id,
        ask.attempt,
        ask.client_request_id,
        running.opened_us,
        now_us,
        principal.user_id,
        principal.project_id,
        principal.key_id,
        running.model.id,
        running.model.engine,
        ask.endpoint,
        ask.stream,
        usage.input_tokens,
        usage.cached_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        usage.audio_ms,
        usage.characters,
        usage.estimated,
        place.queued_us,
        end.latency_us,
        end.first_token_us,
        end.overhead_us,
        charge.cost_nano,
        charge.balance_nano,
        charge.absorbed_nano,
        running.price.version,
        end.outcome,
        end.reason,
        end.billable,
    )
