"""What Kokoro reads: nothing of a language that its vocabulary lacks is left unsaid."""

import phonemizer
import pytest
from kokoro_onnx.tokenizer import Tokenizer

from stentor.engines.kokoro import choose_pause_s
from stentor.engines.speaking.phonemes import plain_marks, respell

KANA = (
    "あいうえお かきくけこ さしすせそ たちつてと なにぬねの はひふへほ まみむめも やゆよ らりるれろ わをん "
    "がぎぐげご ざじずぜぞ ばびぶべぼ ぱぴぷぺぽ"
)


def test_no_sound_of_japanese_is_dropped() -> None:
    known = Tokenizer().vocab
    found = phonemizer.phonemize(KANA, "ja", preserve_punctuation=True, with_stress=True)
    spelt = respell(found, "ja")
    assert [sound for sound in spelt if sound not in known and not sound.isspace()] == []
    assert spelt.count("a") >= 14


def test_other_languages_are_as_they_come() -> None:
    assert respell("tˈoːdʑ ä", "de") == "tˈoːdʑ ä"


def test_wide_marks_are_plain_ones() -> None:
    assert plain_marks("はい。え？、「あ！」") == "はい.え?,「あ!」"


@pytest.mark.parametrize(
    ("piece", "pause_s"),
    [
        ("It ends.", 0.2),
        ('"Stop!" ', 0.2),
        ("おわり。", 0.2),
        ("A heading\n", 0.2),
        ("first, ", 0.1),
        ("the old ", 0.0),
    ],
)
def test_it_pauses_where_a_speaker_would(piece: str, pause_s: float) -> None:
    assert choose_pause_s(piece) == pause_s
