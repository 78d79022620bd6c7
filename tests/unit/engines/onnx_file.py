"""Just enough of the ONNX format to write a model by hand: messages of varints and byte strings."""

from pathlib import Path

import numpy

FLOAT, INT32 = 1, 6


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def text(field: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return varint(field << 3 | 2) + varint(len(data)) + data


def tensor(name: str, values: "numpy.ndarray") -> bytes:
    dims = b"".join(number(1, size) for size in values.shape)
    return text(5, dims + number(2, FLOAT) + text(8, name) + text(9, values.astype("<f4").tobytes()))


def value(field: int, name: str, kind: int, *dims: str | int) -> bytes:
    shape = b"".join(text(1, number(1, size) if isinstance(size, int) else text(2, size)) for size in dims)
    return text(field, text(1, name) + text(2, text(1, number(1, kind) + text(2, shape))))


def node(operation: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    known = b"".join(text(5, text(1, name) + number(3, whole) + number(20, 2)) for name, whole in attributes.items())
    return text(1, b"".join(text(1, name) for name in inputs) + text(2, output) + text(4, operation) + known)


def write_sense_voice(folder: Path, says: int) -> Path:
    """A SenseVoice that hears token ``says`` in whatever it is given, with its tokens."""
    tokens = ["<blk>", "<|en|>", "<|NEUTRAL|>", "<|Speech|>", "<|withitn|>", "▁hello", "▁there"]
    words, width = len(tokens), 560
    head = numpy.zeros((1, 4, words), numpy.float32)
    for place in range(4):
        head[0, place, place + 1] = 9.0
    bias = numpy.zeros(words, numpy.float32)
    bias[says] = 9.0
    graph = (
        node("MatMul", ["x", "weights"], "scores")
        + node("Add", ["scores", "bias"], "body")
        + node("Concat", ["head", "body"], "logits", axis=1)
        + text(2, "sense_voice")
        + tensor("weights", numpy.zeros((width, words), numpy.float32))
        + tensor("bias", bias)
        + tensor("head", head)
        + value(11, "x", FLOAT, "N", "T", width)
        + b"".join(value(11, name, INT32, "N") for name in ("x_length", "language", "text_norm"))
        + value(12, "logits", FLOAT, "N", "L", words)
    )
    facts = {
        "vocab_size": words, "lfr_window_size": 7, "lfr_window_shift": 6, "normalize_samples": 0, "with_itn": 14,
        "without_itn": 15, "lang_auto": 0, "lang_zh": 3, "lang_en": 4, "lang_yue": 7, "lang_ja": 11, "lang_ko": 12,
        "neg_mean": ",".join(["0"] * width), "inv_stddev": ",".join(["1"] * width), "model_type": "sense_voice_ctc",
    }  # fmt: skip
    model = number(1, 8) + text(7, graph) + text(8, text(1, "") + number(2, 13))
    model += b"".join(text(14, text(1, name) + text(2, str(fact))) for name, fact in facts.items())
    (folder / "model.onnx").write_bytes(model)
    (folder / "tokens.txt").write_text("".join(f"{each} {place}\n" for place, each in enumerate(tokens)), "utf-8")
    return folder
