"""Writes a whole language model of a few hundred KB with made-up weights: loads in no time on any CPU.

A byte-level vocabulary and one llama layer in f32 (no quantized kernels, which some builds of llama.cpp compile for
newer processors than the machine has). Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3.

It says small letters alone, however it is asked: made-up weights that may say anything say, on some processors, what
llama-server's own parser of answers refuses with status 500. For that the first number of every vector is always 1, no
layer changes it, and whatever isn't a letter gets a score that is far below zero from it.

Where answers have to last, however quick the processor is, ``idle`` makes each token cost work: that many more numbers
in the layer's middle, all of them zero, which change nothing of what is said.
"""

import struct
from pathlib import Path

_U32, _F32, _STRING, _ARRAY, _I32 = 4, 6, 8, 9, 5
_ALIGN = 32
_WIDTH, _HIDDEN, _HEADS = 64, 128, 2
_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), "▁"]
_LETTERS = frozenset(f"<0x{number:02X}>" for number in b"abcdefghijklmnopqrstuvwxyz")
_UNKNOWN, _CONTROL, _NORMAL, _BYTE = 2, 3, 1, 6


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _pair(key: str, kind: int, data: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + data


def _u32(key: str, number: int) -> bytes:
    return _pair(key, _U32, struct.pack("<I", number))


def _list(key: str, kind: int, items: list[bytes]) -> bytes:
    return _pair(key, _ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(items))


def _metadata(trained_ctx: int, idle: int) -> list[bytes]:
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *([_BYTE] * 256), _NORMAL]
    return [
        _pair("general.architecture", _STRING, _string("llama")),
        _pair("general.name", _STRING, _string("tiny")),
        _u32("llama.context_length", trained_ctx),
        _u32("llama.embedding_length", _WIDTH),
        _u32("llama.block_count", 1),
        _u32("llama.feed_forward_length", _HIDDEN + idle),
        _u32("llama.attention.head_count", _HEADS),
        _u32("llama.attention.head_count_kv", _HEADS),
        _u32("llama.rope.dimension_count", _WIDTH // _HEADS),
        _pair("llama.attention.layer_norm_rms_epsilon", _F32, struct.pack("<f", 1e-5)),
        _pair("tokenizer.ggml.model", _STRING, _string("llama")),
        _list("tokenizer.ggml.tokens", _STRING, [_string(token) for token in _TOKENS]),
        _list("tokenizer.ggml.scores", _F32, [struct.pack("<f", 0.0)] * len(_TOKENS)),
        _list("tokenizer.ggml.token_type", _I32, [struct.pack("<i", kind) for kind in kinds]),
        _u32("tokenizer.ggml.bos_token_id", 1),
        _u32("tokenizer.ggml.eos_token_id", 2),
        _u32("tokenizer.ggml.unknown_token_id", 0),
    ]


def _tensors(idle: int) -> list[tuple[str, tuple[int, ...]]]:
    square, up, down = (_WIDTH, _WIDTH), (_WIDTH, _HIDDEN + idle), (_HIDDEN + idle, _WIDTH)
    return [
        ("token_embd.weight", (_WIDTH, len(_TOKENS))),
        ("output_norm.weight", (_WIDTH,)),
        ("output.weight", (_WIDTH, len(_TOKENS))),
        ("blk.0.attn_norm.weight", (_WIDTH,)),
        ("blk.0.attn_q.weight", square),
        ("blk.0.attn_k.weight", square),
        ("blk.0.attn_v.weight", square),
        ("blk.0.attn_output.weight", square),
        ("blk.0.ffn_norm.weight", (_WIDTH,)),
        ("blk.0.ffn_gate.weight", up),
        ("blk.0.ffn_up.weight", up),
        ("blk.0.ffn_down.weight", down),
    ]


def _weights(name: str, shape: tuple[int, ...]) -> bytes:
    if name.endswith("norm.weight"):
        return struct.pack("<f", 1.0) * shape[0]
    columns, rows = shape
    if name.startswith("blk.0.ffn_") and _HIDDEN not in shape:
        return _with_zeros(name, columns, rows)
    numbers = [((index * 2654435761) % 997) / 4985 - 0.1 for index in range(columns * rows)]
    if name == "token_embd.weight":
        numbers[::columns] = [1.0] * rows
    elif name == "output.weight":
        numbers[::columns] = [0.0 if _TOKENS[row] in _LETTERS else -10.0 for row in range(rows)]
    elif name.endswith(("attn_output.weight", "ffn_down.weight")):
        numbers[:columns] = [0.0] * columns
    return struct.pack(f"<{len(numbers)}f", *numbers)


def _with_zeros(name: str, columns: int, rows: int) -> bytes:
    """A tensor of the layer's middle with as many more zeros as it is too large."""
    number = struct.calcsize("<f")
    if columns == _WIDTH:
        whole = _weights(name, (columns, _HIDDEN))
        return whole + b"\0" * (number * columns * (rows - _HIDDEN))
    whole, length = _weights(name, (_HIDDEN, rows)), number * _HIDDEN
    zeros = b"\0" * (number * (columns - _HIDDEN))
    return b"".join(whole[at : at + length] + zeros for at in range(0, len(whole), length))


def write_tiny_gguf(path: Path, trained_ctx: int = 2048, *, idle: int = 0) -> Path:
    """Write the model to ``path``, whose folder exists, and return it."""
    metadata = _metadata(trained_ctx, idle)
    infos, blobs, offset = [], [], 0
    for name, shape in _tensors(idle):
        blob = _weights(name, shape)
        blob += b"\0" * (-len(blob) % _ALIGN)
        infos.append(
            _string(name)
            + struct.pack("<I", len(shape))
            + struct.pack(f"<{len(shape)}Q", *shape)
            + struct.pack("<IQ", 0, offset)
        )
        blobs.append(blob)
        offset += len(blob)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(metadata)) + b"".join(metadata) + b"".join(infos)
    path.write_bytes(head + b"\0" * (-len(head) % _ALIGN) + b"".join(blobs))
    return path
