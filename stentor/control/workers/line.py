"""The line between a worker and the node authority: framed msgpack over an inherited socketpair.

A frame is four bytes of length (big-endian) and one msgpack array ``[number, name, payload]``. Everything that is
said within one round of the event loop goes out in one write, so that a busy worker costs few system calls.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

from stentor.core.sessions import SessionKind

FRAME_MAX_BYTES = 64 * 1024 * 1024
_LENGTH = struct.Struct(">I")
_encode = msgspec.msgpack.Encoder().encode
_decode_frame = msgspec.msgpack.Decoder(tuple[int, str, msgspec.Raw]).decode

OnFrame = Callable[[int, str, msgspec.Raw], None]


class Line(asyncio.Protocol):
    """One end of the line. ``on_frame(number, name, payload)`` is called in order; ``on_lost()`` once, at the end."""

    def __init__(self, on_frame: OnFrame, on_lost: Callable[[], None]) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._out: list[bytes] = []
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= 4:
            (size,) = _LENGTH.unpack_from(data, at)
            if size > FRAME_MAX_BYTES:
                self.close()
                return
            if end - at - 4 < size:
                break
            number, name, payload = _decode_frame(data[at + 4 : at + 4 + size])
            at += 4 + size
            self._on_frame(number, name, payload)
        self._rest = data[at:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self._on_lost()

    def send(self, number: int, name: str, payload: Any) -> None:
        """Say something; it leaves at the end of this round of the loop. Nothing happens on a lost line."""
        if self.lost:
            return
        frame = _encode((number, name, payload))
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(_LENGTH.pack(len(frame)))
        self._out.append(frame)

    def _flush(self) -> None:
        if self._transport is not None and not self.lost:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def close(self) -> None:
        """Say what is waiting to be said, then hang up."""
        self._flush()
        if self._transport is not None:
            self._transport.close()


class RefusalWire(msgspec.Struct, array_like=True):
    """A Refused on its way over the line."""

    code: str
    message: str
    param: str | None
    retry_after_s: float | None
    details: dict[str, Any]


class Withdrawal(msgspec.Struct, array_like=True):
    """The worker no longer waits for its ``open``: whatever came of it is given back."""

    number: int
    request_id: str
    attempt: int


class StartOrder(msgspec.Struct, array_like=True):
    """``Scheduler.start``'s arguments."""

    model: str
    instances: int


class SessionQuestion(msgspec.Struct, array_like=True):
    """``SessionBook.find_session``'s arguments."""

    digest: bytes
    kind: SessionKind
