"""The operations on requests for accounts, as JSON rows."""

import msgspec

from stentor.control.people.signups import Approval, Registration, Signups
from stentor.control.reading import Operation, Row, actor_of, limit_of, page_of, read_body, text_of
from stentor.core.errors import Refused
from stentor.core.operator import Task
from stentor.people.signups import SignupAsk


class SignupOperations:
    """Who wants in, and what administrators answer."""

    def __init__(self, signups: Signups) -> None:
        self._signups = signups

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "ask_signup": self.ask_signup,
            "register_cli": self.register_cli,
            "list_signups": self.list_signups,
            "approve_signup": self.approve_signup,
            "reject_signup": self.reject_signup,
        }

    async def ask_signup(self, task: Task) -> Row:
        """Take in a request for an account; the same answer for known emails."""
        await self._signups.ask(read_body(task.body, SignupAsk), task.address)
        return {"status": "pending", "detail": "Thank you. An administrator decides, and sends you a key."}

    async def register_cli(self, task: Task) -> Row:
        """Take in a request for an account from llmring's command line."""
        wanted = read_body(task.body, Registration)
        if not wanted.accept_terms:
            raise Refused("invalid_request", "The terms have to be accepted: 'accept_terms'.", param="accept_terms")
        return {"api_key": await self._signups.register(wanted, task.address), "api_key_active": False}

    async def list_signups(self, task: Task) -> Row:
        """Requests for accounts."""
        limit = limit_of(task.query)
        state = text_of(task.query, "state")
        found = await self._signups.list_signups(state=state, before=text_of(task.query, "after"), limit=limit)
        return page_of([msgspec.to_builtins(one) for one in found], found[-1].id if len(found) == limit else None)

    async def approve_signup(self, task: Task) -> Row:
        """Let somebody in: the user, and a key with its text this once."""
        approval = read_body(task.body, Approval)
        signup, user, made = await self._signups.approve(actor_of(task), task.params["id"], approval)
        return {
            "signup": msgspec.to_builtins(signup),
            "user": {**msgspec.to_builtins(user), "balance_nano": 0},
            "key": made.row(),
        }

    async def reject_signup(self, task: Task) -> Row:
        """Say no."""
        row: Row = msgspec.to_builtins(await self._signups.reject(actor_of(task), task.params["id"]))
        return row
