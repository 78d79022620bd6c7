"""The operations on sessions, as JSON rows. A row's ``_session`` is for the cookie: a token, or empty to end it."""

import msgspec

from stentor.control.people.sessions import Sessions, SignedIn
from stentor.control.reading import Operation, Row, actor_of, limit_of, page_of, read_body, text_of
from stentor.core.errors import Refused
from stentor.core.ids import UserId
from stentor.core.operator import Task
from stentor.core.sessions import SessionKind
from stentor.people.sessions import Session


class _Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    username: str = ""
    password: str = ""
    api_key: str = ""


class _Password(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    new_password: str
    password: str = ""


class SessionOperations:
    """Signing in and out, for administrators and for users."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "admin_login": lambda task: self._login(task, "admin"),
            "user_login": lambda task: self._login(task, "user"),
            "admin_logout": self.logout,
            "user_logout": self.logout,
            "admin_password": self.change_password,
            "user_password": self.change_password,
            "list_sessions": lambda task: self._list(task, text_of(task.query, "user")),
            "list_own_sessions": lambda task: self._list(task, task.user_id),
            "end_session": lambda task: self._end(task, None),
            "end_own_session": lambda task: self._end(task, UserId(task.user_id)),
        }

    async def _login(self, task: Task, kind: SessionKind) -> Row:
        ask = read_body(task.body, _Login)
        place = (task.address, task.agent)
        if kind == "user" and ask.api_key:
            return _signed_in(await self._sessions.exchange(ask.api_key, place))
        if not ask.username or not ask.password:
            raise Refused("invalid_request", "Sign in with username and password.", param="username")
        return _signed_in(await self._sessions.sign_in(ask.username, ask.password, kind, place))

    async def logout(self, task: Task) -> Row:
        """End the caller's own session; one with a key has none, and that is fine."""
        if task.session_id:
            await self._sessions.end(actor_of(task), task.session_id)
        return {"ended": bool(task.session_id), "_session": ""}

    async def change_password(self, task: Task) -> Row:
        """Change the caller's own password."""
        ask = read_body(task.body, _Password)
        if not task.user_id:
            raise Refused("invalid_request", "The operator has no password of their own; use `stentor users passwd`.")
        await self._sessions.change_password(
            actor_of(task), UserId(task.user_id), ask.password, ask.new_password,
            keep=task.session_id, key_id=task.creator,
        )  # fmt: skip
        return {"changed": True}

    async def _list(self, task: Task, user: str | None) -> Row:
        limit = limit_of(task.query)
        found = await self._sessions.list_sessions(user=user, after=text_of(task.query, "after") or "", limit=limit)
        rows = [_row(session, name, task.session_id) for session, name in found]
        return page_of(rows, found[-1][0].id if len(found) == limit else None)

    async def _end(self, task: Task, user_id: UserId | None) -> Row:
        session = await self._sessions.end(actor_of(task), task.params["id"], user_id)
        return {"ended": True, "id": session.id}


def _row(session: Session, name: str, own: str) -> Row:
    return {
        **msgspec.to_builtins(session),
        "user": name,
        "ends_us": session.ends_us(),
        "current": session.id == own,
    }


def _signed_in(signed_in: SignedIn) -> Row:
    card = signed_in.card
    return {
        "_session": signed_in.token,
        "user": card.user_name,
        "user_id": card.user_id,
        "kind": card.kind,
        "must_change_password": card.must_change,
        "ends_us": card.ends_us,
    }
