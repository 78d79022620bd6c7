"""What is told of a model's file."""

from pathlib import Path

import pytest

from stentor.core.scheduler import ModelFile
from stentor.runtime.file_facts import describe_count, describe_file
from stentor.runtime.gguf import GgufHeader


def header(**fields: object) -> GgufHeader:
    base = {"architecture": "qwen3", "name": "", "trained_ctx": 4096, "file_bytes": 5_000}
    return GgufHeader(**{**base, **fields})  # type: ignore[arg-type]


def test_the_head_is_believed_before_the_name() -> None:
    facts = describe_file(header(file_type=15, parameters=8_190_000_000, width=64), None, Path("x-Q8_0.gguf"))
    assert facts == ModelFile("qwen3", "8.2B", 8_190_000_000, "Q4_K_M", 5_000, 64)


def test_the_name_helps_where_the_head_says_nothing() -> None:
    facts = describe_file(header(size_label="8x7B"), header(file_bytes=500), Path("m-UD-Q4_K_XL-00001-of-00003.gguf"))
    assert facts == ModelFile("qwen3", "8x7B", 0, "UD-Q4_K_XL", 5_500)


def test_a_strangers_words_are_short_and_can_be_printed() -> None:
    facts = describe_file(header(architecture="a\x1b[2J" + "b" * 100, file_type=999), None, Path("sha256-abc"))
    assert facts.architecture == "a[2J" + "b" * 35
    assert facts.quant == ""


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0"), (999, "999"), (1_500, "1.5K"), (134_515_008, "134.5M"), (8_030_261_248, "8.0B"), (10**12, "1.0T")],
)
def test_numbers_as_people_say_them(count: int, words: str) -> None:
    assert describe_count(count) == words
