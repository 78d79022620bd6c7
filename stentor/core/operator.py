"""A management request on its way from a worker, which has authenticated it, to the authority, which answers it."""

import msgspec


class OperatorCall(msgspec.Struct, array_like=True):
    """``actor`` is the key that asks, for the audit; ``query`` the raw query string, ``body`` the raw JSON."""

    method: str
    path: str
    query: bytes
    body: bytes
    actor: str


class OperatorAnswer(msgspec.Struct, array_like=True):
    """Status, media type and body, as they go to the client."""

    status: int
    content_type: str
    body: bytes
