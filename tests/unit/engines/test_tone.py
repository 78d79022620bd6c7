"""The tone synthesizer against a formula of its own: same text, same bytes, for ever."""

import hashlib
import math
import struct
from array import array

import pytest

from stentor.engines.speaking.encoding import little_endian
from stentor.engines.tone import speak_tones

RATE = 16_000
EACH = 2_880  # 180 ms


def expected(text: str) -> list[float]:
    """The definition once more, written from the page and not from the code: levels of full scale −1…1."""
    order = {**{chr(ord("a") + n): n for n in range(26)}, **{str(n): 26 + n for n in range(10)}}
    levels: list[float] = []
    for index, character in enumerate(text.lower()):
        if character not in order:
            levels += [0.0] * EACH
            continue
        pitch = 220 * math.exp(math.log(2) * order[character] / 12) + 12 * (index % 5)
        for n in range(EACH):
            t = n / RATE
            ramp = min(t / 0.005, (EACH - 1 - n) / RATE / 0.005, 1)
            levels.append(0.35 * ramp * math.sin(math.tau * pitch * t))
    return levels


def spoken(text: str, speed: float = 1.0) -> "array[int]":
    whole = array("h")
    for part in speak_tones(text, 0, speed):
        whole.extend(part)
    return whole


@pytest.mark.parametrize("text", ["a", "z", "Ok 42", "hello, world", "zzzzzz9"])
def test_every_sample_is_that_of_the_definition(text: str) -> None:
    made = spoken(text)
    wanted = expected(text)
    assert len(made) == len(wanted) == len(text) * EACH
    assert max(abs(got - level * 32_767) for got, level in zip(made, wanted, strict=True)) <= 0.5001


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("a", "ed6ecbfb093239f9be0e9b31a837d8585cdd636ea3fb381257065ab17e2825b0"),
        ("Ready.", "f7403104406e23b38a6b146a36c6c1df9c1ce9520a01fee98fb313311db14fcb"),
        ("hello world 2026", "385855d3f3944d9b70b8abd9f77b20e788b9275d4e575c62f96452a560f2d512"),
    ],
)
def test_the_same_text_gives_the_same_bytes(text: str, digest: str) -> None:
    data = little_endian(spoken(text))
    assert data == little_endian(spoken(text))
    assert data == struct.pack(f"<{len(data) // 2}h", *(round(level * 32_767) for level in expected(text)))
    assert hashlib.sha256(data).hexdigest() == digest


def test_spaces_and_marks_are_silence_and_letters_with_accents_sound_as_their_own() -> None:
    assert not any(spoken(" .,!"))
    assert spoken("é") == spoken("e") == spoken("E")
    assert any(spoken("日"))


def test_a_text_in_pieces_is_the_whole_text() -> None:
    parts = array("h")
    for piece, place in (("abc", 0), ("def", 3)):
        for part in speak_tones(piece, place):
            parts.extend(part)
    assert parts == spoken("abcdef")


def test_speed_changes_how_long_and_not_how_high() -> None:
    assert len(spoken("abc", 2.0)) == 3 * EACH // 2
    assert len(spoken("abc", 0.25)) == 3 * EACH * 4
    middle = slice(200, 1000)
    assert list(spoken("a", 2.0)[middle]) == list(spoken("a")[middle])
