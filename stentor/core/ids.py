"""Identifiers: typed, sortable by time, made by the server.

Request, event and row ids are UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then random bits, written as
36 lower-case characters. They sort by creation time to the millisecond, as text and as bytes.
"""

import os
import random
import time
from typing import NewType

RequestId = NewType("RequestId", str)
KeyId = NewType("KeyId", str)
UserId = NewType("UserId", str)
ProjectId = NewType("ProjectId", str)
TierId = NewType("TierId", str)
# Unique, not secret. The system's generator would be asked once a request, and gives up the interpreter each time.
_random_bits = random.Random(os.urandom(32)).getrandbits  # noqa: S311

ModelId = NewType("ModelId", str)
InstanceId = NewType("InstanceId", str)


def new_uuid7() -> str:
    """A fresh UUIDv7 as 36 characters."""
    bits = _random_bits(74)
    ms = time.time_ns() // 1_000_000
    low = bits & 0xFFFF_FFFF_FFFF
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{bits >> 62:03x}-{0x8000 | bits >> 48 & 0x3FFF:04x}-{low:012x}"


def new_request_id() -> RequestId:
    """The id of one client request: the ``x-request-id`` header and the usage event's ``request_id``."""
    return RequestId(new_uuid7())
