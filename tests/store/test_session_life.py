"""Console sessions: their ends, what survives a restart, and that guessing gets slower."""

import asyncio
import hashlib
import threading

import pytest
from argon2 import PasswordHasher

from stentor.audit.log import Actor
from stentor.control.people.changes import Changes, UserChange
from stentor.control.people.sessions import Sessions
from stentor.control.wanted import KeyAsk, UserAsk
from stentor.core.errors import Refused
from stentor.people.values import KeyLimits

OPERATOR = Actor("tester", "cli")
HOUR_S = 3600
PLACE = ("203.0.113.7", "a browser")
PASSWORD = "correct horse battery"


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


async def refused(awaitable) -> Refused:
    with pytest.raises(Refused) as caught:
        await awaitable
    return caught.value


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stentor.people.passwords._hasher", PasswordHasher(1, 8, 1))


def make(house) -> Sessions:
    return Sessions(house.database, house.books, house.management, house.keyring, house.clock)


@pytest.fixture
async def sessions(house) -> Sessions:
    await house.management.add_user(OPERATOR, UserAsk("ann", role="admin", password=PASSWORD))
    await house.management.add_user(OPERATOR, UserAsk("bob", password=PASSWORD))
    return make(house)


async def test_a_session_idles_out_after_twelve_hours(house, sessions) -> None:
    token = (await sessions.sign_in("ann", PASSWORD, "admin", PLACE)).token
    for _ in range(3):
        house.clock.advance(11 * HOUR_S)
        assert await sessions.find_session(digest(token), "admin") is not None
    house.clock.advance(12 * HOUR_S)
    assert await sessions.find_session(digest(token), "admin") is None


async def test_a_session_ends_after_seven_days_however_busy(house, sessions) -> None:
    token = (await sessions.sign_in("ann", PASSWORD, "admin", PLACE)).token
    for _ in range(7 * 3 - 1):
        house.clock.advance(8 * HOUR_S)
        assert await sessions.find_session(digest(token), "admin") is not None
    house.clock.advance(8 * HOUR_S)
    assert await sessions.find_session(digest(token), "admin") is None


async def test_a_session_survives_a_restart_and_so_does_its_idling(house, sessions) -> None:
    token = (await sessions.sign_in("ann", PASSWORD, "admin", PLACE)).token
    house.clock.advance(11 * HOUR_S)
    await sessions.find_session(digest(token), "admin")
    sessions = make(house)
    house.clock.advance(11 * HOUR_S)
    card = await sessions.find_session(digest(token), "admin")
    assert (card.user_name, card.kind) == ("ann", "admin")
    assert await sessions.find_session(digest(token), "user") is None
    assert await sessions.find_session(digest(token[:-1]), "admin") is None


async def test_only_a_hash_of_the_token_is_stored(house, sessions) -> None:
    token = (await sessions.sign_in("ann", PASSWORD, "admin", PLACE)).token
    dump = await house.database.read(lambda c: repr(c.exec_driver_sql("SELECT * FROM sessions").fetchall()))
    assert token not in dump
    assert repr(digest(token)) in dump


async def test_guessing_gets_slower_and_is_audited(house, sessions) -> None:
    codes = [(await refused(sessions.sign_in("ann", "wrong", "admin", PLACE))).code for _ in range(8)]
    assert codes == ["wrong_password"] * 4 + ["rate_limit_exceeded"] * 4
    blocked = await refused(sessions.sign_in("ann", PASSWORD, "admin", PLACE))
    assert blocked.retry_after_s == 1
    house.clock.advance(1.1)
    await refused(sessions.sign_in("ann", "wrong", "admin", PLACE))
    assert (await refused(sessions.sign_in("ann", "wrong", "admin", PLACE))).retry_after_s == 2
    # Somebody elsewhere isn't kept out by that.
    assert (await sessions.sign_in("ann", PASSWORD, "admin", ("198.51.100.1", ""))).card.user_name == "ann"
    failures = [change for change in await house.management.list_changes() if change.action == "sign_in_failed"]
    assert len(failures) == 5
    assert "203.0.113.7" in failures[0].after
    house.clock.advance(1000)
    assert (await sessions.sign_in("ann", PASSWORD, "admin", PLACE)).card.user_name == "ann"


async def test_many_guesses_at_once_are_not_free(sessions) -> None:
    tries = [refused(sessions.sign_in("ann", f"wrong {n}", "admin", PLACE)) for n in range(50)]
    codes = [refusal.code for refusal in await asyncio.gather(*tries)]
    assert codes.count("wrong_password") == 4


async def test_an_account_of_ones_own_buys_no_guesses_at_others(house, sessions) -> None:
    """Bob signs in between his guesses, which would forgive them."""
    for number in range(40):
        for guess in range(3):
            try:
                await sessions.sign_in(f"victim-{number}", f"guess {guess}", "user", PLACE)
            except Refused as refusal:
                if refusal.code == "rate_limit_exceeded":
                    assert number < 5
                    return
        await sessions.sign_in("bob", PASSWORD, "user", PLACE)
    pytest.fail("120 guesses at 40 accounts were let through")


async def test_one_account_is_guessed_at_from_many_places_in_vain(house, sessions) -> None:
    await sessions.sign_in("ann", PASSWORD, "admin", PLACE)
    places = [(f"198.51.{number >> 8}.{number & 255}", "") for number in range(60)]
    codes = [(await refused(sessions.sign_in("ann", "wrong", "admin", place))).code for place in places]
    assert codes == ["wrong_password"] * 50 + ["rate_limit_exceeded"] * 10
    # Where she signed in before, she isn't kept out; elsewhere she waits, but not long.
    assert (await sessions.sign_in("ann", PASSWORD, "admin", PLACE)).card.user_name == "ann"
    codes = [(await refused(sessions.sign_in("ann", "wrong", "admin", place))).code for place in places]
    assert codes.count("wrong_password") == 50
    assert (await refused(sessions.sign_in("ann", PASSWORD, "admin", ("192.0.2.1", "")))).retry_after_s <= 30
    house.clock.advance(31)
    assert (await sessions.sign_in("ann", PASSWORD, "admin", ("192.0.2.1", ""))).card.user_name == "ann"


async def test_one_account_is_one_however_it_is_spelt(house, sessions, monkeypatch) -> None:
    changes = Changes(house.database, house.books, house.management, house.clock, sessions.forget)
    await changes.change_user(OPERATOR, "ann", UserChange(email="ann@example.org"))
    assert (await sessions.sign_in(" Ann@Example.ORG ", PASSWORD, "admin", PLACE)).card.user_name == "ann"
    places = [(f"198.51.0.{number}", "") for number in range(51)]
    spelt = [" " * number + "ann@example.org" for number in range(51)]

    async def wrong(_user: str, _password: str) -> None:
        """As quickly as no hash says so."""

    monkeypatch.setattr(house.management.passwords, "check", wrong)
    tries = [sessions.sign_in(name, "wrong", "admin", place) for name, place in zip(spelt, places, strict=True)]
    codes = [(await refused(each)).code for each in tries]
    assert codes == ["wrong_password"] * 50 + ["rate_limit_exceeded"]


async def test_a_flood_of_passwords_does_not_queue_for_ever(house, sessions, monkeypatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr("stentor.control.passwords.is_password", lambda *_: let_go.wait(30) and False)
    tries = [asyncio.create_task(house.management.passwords.check("ann", "x")) for _ in range(200)]
    try:
        async with asyncio.timeout(30):
            while sum(each.done() for each in tries) < 136:
                await asyncio.sleep(0.01)
    finally:
        let_go.set()
    told = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(each, Refused) and each.code == "overloaded" for each in told) == 136
    assert told.count(None) == 64


# -- what ends in the moment of a sign-in ------------------------------------------------------------------------------


@pytest.fixture
def meanwhile(monkeypatch):
    """Have something done between the check of a password, which takes its time, and what follows from it."""

    def arrange(house, work) -> None:
        real = house.management.passwords.check

        async def check(user, password):
            proof = await real(user, password)
            await work()
            return proof

        monkeypatch.setattr(house.management.passwords, "check", check)

    return arrange


ENDS = {
    "shut out": UserChange(active=False),
    "no admin any more": UserChange(role="user"),
    "another password": UserChange(password="another password"),
}


@pytest.mark.parametrize("change", ENDS.values(), ids=ENDS)
async def test_who_is_stopped_while_signing_in_does_not_get_in(house, sessions, meanwhile, change) -> None:
    await house.management.add_user(OPERATOR, UserAsk("carl", role="admin", password=PASSWORD))
    changes = Changes(house.database, house.books, house.management, house.clock, sessions.forget)
    meanwhile(house, lambda: changes.change_user(OPERATOR, "ann", change))
    assert (await refused(sessions.sign_in("ann", PASSWORD, "admin", PLACE))).code == "wrong_password"
    assert await sessions.list_sessions(user="ann") == []


async def test_an_old_password_does_not_undo_an_administrators_new_one(house, sessions, meanwhile) -> None:
    changes = Changes(house.database, house.books, house.management, house.clock, sessions.forget)
    real = house.management.passwords.check
    bob = (await real("bob", PASSWORD)).user
    meanwhile(house, lambda: changes.change_user(OPERATOR, "bob", UserChange(password="by the operator")))
    change = sessions.change_password(Actor("bob", "console"), bob.id, PASSWORD, "by a thief", keep="")
    assert (await refused(change)).code == "wrong_password"
    assert await real("bob", "by the operator") is not None


async def test_a_key_that_ends_meanwhile_sets_no_first_password(house, sessions, monkeypatch) -> None:
    await house.management.add_user(OPERATOR, UserAsk("cid"))
    made = await house.management.add_key(OPERATOR, KeyAsk("cid"))
    real = house.management.passwords.hash

    async def hashed(password: str) -> str:
        await house.management.revoke_key(OPERATOR, made.made.id)
        return await real(password)

    monkeypatch.setattr(house.management.passwords, "hash", hashed)
    change = sessions.change_password(OPERATOR, made.made.user_id, "", PASSWORD, keep="", key_id=made.made.id)
    assert (await refused(change)).code == "insufficient_scope"
    assert await house.management.passwords.check("cid", PASSWORD) is None


async def test_a_key_that_ends_while_it_is_exchanged_opens_nothing(house, sessions, monkeypatch) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk("bob"))
    real = house.books.find_principal

    async def find(digest):
        found = await real(digest)
        await house.management.revoke_key(OPERATOR, made.made.id)
        return found

    monkeypatch.setattr(house.books, "find_principal", find)
    assert (await refused(sessions.exchange(made.key, PLACE))).code == "invalid_api_key"
    assert await sessions.list_sessions(user="bob") == []


async def test_one_ipv6_network_is_one_place(sessions) -> None:
    tries = [refused(sessions.sign_in("ann", "x", "admin", (f"2001:db8::{n}", ""))) for n in range(1, 9)]
    codes = [refusal.code for refusal in await asyncio.gather(*tries)]
    assert codes.count("wrong_password") == 4


async def test_unknown_names_are_answered_alike(house, sessions) -> None:
    texts = {
        (await refused(sessions.sign_in(name, "wrong", "admin", (f"198.51.100.{n}", "")))).message
        for n, name in enumerate(("ann", "nobody", "bob", ""))
    }
    assert len(texts) == 1
    audit = repr([c for c in await house.management.list_changes() if c.action == "sign_in_failed"])
    assert "nobody" not in audit


async def test_a_shut_out_users_sessions_end(house, sessions) -> None:
    token = (await sessions.sign_in("bob", PASSWORD, "user", PLACE)).token
    changes = Changes(house.database, house.books, house.management, house.clock, sessions.forget)
    await changes.change_user(OPERATOR, "bob", UserChange(active=False))
    assert await sessions.find_session(digest(token), "user") is None
    assert (await refused(sessions.sign_in("bob", PASSWORD, "user", PLACE))).code == "wrong_password"


async def test_a_key_opens_its_users_session(house, sessions) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk("bob"))
    signed = await sessions.exchange(made.key, PLACE)
    assert (signed.card.user_name, signed.card.kind) == ("bob", "user")
    assert (await refused(sessions.exchange("sk-" + "0" * 48, PLACE))).code == "invalid_api_key"
    await house.management.revoke_key(OPERATOR, made.made.id)
    assert (await refused(sessions.exchange(made.key, PLACE))).code == "invalid_api_key"


async def test_a_session_that_a_key_opened_ends_with_the_key(house, sessions) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk("bob"))
    token = (await sessions.exchange(made.key, PLACE)).token
    other = (await sessions.sign_in("bob", PASSWORD, "user", PLACE)).token
    assert (await sessions.find_session(digest(token), "user")).key_id == made.made.id
    await house.management.revoke_key(OPERATOR, made.made.id)
    assert await sessions.find_session(digest(token), "user") is None
    assert (await sessions.find_session(digest(other), "user")).key_id == ""


async def test_a_session_that_a_key_opened_ends_when_the_key_does(house, sessions) -> None:
    ends_us = house.clock.now_us() + 60 * 1_000_000
    made = await house.management.add_key(OPERATOR, KeyAsk("bob", expires_us=ends_us))
    token = (await sessions.exchange(made.key, PLACE)).token
    assert await sessions.find_session(digest(token), "user") is not None
    house.clock.advance(61)
    assert await sessions.find_session(digest(token), "user") is None


async def test_ended_sessions_are_cleared_away(house, sessions) -> None:
    await sessions.sign_in("ann", PASSWORD, "admin", PLACE)
    house.clock.advance(13 * HOUR_S)
    await sessions.sign_in("ann", PASSWORD, "admin", PLACE)
    count = await house.database.read(lambda c: c.exec_driver_sql("SELECT count(*) FROM sessions").scalar_one())
    assert count == 1
    assert len(await sessions.list_sessions()) == 1


async def test_a_session_calls_only_what_its_key_may_call(house, sessions) -> None:
    made = await house.management.add_key(OPERATOR, KeyAsk("bob", endpoints=("/v1/chat/completions",)))
    signed = await sessions.exchange(made.key, PLACE)
    assert signed.card.endpoints == {"/v1/chat/completions"}
    later = await make(house).find_session(digest(signed.token), "user")
    assert later.endpoints == {"/v1/chat/completions"}


async def test_who_has_no_password_sets_one_with_a_key_that_leaves_nothing_out(house, sessions) -> None:
    async def set_first(user: str, **limits) -> str | None:
        made = await house.management.add_key(OPERATOR, KeyAsk(user, **limits))
        card = (await sessions.exchange(made.key, PLACE)).card
        await sessions.change_password(OPERATOR, card.user_id, "", PASSWORD, keep=card.id, key_id=card.key_id)

    await house.management.add_user(OPERATOR, UserAsk("cid"))
    await house.management.add_user(OPERATOR, UserAsk("dan", role="admin"))
    ends_us = house.clock.now_us() + HOUR_S * 1_000_000
    for user, limits in (
        ("cid", {"models": ("tiny",)}),
        ("cid", {"endpoints": ("/user/api/password",)}),
        ("cid", {"limits": KeyLimits(token_limit=5)}),
        ("cid", {"expires_us": ends_us}),
        ("dan", {}),
    ):
        assert (await refused(set_first(user, **limits))).code == "insufficient_scope", (user, limits)
    await set_first("cid")
    assert (await sessions.sign_in("cid", PASSWORD, "user", PLACE)).card.user_name == "cid"
    assert (await refused(set_first("cid"))).code == "wrong_password"  # the next one needs the first


async def test_the_audit_says_from_where_somebody_signed_in_or_failed_to(house, sessions) -> None:
    user_id = (await sessions.sign_in("bob", PASSWORD, "user", PLACE)).card.user_id
    await refused(sessions.sign_in("bob", "wrong", "user", PLACE))
    actor = Actor("bob", "console", PLACE[0])
    await refused(sessions.change_password(actor, user_id, "wrong", "another password", keep=""))
    failed, again, signed = (await house.management.list_changes())[:3]
    assert [change.action for change in (failed, again, signed)] == ["sign_in_failed", "sign_in_failed", "sign_in"]
    assert {change.address for change in (failed, again, signed)} == {PLACE[0]}
    assert '"password"' in failed.after
