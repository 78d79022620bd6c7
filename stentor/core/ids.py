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
_VERSION_AND_VARIANT = (0x7 << 76) | (0b10 << 62)
_LOW_62 = (1 << 62) - 1
# Unique, not secret. The system's generator would be asked once a request, and gives up the interpreter each time.
_random_bits = random.Random(os.urandom(32)).getrandbits  # noqa: S311

ModelId = NewType("ModelId", str)
InstanceId = NewType("InstanceId", str)


def new_uuid7() -> str:
    """A fresh UUIDv7 as 36 characters."""
    bits = _random_bits(74)
    number = (time.time_ns() // 1_000_000 << 80) | _VERSION_AND_VARIANT | (bits >> 62 << 64) | (bits & _LOW_62)
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_request_id() -> RequestId:
    """The id of one client request: the ``x-request-id`` header and the usage event's ``request_id``."""
    return RequestId(new_uuid7())
