"""The head of a GGUF file: enough to know what a model can hold and what its cache costs.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian). Only the small
values before the tokenizer's long lists are read.
"""

import re
import struct
from pathlib import Path
from typing import BinaryIO

import msgspec

from stentor.core.errors import StentorError

_MAGIC = b"GGUF"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_PAIRS_MAX = 65_536
_STRING_MAX_BYTES = 1 << 24
_ARRAY_MAX = 4_096

Scalar = int | float | str | bool
Value = Scalar | list[int]


class InvalidGguf(StentorError):
    """The file is no GGUF file, or ends too early; the text says which."""


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """``trained_ctx`` is the longest context the model was trained for, ``kv_elements`` the cache's numbers per token,
    ``file_bytes`` the size of the weights; 0 where the file doesn't say. ``has_pooling``: it says how to pool.
    """

    architecture: str
    name: str
    trained_ctx: int
    kv_elements: int
    file_bytes: int
    has_pooling: bool = False


def read_header(path: Path) -> GgufHeader:
    """Read the head of ``path``. Raises OSError and InvalidGguf."""
    with path.open("rb") as file:
        pairs = _read_pairs(file)
    architecture = str(pairs.get("general.architecture", ""))
    return GgufHeader(
        architecture=architecture,
        name=str(pairs.get("general.name", "")),
        trained_ctx=_integer(pairs, f"{architecture}.context_length"),
        kv_elements=count_kv_elements(architecture, pairs),
        file_bytes=count_file_bytes(path),
        has_pooling=f"{architecture}.pooling_type" in pairs,
    )


def count_file_bytes(path: Path) -> int:
    """The size of a model on disk, all of its shards together. Raises OSError."""
    shard = _SHARD.fullmatch(path.name)
    if shard is None:
        return path.stat().st_size
    names = (f"{shard[1]}-{number:05d}-of-{shard[2]}.gguf" for number in range(1, int(shard[2]) + 1))
    return sum(path.with_name(name).stat().st_size for name in names)


def count_kv_elements(architecture: str, pairs: dict[str, Value]) -> int:
    """Numbers in the cache per token: Σ over layers of KV heads × (key length + value length).

    A missing KV head count means one per head, missing lengths embedding length / heads, as llama.cpp reads them.
    """
    layers = _integer(pairs, f"{architecture}.block_count")
    heads = max(1, _first(pairs.get(f"{architecture}.attention.head_count")))
    head_size = _integer(pairs, f"{architecture}.embedding_length") // heads
    key = _integer(pairs, f"{architecture}.attention.key_length") or head_size
    value = _integer(pairs, f"{architecture}.attention.value_length") or head_size
    kv_heads = pairs.get(f"{architecture}.attention.head_count_kv")
    total_heads = sum(kv_heads) if isinstance(kv_heads, list) else layers * (_first(kv_heads) or heads)
    return total_heads * (key + value)


def _integer(pairs: dict[str, Value], key: str) -> int:
    value = pairs.get(key)
    return value if isinstance(value, int) and value > 0 else 0


def _first(value: Value | None) -> int:
    if isinstance(value, list):
        return max(value, default=0)
    return value if isinstance(value, int) else 0


def _read_pairs(file: BinaryIO) -> dict[str, Value]:
    if _read(file, 4) != _MAGIC:
        raise InvalidGguf("it does not begin with 'GGUF'.")
    version, _tensors, count = struct.unpack("<IQQ", _read(file, 20))
    if version not in (2, 3):
        raise InvalidGguf(f"its GGUF version is {version}; 2 and 3 are understood.")
    if count > _PAIRS_MAX:
        raise InvalidGguf(f"it claims {count} metadata entries.")
    pairs: dict[str, Value] = {}
    for _ in range(count):
        key = _read_string(file)
        if key.startswith("tokenizer."):
            break
        value = _read_value(file, struct.unpack("<I", _read(file, 4))[0])
        if value is not None:
            pairs[key] = value
    return pairs


def _read_value(file: BinaryIO, kind: int) -> Value | None:
    if kind == _STRING:
        return _read_string(file)
    if kind == _ARRAY:
        return _read_array(file)
    return _read_scalar(file, kind)


def _read_scalar(file: BinaryIO, kind: int) -> int | float | bool:
    if kind not in _SCALARS:
        raise InvalidGguf(f"it holds a value of unknown type {kind}.")
    layout = _SCALARS[kind]
    number: int | float | bool = struct.unpack(layout, _read(file, struct.calcsize(layout)))[0]
    return number


def _read_array(file: BinaryIO) -> list[int] | None:
    kind, count = struct.unpack("<IQ", _read(file, 12))
    if count > _STRING_MAX_BYTES:
        raise InvalidGguf(f"it holds a list of {count} entries.")
    if kind == _STRING:
        for _ in range(count):
            _read_string(file)
        return None
    if kind not in _SCALARS:
        raise InvalidGguf(f"it holds a list of unknown type {kind}.")
    data = _read(file, count * struct.calcsize(_SCALARS[kind]))
    if count > _ARRAY_MAX:
        return None
    return [int(number) for (number,) in struct.iter_unpack(_SCALARS[kind], data)]


def _read_string(file: BinaryIO) -> str:
    size = struct.unpack("<Q", _read(file, 8))[0]
    if size > _STRING_MAX_BYTES:
        raise InvalidGguf(f"it holds a text of {size} bytes.")
    return _read(file, size).decode(errors="replace")


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise InvalidGguf("it ends in the middle of its head; the download was cut off.")
    return data
