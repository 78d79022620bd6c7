"""``multipart/form-data``, read as it comes: nothing of a file is kept, and everything else is bounded."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from stentor.core.errors import Refused

PARTS_MAX = 64
HEAD_MAX_BYTES = 8 * 1024
_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")


class PartHead(NamedTuple):
    """What begins: a field's name, and whether it is a file."""

    name: str
    is_file: bool


class PartEnd(NamedTuple):
    """The part that began last is whole."""


Event = PartHead | bytes | PartEnd


class MultipartReader:
    """Takes a body as it comes and tells what is in it; holds no more of it than a boundary or a part's head."""

    def __init__(self, content_type: bytes | None) -> None:
        """Raises Refused where a body of this type has no parts."""
        self._mark = b"\r\n--" + _read_boundary(content_type)
        # The first boundary may stand without a line before it.
        self._held = b"\r\n"
        self._in_part = False
        self._parts = 0
        self.is_over = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """More of the body. Raises Refused for what is none. What follows the last boundary is nobody's."""
        if self.is_over:
            return
        self._held += data
        while not self.is_over:
            event = self._next_content() if self._in_part else self._next_head()
            if event is None:
                return
            if event != b"":
                yield event

    def finish(self) -> None:
        """The body is over. Raises Refused where it is not complete."""
        if not self.is_over:
            raise _bad("it ends before its last boundary")

    def _next_content(self) -> Event | None:
        at = self._held.find(self._mark)
        if at < 0:
            # All but what may be the beginning of a boundary.
            keep = len(self._mark) - 1
            whole, self._held = self._held[:-keep], self._held[-keep:]
            return whole or None
        if at > 0:
            whole, self._held = self._held[:at], self._held[at:]
            return whole
        self._in_part = False
        return PartEnd()

    def _next_head(self) -> Event | None:
        at = self._held.find(self._mark)
        if at != 0:
            if at > 0 or len(self._held) > HEAD_MAX_BYTES:
                if self._parts or at < 0:
                    raise _bad("something else stands where a boundary should be")
                self._held = self._held[at:]  # a preamble, to be ignored
            else:
                return None
        after = len(self._mark)
        if self._held[after : after + 2] == b"--":
            self.is_over = True
            self._held = b""
            return None
        end = self._held.find(b"\r\n\r\n", after)
        if end < 0:
            if len(self._held) > after + HEAD_MAX_BYTES:
                raise _bad(f"a part's head is over {HEAD_MAX_BYTES // 1024} KiB")
            return None
        head, self._held = self._held[after : end + 2], self._held[end + 4 :]
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise _bad(f"it has more than {PARTS_MAX} parts")
        self._in_part = True
        return _read_head(head)


def _read_boundary(content_type: bytes | None) -> bytes:
    kind, _, rest = (content_type or b"").decode("latin-1").partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise Refused("invalid_request", "Send the file as multipart/form-data, in the field 'file'.")
    found = re.search(r"(?:^|;)\s*boundary=(?:\"([^\"]*)\"|([^;\s]+))", rest, re.IGNORECASE)
    boundary = (found[1] or found[2] or "") if found else ""
    if not _BOUNDARY.fullmatch(boundary):
        raise _bad("its Content-Type names no boundary")
    return boundary.encode("latin-1")


def _read_head(head: bytes) -> PartHead:
    for line in head.decode("utf-8", "replace").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() != "content-disposition":
            continue
        found = re.search(r";\s*name=(?:\"((?:[^\"\\]|\\.)*)\"|([^;\s]+))", value)
        if found is None:
            break
        return PartHead((found[1] or found[2] or "")[:200], re.search(r";\s*filename\*?=", value) is not None)
    raise _bad("a part has no name")


def _bad(problem: str) -> Refused:
    return Refused("invalid_request", f"The body is no multipart/form-data that can be read: {problem}.")
