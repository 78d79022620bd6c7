"""Signing in to the console: wire types and routes, for administrators and for users."""

from collections.abc import Callable
from typing import Literal

import msgspec

from stentor.http.route import Route, account, admin


class LoginRequest(msgspec.Struct, omit_defaults=True):
    """Name (or email) and password."""

    username: str
    password: str


class UserLoginRequest(msgspec.Struct, omit_defaults=True):
    """Name (or email) and password, or an API key of the user's."""

    username: str = ""
    password: str = ""
    api_key: str = ""


class SessionView(msgspec.Struct):
    """Who is asking. ``csrf_token`` goes into the header X-CSRF-Token of everything that changes something."""

    kind: Literal["admin", "user", "key", "operator"]
    user: str
    user_id: str
    must_change_password: bool
    csrf_token: str | None
    ends_us: int | None


class LoggedOut(msgspec.Struct):
    """Whether there was a session to end."""

    ended: bool


class PasswordRequest(msgspec.Struct, omit_defaults=True):
    """The present password and the one to come. Who has none yet leaves it out, with a key that nothing limits."""

    new_password: str
    password: str = ""


class PasswordChanged(msgspec.Struct):
    """The password holds; the user's other sessions have ended."""

    changed: bool


class SessionRow(msgspec.Struct):
    """One sign-in. ``current``: the caller's own; ``agent`` is what the client calls itself."""

    id: str
    kind: Literal["admin", "user"]
    user_id: str
    user: str
    created_us: int
    seen_us: int
    ends_us: int
    address: str
    agent: str
    current: bool


class SessionPage(msgspec.Struct):
    """A page of sessions, oldest first."""

    data: list[SessionRow]
    next: str | None


class SessionEnded(msgspec.Struct):
    """The session that ended."""

    ended: bool
    id: str


def _routes(make: Callable[..., Route], area: str, own: str, login: type[msgspec.Struct]) -> tuple[Route, ...]:
    """The same for both areas; ``own`` stands in the names of what is about the caller's sessions alone."""
    lists = make("GET", "/sessions", f"list_{own}sessions", "Who is signed in, oldest first.", None, SessionPage)
    return (
        make("POST", "/login", f"{area}_login", "Sign in; the session comes as a cookie.", login, SessionView)._replace(
            access="public", scope="", sign_in=True
        ),
        make("POST", "/logout", f"{area}_logout", "End the own session.", None, LoggedOut)._replace(before_change=True),
        make("GET", "/session", f"{area}_session", "Who is asking.", None, SessionView)._replace(
            before_change=True, managed=False
        ),
        make(
            "POST", "/password", f"{area}_password", "Change the own password.", PasswordRequest, PasswordChanged
        )._replace(before_change=True, sign_in=True),
        lists._replace(query=("after", "limit") if own else ("user", "after", "limit")),
        make("DELETE", "/sessions/{id}", f"end_{own}session", "End a session.", None, SessionEnded),
    )


ROUTES: tuple[Route, ...] = (
    *_routes(admin, "admin", "", LoginRequest),
    *_routes(account, "user", "own_", UserLoginRequest),
)
