"""Identifiers: typed, sortable by time, made by the server.

Request, event and row ids are UUIDv7 (RFC 9562 §5.7): 48 bits of Unix milliseconds, then random bits, written as
36 lower-case characters. They sort by creation time to the millisecond, as text and as bytes.
"""

import os
import time
from typing import NewType

RequestId = NewType("RequestId", str)
KeyId = NewType("KeyId", str)
UserId = NewType("UserId", str)
ProjectId = NewType("ProjectId", str)
TierId = NewType("TierId", str)
ModelId = NewType("ModelId", str)
InstanceId = NewType("InstanceId", str)


def new_uuid7() -> str:
    """A fresh UUIDv7 as 36 characters."""
    ms = time.time_ns() // 1_000_000
    tail = os.urandom(10)
    rand_a = ((tail[0] & 0x0F) << 8) | tail[1]
    rand_b = int.from_bytes(tail[2:], "big") & 0x3FFF_FFFF_FFFF_FFFF
    number = (ms << 80) | (0x7 << 76) | (rand_a << 64) | (0b10 << 62) | rand_b
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def new_request_id() -> RequestId:
    """The id of one client request: the ``x-request-id`` header and the usage event's ``request_id``."""
    return RequestId(new_uuid7())
