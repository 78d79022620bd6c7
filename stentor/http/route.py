"""One row of the surface: a method on a path, who may call it, and what goes in and out."""

from typing import Any, Literal, NamedTuple

from stentor.http.errors import Envelope

Access = Literal["public", "key", "user", "admin", "metrics"]
"""``public``: anyone. ``key``: an API key with the route's scope. ``user``: any API key, or a user's session, about the
caller's own things. ``admin``: a key with the scope ``admin``, an administrator's session, or the operator on the
server's own socket. ``metrics``: as ``admin``, and anyone on this machine while the server listens on
loopback alone."""


class Route(NamedTuple):
    """One method on one path. ``request`` and ``response`` are wire types, or None for other media types.

    ``streams``: it answers with events where it is asked to; ``answers``: a model answers it, whole. ``also`` are
    media types that ``Accept`` may ask for instead, ``query`` the parameters after the question mark.
    A path parameter ``{rest}`` or ``{model_name}`` takes the rest of the path. ``managed`` routes are answered by the
    node authority, with the operation whose name is ``handler``. ``sign_in``: a password comes with it, so the way must
    be safe; ``form``: the request is multipart/form-data; ``before_change``: a session may call it while its generated
    password must be changed first.
    """

    method: str
    path: str
    handler: str
    access: Access
    summary: str
    scope: str = ""
    request: Any = None
    response: Any = None
    envelope: Envelope = "openai"
    media_type: str = "application/json"
    streams: bool = False
    also: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    managed: bool = False
    answers: bool = False
    sign_in: bool = False
    before_change: bool = False
    form: bool = False


def admin(method: str, path: str, handler: str, summary: str, request: Any = None, response: Any = None) -> Route:
    """A management call below ``/admin/api``."""
    return Route(
        method, "/admin/api" + path, handler, "admin", summary, "admin", request, response, "detail", managed=True
    )


def listing(path: str, handler: str, summary: str, response: Any, *query: str) -> Route:
    """A paged listing below ``/admin/api``."""
    return admin("GET", path, handler, summary, None, response)._replace(query=(*query, "after", "limit"))


def account(method: str, path: str, handler: str, summary: str, request: Any = None, response: Any = None) -> Route:
    """A call below ``/user/api``, about the caller's own things."""
    return Route(method, "/user/api" + path, handler, "user", summary, "", request, response, "detail", managed=True)
