"""What a model's file says of itself, in the few words that people choose models by."""

from pathlib import Path

from stentor.core.scheduler import ModelFile
from stentor.runtime.gguf import GgufHeader
from stentor.runtime.quants import read_quant

_WORD_MAX = 40
# ``general.file_type``, as llama.cpp numbers them (enum llama_ftype in include/llama.h).
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip


def describe_file(header: GgufHeader, projector: GgufHeader | None, weights: Path) -> ModelFile:
    """The facts; what the head doesn't say the file's name may."""
    return ModelFile(
        architecture=_word(header.architecture),
        parameters=describe_count(header.parameters) if header.parameters else _word(header.size_label),
        parameter_count=header.parameters,
        quant=_FILE_TYPES.get(header.file_type, "") or read_quant(weights.name),
        size_bytes=header.file_bytes + (projector.file_bytes if projector is not None else 0),
        vector_size=header.width,
    )


def _word(text: str) -> str:
    """A word of a stranger's file."""
    return "".join(letter for letter in text[:_WORD_MAX] if letter.isprintable())


def describe_count(count: int) -> str:
    """A number of parameters as people say it: ``134.5M``, ``8.0B``."""
    for size, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= size:
            return f"{count / size:.1f}{letter}"
    return str(count)
