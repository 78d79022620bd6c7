"""People who ask for an account, until an administrator decides."""

from typing import Literal, NamedTuple

import msgspec
from sqlalchemy import Connection

from stentor.core.errors import Refused
from stentor.core.ids import TierId, UserId, new_uuid7
from stentor.people import table
from stentor.people.users import find_user, is_email, plain_email

PENDING_MAX = 500
MESSAGE_MAX = 2000
TIERS = ("payg", "sub")
State = Literal["pending", "approved", "rejected"]


class Signup(msgspec.Struct, frozen=True):
    """One request for an account. ``decided_by`` is empty while it is pending."""

    id: str
    email: str
    tier_id: TierId
    message: str
    address: str
    state: State
    user_id: UserId | None
    decided_by: str
    created_us: int
    decided_us: int | None


class HeldKey(NamedTuple):
    """A key whose text its owner has; ``hint`` is its last four characters."""

    name: str
    hint: str
    digest: bytes


class SignupAsk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What somebody asks for."""

    email: str
    tier: str = "payg"
    message: str = ""


def check_signup(ask: SignupAsk) -> None:
    """Raises Refused for what can't be a request."""
    if not is_email(plain_email(ask.email)):
        raise Refused("invalid_request", "That isn't an email address.", param="email")
    if ask.tier not in TIERS:
        raise Refused("invalid_request", f"'tier' is one of {', '.join(TIERS)}.", param="tier")
    if len(ask.message) > MESSAGE_MAX:
        raise Refused("invalid_request", f"A message has at most {MESSAGE_MAX} characters.", param="message")


def add_signup(connection: Connection, ask: SignupAsk, address: str, now_us: int) -> Signup | None:
    """Store a request; None where the email is known already, which its sender isn't told.

    Raises Refused when too many wait.
    """
    email = plain_email(ask.email)
    if table.count_pending_signups(connection) >= PENDING_MAX:  # first, or a refusal would say that it isn't known
        raise Refused(
            "overloaded", "Too many requests for an account wait for an answer. Try again in some days.",
            retry_after_s=86_400,
        )  # fmt: skip
    if find_user(connection, email) is not None or table.has_pending_signup(connection, email):
        return None
    signup = Signup(new_uuid7(), email, TierId(ask.tier), ask.message, address[:64], "pending", None, "", now_us, None)
    table.add_signup(connection, msgspec.structs.asdict(signup))
    return signup


def hold_key(connection: Connection, signup: Signup, held: HeldKey) -> None:
    """Store the key that was given out with a request: it works when that is approved, and not before."""
    table.add_signup_key(connection, signup.id, held.name, held.hint, held.digest)


def take_key(connection: Connection, signup: Signup) -> HeldKey | None:
    """The key that was given out with a request, which is held no longer."""
    row = table.take_signup_key(connection, signup.id)
    return None if row is None else HeldKey(row[0], row[1], bytes(row[2]))


def list_signups(
    connection: Connection, *, state: str | None = None, before_id: str | None = None, limit: int = 100
) -> list[Signup]:
    """Requests, newest first; page on with the last one's id."""
    return [Signup(*row) for row in table.list_signups(connection, state, before_id, limit)]


def get_pending(connection: Connection, signup_id: str) -> Signup:
    """A request that waits. Raises Refused where it doesn't, or there is none."""
    row = table.find_signup(connection, signup_id)
    if row is None:
        raise Refused("not_found", f"There is no sign-up '{signup_id[:64]}'.")
    signup = Signup(*row)
    if signup.state != "pending":
        raise Refused("conflict", f"This sign-up was {signup.state} already.")
    return signup


def decide(connection: Connection, signup: Signup, state: State, by: tuple[str, UserId | None], now_us: int) -> Signup:
    """Write down what became of a request; ``by`` is who decided, and the user that was made."""
    decided = msgspec.structs.replace(signup, state=state, decided_by=by[0], user_id=by[1], decided_us=now_us)
    values = {"state": state, "decided_by": by[0], "user_id": by[1], "decided_us": now_us}
    table.update_signup(connection, signup.id, values)
    return decided
