"""Server-sent events as frames: cut on blank lines, never on the chunks of the network.

Follows https://html.spec.whatwg.org/multipage/server-sent-events.html as far as engines use it: ``data:`` lines and
comments, lines ended by LF or CRLF.
"""

FRAME_MAX_BYTES = 32 * 1024 * 1024


class FrameTooLarge(ValueError):
    """An engine sent more than 32 MiB without ending a frame."""


class FrameSplitter:
    """Collects bytes and hands out whole frames, each with its closing blank line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """The frames that ``chunk`` completes. Raises FrameTooLarge."""
        if b"\r" in chunk or self._rest.endswith(b"\r"):
            return self._feed_crlf(chunk)
        data = self._rest + chunk if self._rest else chunk
        frames = data.split(b"\n\n")
        self._rest = frames.pop()
        if len(self._rest) > FRAME_MAX_BYTES:
            raise FrameTooLarge(f"a frame of over {FRAME_MAX_BYTES} bytes")
        return [frame + b"\n\n" for frame in frames]

    def _feed_crlf(self, chunk: bytes) -> list[bytes]:
        data = self._rest + chunk
        # A CR at the very end may be the first half of a CRLF: leave it for the next chunk.
        held = b"\r" if data.endswith(b"\r") else b""
        data = data[: len(data) - len(held)].replace(b"\r\n", b"\n")
        frames = data.split(b"\n\n")
        self._rest = frames.pop() + held
        if len(self._rest) > FRAME_MAX_BYTES:
            raise FrameTooLarge(f"a frame of over {FRAME_MAX_BYTES} bytes")
        return [frame + b"\n\n" for frame in frames]

    @property
    def rest(self) -> bytes:
        """What is left over: non-empty at the end means that the last frame was cut."""
        return self._rest


def frame_data(frame: bytes) -> bytes | None:
    """The payload of a frame (its ``data:`` lines joined by LF), or None for a comment or an empty frame."""
    if frame.startswith(b"data:") and frame.count(b"\n") == 2:
        return frame[5:].strip()
    lines = [line[5:].strip() for line in frame.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
