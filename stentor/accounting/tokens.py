"""Counting tokens where an engine reported none: OpenAI's cl100k vocabulary, an estimate for every other model."""

import warnings
from functools import cache
from typing import Any

from stentor.core.lazy import load


@cache
def _encoding() -> Any:
    # The package reads its vocabulary by a deprecated call, which is nobody's concern here.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"bpe_openai\b")
    # 60 MB once loaded: only the authority counts, and only when it first has to.
    return load("bpe_openai").get_encoding("cl100k_base")


_PIECE = 100_000  # characters; the encoder refuses a million, and a cut moves the count by a token at most


def count_tokens(text: str) -> int:
    """Tokens of ``text`` in cl100k. Takes time on long texts: call it in a thread."""
    encode = _encoding().encode_ordinary
    return sum(len(encode(text[start : start + _PIECE])) for start in range(0, len(text), _PIECE))


def count_both(input_text: str, output_text: str) -> tuple[int, int]:
    """Tokens of a prompt and of its answer."""
    return count_tokens(input_text), count_tokens(output_text)
