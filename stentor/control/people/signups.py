"""Asking for an account, and what administrators answer."""

import asyncio
import re
import time
from typing import Annotated

import msgspec
from sqlalchemy import Connection

from stentor.audit.log import Actor, record_change
from stentor.control.books import LocalBooks
from stentor.control.people.slowdown import FewPerHour, network_of
from stentor.control.wanted import MadeKey
from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.ids import TierId
from stentor.people import api_keys, signups, users
from stentor.people.key_text import digest_key, hint_of, new_key
from stentor.people.signups import HeldKey, Signup, SignupAsk
from stentor.people.values import User
from stentor.store.database import Database
from stentor.vault.keyring import Keyring

PER_HOUR = 5
ANSWER_S = 0.25  # however it goes: writing a row takes longer than writing none, which would tell who is known


class Approval(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to approve: another tier, another name than the email's."""

    tier: str | None = None
    name: str | None = None


class Registration(msgspec.Struct, frozen=True):
    """What ``llmring register`` sends."""

    email: str
    organization: Annotated[str, msgspec.Meta(max_length=200)] | None = None
    project_name: Annotated[str, msgspec.Meta(max_length=100)] | None = None
    accept_terms: bool = False

    def message(self) -> str:
        """What the administrator who decides reads."""
        said = [f"organization {self.organization}"] if self.organization else []
        said += [f"project {self.project_name}"] if self.project_name else []
        return "; ".join(["From `llmring register`: approving makes the key work that the sender was given", *said])


class Signups:
    """Lives on the books' event loop."""

    def __init__(self, database: Database, books: LocalBooks, keyring: Keyring, clock: Clock, *, is_open: bool) -> None:
        self._database = database
        self._books = books
        self._keyring = keyring
        self._clock = clock
        self._open = is_open
        self._few = FewPerHour(clock, PER_HOUR)

    async def ask(self, ask: SignupAsk, address: str) -> None:
        """Take in a request; whether the email was known isn't told. Raises Refused."""
        await self._take_in(ask, address, None)

    async def _take_in(self, ask: SignupAsk, address: str, held: HeldKey | None) -> None:
        if not self._open:
            raise Refused("signup_closed", "This server takes no requests for accounts; ask its operator.")
        self._few.enter(network_of(address))
        signups.check_signup(ask)
        answer_at_s = time.monotonic() + ANSWER_S

        def work(connection: Connection) -> None:
            now_us = self._clock.now_us()
            signup = signups.add_signup(connection, ask, address, now_us)
            if signup is not None and held is not None:
                signups.hold_key(connection, signup, held)
            if signup is not None:
                actor = Actor("unknown", "api", address)
                after = {"email": signup.email, "tier": signup.tier_id}
                record_change(connection, now_us, actor, "signup_ask", ("signup", signup.id), after=after)

        try:
            await self._database.write(work)
        finally:
            await asyncio.sleep(answer_at_s - time.monotonic())

    async def register(self, wanted: Registration, address: str) -> str:
        """As :meth:`ask`, from the command line: the text of a key that works once the request is approved.

        Who is known already gets the text of one that never will, and isn't told.
        """
        text = new_key()
        held = HeldKey(wanted.project_name or "llmring", hint_of(text), digest_key(self._keyring.pepper(), text))
        await self._take_in(SignupAsk(wanted.email, message=wanted.message()), address, held)
        return text

    async def list_signups(
        self, *, state: str | None = None, before: str | None = None, limit: int = 100
    ) -> list[Signup]:
        """Requests, newest first."""
        return await self._database.read(
            lambda connection: signups.list_signups(connection, state=state, before_id=before, limit=limit)
        )

    async def approve(self, actor: Actor, signup_id: str, approval: Approval) -> tuple[Signup, User, MadeKey]:
        """Make the user and a first key, whose text is shown this once."""
        text = new_key()

        def work(connection: Connection) -> tuple[Signup, User, MadeKey]:
            now_us = self._clock.now_us()
            pending = signups.get_pending(connection, signup_id)
            name = approval.name or re.sub(r"[^A-Za-z0-9._@+-]", "-", pending.email).lstrip("._@+-")[:128]
            tier = TierId(approval.tier or pending.tier_id)
            user, project = users.add_user(connection, users.NewUser(name, pending.email, tier_id=tier), now_us)
            new = api_keys.NewKey(user.id, project.id, "first")
            key = api_keys.add_key(connection, new, text, digest_key(self._keyring.pepper(), text), now_us)
            signup = signups.decide(connection, pending, "approved", (actor.name, user.id), now_us)
            changes = [
                ("signup_approve", ("signup", signup.id), {"user": user.name}),
                ("user_create", ("user", str(user.id)), msgspec.to_builtins(user)),
                ("key_create", ("key", str(key.id)), msgspec.to_builtins(key)),
            ]
            held = signups.take_key(connection, pending)
            if held is not None:
                wanted = api_keys.NewKey(user.id, project.id, held.name)
                own = api_keys.add_known_key(connection, wanted, held.hint, held.digest, now_us)
                changes.append(("key_create", ("key", str(own.id)), msgspec.to_builtins(own)))
            for action, subject, after in changes:
                record_change(connection, now_us, actor, action, subject, after=after)
            return signup, user, MadeKey(text, key)

        made = await self._database.write(work)
        self._books.roll.changed()
        return made

    async def reject(self, actor: Actor, signup_id: str) -> Signup:
        """Say no."""

        def work(connection: Connection) -> Signup:
            now_us = self._clock.now_us()
            pending = signups.get_pending(connection, signup_id)
            signups.take_key(connection, pending)
            signup = signups.decide(connection, pending, "rejected", (actor.name, None), now_us)
            record_change(connection, now_us, actor, "signup_reject", ("signup", signup.id))
            return signup

        return await self._database.write(work)
