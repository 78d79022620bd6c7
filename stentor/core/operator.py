"""A management request on its way from a worker, which has authenticated it, to the authority, which answers it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from stentor.core.principal import Principal


class OperatorCall(msgspec.Struct, array_like=True):
    """``query`` is the raw query string, ``body`` the raw JSON; ``caller`` None: the operator, on the server's socket.

    ``address`` is where the caller is, ``accept`` the media types they want, ``if_none_match`` the entity tags they
    have, ``agent`` what their program calls itself, ``secure`` whether they came by TLS.
    """

    method: str
    path: str
    query: bytes
    body: bytes
    caller: Principal | None = None
    address: str = ""
    accept: str = ""
    if_none_match: str = ""
    agent: str = ""
    secure: bool = False


class OperatorAnswer(msgspec.Struct, array_like=True):
    """Status, media type and body, as they go to the client, and what other headers go with them."""

    status: int
    content_type: str
    body: bytes
    headers: list[tuple[str, str]] = []


Operate = Callable[[OperatorCall], Awaitable[OperatorAnswer]]
"""Has the node authority answer a management request: a call in the same process, or one over the worker's line."""


class Task(msgspec.Struct, frozen=True):
    """A management request, read: what an operation gets.

    ``actor`` and ``origin`` say who does it and by which way (``cli``, ``api``, ``console``), for the audit.
    ``creator`` is the API key that asks, if one does: what a key makes may do no more than the key itself. ``user_id``
    is whose key or session it is, empty for the operator. ``body`` is decoded JSON, ``query`` holds the last value of
    each parameter, ``params`` those of the path.
    """

    actor: str
    origin: str
    query: Mapping[str, str] = {}
    body: Any = None
    params: Mapping[str, str] = {}
    creator: str | None = None
    user_id: str = ""
    session_id: str = ""
    address: str = ""
    agent: str = ""
