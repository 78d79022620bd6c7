"""Asking for an account tells nobody whether an address is known here: not by the answer, not by its time."""

import time

import pytest

from stentor.control.people import signups as module
from stentor.control.people.signups import Signups
from stentor.control.wanted import UserAsk
from stentor.core.errors import Refused
from stentor.people.signups import SignupAsk
from tests.store.house import OPERATOR

HASTY_S = 0.05


@pytest.fixture
async def signups(house) -> Signups:
    await house.management.add_user(OPERATOR, UserAsk("ann", email="ann@example.org"))
    return Signups(house.database, house.books, house.keyring, house.clock, is_open=True)


async def ask(signups: Signups, email: str, address: str) -> str:
    try:
        await signups.ask(SignupAsk(email), address)
    except Refused as refusal:
        return refusal.code
    return "taken"


async def test_known_and_unknown_addresses_take_the_same_time(signups) -> None:
    for number, email in enumerate(("ann@example.org", "new@example.org", "new@example.org")):
        begun_s = time.monotonic()
        assert await ask(signups, email, f"192.0.2.{number}") == "taken"
        assert time.monotonic() - begun_s >= module.ANSWER_S - HASTY_S
    assert len(await signups.list_signups()) == 1


async def test_a_full_list_refuses_known_and_unknown_alike(signups, monkeypatch) -> None:
    monkeypatch.setattr("stentor.people.signups.PENDING_MAX", 1)
    monkeypatch.setattr(module, "ANSWER_S", 0.0)
    assert await ask(signups, "first@example.org", "192.0.2.1") == "taken"
    emails = ("ann@example.org", "first@example.org", "new@example.org")
    codes = [await ask(signups, email, f"192.0.2.{number + 9}") for number, email in enumerate(emails)]
    assert codes == ["overloaded"] * 3
