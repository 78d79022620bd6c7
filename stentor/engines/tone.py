"""The engine ``tone``: a sine for each character, always the same bytes for the same text. Needs no library.

16 kHz mono s16; each character lasts 180 ms (divided by the speed), at an amplitude of 0.35 of full scale:
220 Hz · 2^(n/12) with n the letter's place in a…z, digits after them, plus (i mod 5) · 12 Hz with i the character's
place in the text, faded in and out over 5 ms. Letters beyond a…z sound as what they derive from (é as e), others by
their code point. A space, and whatever is neither letter nor digit, is silence.
"""

import math
import unicodedata
from array import array
from collections.abc import Iterator

from stentor.core.voices import TONE, VoiceCard
from stentor.engines.host import SpeechConfig, run
from stentor.engines.speaking.sentences import PACE
from stentor.engines.speaking.synthesis import SpeakingEngine

RATE_HZ = 16_000
CHARACTER_S = 0.180
FADE_S = 0.005
AMPLITUDE = 0.35
_PEAK = 32_767
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_BASE_HZ = 220.0
_WOBBLE_HZ = 12


def frequency_of(character: str, place: int) -> float:
    """The pitch in Hz of the character at ``place``; 0 for silence."""
    if not character.isalnum():
        return 0.0
    note = _ALPHABET.find(unicodedata.normalize("NFKD", character.lower())[0])
    if note < 0:
        note = ord(character) % len(_ALPHABET)
    return _BASE_HZ * math.pow(2.0, note / 12.0) + (place % 5) * _WOBBLE_HZ


def samples_of(character: str, place: int, speed: float = 1.0) -> "array[int]":
    """The samples of one character, s16."""
    count = round(CHARACTER_S / speed * RATE_HZ)
    hertz = frequency_of(character, place)
    if not hertz:
        return array("h", bytes(2 * count))
    fade = min(round(FADE_S * RATE_HZ), count // 2)
    step = 2.0 * math.pi * hertz / RATE_HZ
    tone = (AMPLITUDE * _PEAK * math.sin(step * at) * _fade_at(at, count, fade) for at in range(count))
    return array("h", (round(level) for level in tone))


def _fade_at(at: int, count: int, fade: int) -> float:
    return min(1.0, at / fade, (count - 1 - at) / fade) if fade else 1.0


def speak_tones(text: str, first_place: int = 0, speed: float = 1.0) -> Iterator["array[int]"]:
    """The samples of ``text``, a character at a time; ``first_place`` is where it stands in the whole text."""
    for at, character in enumerate(text):
        yield samples_of(character, first_place + at, speed)


class ToneVoice:
    """The synthesizer as an engine has it."""

    def __init__(self) -> None:
        self.rate_hz = RATE_HZ
        self.voices: tuple[VoiceCard, ...] = (TONE,)
        self.pace = PACE

    def speak(self, text: str, voice: VoiceCard, speed: float, place: int) -> "Iterator[array[int]]":
        """See :class:`~stentor.engines.speaking.synthesis.Synthesizer`."""
        return speak_tones(text, place, speed)


def make(_config: SpeechConfig) -> SpeakingEngine:
    """The engine of this configuration."""
    return SpeakingEngine(ToneVoice)


if __name__ == "__main__":
    run(make)
