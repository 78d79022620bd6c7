"""GGUF heads that claim a lot: what is kept of them stays small, whoever wrote the file."""

import contextlib
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from stentor.runtime import gguf_head
from stentor.runtime.gguf_head import InvalidGguf, read_head

MIB = 1 << 20
_U16, _STRING, _ARRAY = 2, 8, 9


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def head(pairs: list[bytes], tensors: list[bytes] | None = None) -> bytes:
    names = tensors or []
    return b"GGUF" + struct.pack("<IQQ", 3, len(names), len(pairs)) + b"".join(pairs) + b"".join(names)


def number_lists(count: int) -> bytes:
    body = struct.pack("<IQ", _U16, 4096) + struct.pack("<4096H", *range(30_000, 34_096))
    return head([text(b"k%d" % number) + struct.pack("<I", _ARRAY) + body for number in range(count)])


def long_texts(count: int) -> bytes:
    return head([text(b"k%d" % number) + struct.pack("<I", _STRING) + text(b"\xff" * MIB) for number in range(count)])


def long_keys(count: int) -> bytes:
    return head([text(b"%d" % number + b"x" * MIB) + struct.pack("<I", 0) + b"\1" for number in range(count)])


def long_names(count: int) -> bytes:
    tensor = struct.pack("<I", 1) + struct.pack("<Q", 1) + bytes(12)
    return head([], [text(b"%d" % number + b"x" * MIB) + tensor for number in range(count)])


def empty_texts(count: int) -> bytes:
    body = struct.pack("<IQ", _STRING, 2000) + bytes(16_000)
    return head([text(b"k%d" % number) + struct.pack("<I", _ARRAY) + body for number in range(count)])


@pytest.mark.parametrize("make", [number_lists, long_texts, long_keys, long_names], ids=lambda make: make.__name__)
def test_little_is_kept(tmp_path: Path, make: Callable[[int], bytes]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(make(60 if make is not number_lists else 2000))
    tracemalloc.start()
    try:
        with contextlib.suppress(InvalidGguf):
            read_head(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * MIB


def test_no_end_of_texts_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_head, "_TEXTS_MAX", 5000)
    path = tmp_path / "m.gguf"
    path.write_bytes(empty_texts(2))
    assert read_head(path).lengths == {"k0": 2000, "k1": 2000}
    path.write_bytes(empty_texts(3))
    with pytest.raises(InvalidGguf, match="over 5000 entries"):
        read_head(path)
