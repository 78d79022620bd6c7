"""Reads the head of a GGUF file, whoever wrote it: small values, the lengths of long lists, the tensors' shapes.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). A file may lie
about everything: each number is bounded before it is believed, and the head as a whole before it is read.
"""

import struct
from pathlib import Path
from typing import BinaryIO

import msgspec

from stentor.core.errors import StentorError

_MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_PAIRS_MAX = 65_536
_TENSORS_MAX = 65_536
_TEXT_MAX_BYTES = 1 << 24
_LIST_MAX = 1 << 22
_KEPT_MAX = 4_096
_NAME_MAX_BYTES = 1 << 16
_TEXT_KEPT_BYTES = 1 << 12
_TEXTS_MAX = 1 << 22
_KEPT_BYTES_MAX = 1 << 24
_OBJECT_BYTES = 64
_HEAD_MAX_BYTES = 1 << 28
_READ_BYTES = 1 << 18

Scalar = int | float | str | bool
Value = Scalar | list[int]


class InvalidGguf(StentorError):
    """The file is no GGUF file, or ends too early; the text says which."""


class Head(msgspec.Struct, frozen=True):
    """``pairs`` are the values by key, without lists of texts and long lists; ``lengths`` how long those lists are;
    ``shapes`` the tensors' dimensions by name, the fastest first."""

    pairs: dict[str, Value]
    lengths: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    file_bytes: int


def read_head(path: Path, *, quick: bool = False) -> Head:
    """Read the head of ``path``; ``quick``: up to the tokenizer's long lists alone. Raises OSError and InvalidGguf."""
    with path.open("rb") as file:
        reader = _Reader(file)
        if reader.take(4) != _MAGIC:
            raise InvalidGguf("it does not begin with 'GGUF'.")
        version, tensors, count = reader.unpack("<IQQ")
        if version not in (2, 3):
            raise InvalidGguf(f"its GGUF version is {version}; 2 and 3 are understood.")
        if count > _PAIRS_MAX or tensors > _TENSORS_MAX:
            raise InvalidGguf(f"it claims {count} metadata entries and {tensors} tensors.")
        pairs: dict[str, Value] = {}
        lengths: dict[str, int] = {}
        for _ in range(count):
            key = reader.name()
            if quick and key.startswith("tokenizer."):
                break
            _read_value(reader, key, pairs, lengths)
        shapes = {} if quick else dict(_read_tensor(reader) for _ in range(tensors))
    return Head(pairs, lengths, shapes, path.stat().st_size)


class _Reader:
    """Reads forward, in pieces, and never past the longest head there can be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = b""
        self._at = 0
        self._before = 0
        self._kept_bytes = 0
        self._texts = 0

    @property
    def position(self) -> int:
        """How many bytes were taken."""
        return self._before + self._at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes. Raises InvalidGguf where there are fewer."""
        self._need(size)
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def unpack(self, layout: str) -> tuple[int, ...]:
        """The next numbers."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def name(self) -> str:
        """The next text, of one that names something."""
        size = self._text_size()
        if size > _NAME_MAX_BYTES:
            raise InvalidGguf(f"it holds a name of {size} bytes.")
        self.note_kept(size)
        return self.take(size).decode(errors="replace")

    def text(self) -> str:
        """The beginning of the next text: what follows is of no use here."""
        size = self._text_size()
        kept = min(size, _TEXT_KEPT_BYTES)
        self.note_kept(kept)
        text = self.take(kept).decode(errors="replace")
        self.skip(size - kept)
        return text

    def note_kept(self, size: int) -> None:
        """So much of the head is kept. Raises InvalidGguf where that is more than any model needs."""
        self._kept_bytes += size + _OBJECT_BYTES
        if self._kept_bytes > _KEPT_BYTES_MAX:
            raise InvalidGguf(f"its names and values are over {_KEPT_BYTES_MAX} bytes.")

    def skip(self, size: int) -> None:
        """Pass over ``size`` bytes."""
        while size > 0:
            piece = min(size, _READ_BYTES)
            self._need(piece)
            self._at += piece
            size -= piece

    def skip_texts(self, count: int) -> None:
        """Pass over ``count`` texts."""
        self._texts += count
        if self._texts > _TEXTS_MAX:
            raise InvalidGguf(f"its lists hold over {_TEXTS_MAX} entries.")
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if len(self._data) - self._at < 8:
                self._need(8)
            size = unpack(self._data, self._at)[0]
            self._at += 8
            if size > len(self._data) - self._at:
                if size > _TEXT_MAX_BYTES:
                    raise InvalidGguf(f"it holds a text of {size} bytes.")
                self.skip(size)
            else:
                self._at += size

    def _text_size(self) -> int:
        size: int = struct.unpack("<Q", self.take(8))[0]
        if size > _TEXT_MAX_BYTES:
            raise InvalidGguf(f"it holds a text of {size} bytes.")
        return size

    def _need(self, size: int) -> None:
        missing = size - (len(self._data) - self._at)
        if missing <= 0:
            return
        if self.position + size > _HEAD_MAX_BYTES:
            raise InvalidGguf(f"its head is over {_HEAD_MAX_BYTES} bytes.")
        more = self._file.read(max(missing, _READ_BYTES))
        if len(more) < missing:
            raise InvalidGguf("it ends in the middle of its head; the download was cut off.")
        self._before += self._at
        self._data = self._data[self._at :] + more
        self._at = 0


def _read_value(reader: _Reader, key: str, pairs: dict[str, Value], lengths: dict[str, int]) -> None:
    kind = reader.unpack("<I")[0]
    if kind == _STRING:
        pairs[key] = reader.text()
    elif kind == _ARRAY:
        _read_list(reader, key, pairs, lengths)
    else:
        pairs[key] = reader.unpack(_layout(kind))[0]


def _layout(kind: int) -> str:
    if kind not in _SCALARS:
        raise InvalidGguf(f"it holds a value of unknown type {kind}.")
    return _SCALARS[kind]


def _read_list(reader: _Reader, key: str, pairs: dict[str, Value], lengths: dict[str, int]) -> None:
    kind, count = reader.unpack("<IQ")
    if count > _LIST_MAX:
        raise InvalidGguf(f"it holds a list of {count} entries.")
    lengths[key] = count
    if kind == _STRING:
        reader.skip_texts(count)
        return
    layout = _layout(kind)
    size = count * struct.calcsize(layout)
    if count > _KEPT_MAX or layout in ("<f", "<d"):
        reader.skip(size)
        return
    reader.note_kept(count * _OBJECT_BYTES)
    pairs[key] = [int(number) for (number,) in struct.iter_unpack(layout, reader.take(size))]


def _read_tensor(reader: _Reader) -> tuple[str, tuple[int, ...]]:
    name = reader.name()
    dimensions = reader.unpack("<I")[0]
    if dimensions > 8:
        raise InvalidGguf(f"its tensor {name[:64]!r} has {dimensions} dimensions.")
    shape = reader.unpack(f"<{dimensions}Q")
    reader.take(12)
    return name, shape
