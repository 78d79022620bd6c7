"""A request of the LLMRing surface, read, and its answer: what passes between http and the authority."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from stentor.core.principal import Principal


class RingCall(msgspec.Struct, frozen=True):
    """``body`` is decoded JSON, ``query`` holds the last value of each parameter that isn't empty, ``params`` those of
    the path. On public routes the principal is the anonymous one.
    """

    principal: Principal
    query: Mapping[str, str] = {}
    body: Any = None
    params: Mapping[str, str] = {}
    if_none_match: str = ""


class RingAnswer(NamedTuple):
    """``content`` is a value for JSON, or bytes of another ``media_type``."""

    content: Any
    media_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 200
