"""How well and how fast the recognizers hear: twenty sentences of a real voice, and their word error rate."""

import pytest

from tests.speech import clips
from tests.speech.conftest import Hearing
from tests.speech.words import NORMAL, error_rate


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("model", "most"), [("base", 0.05), ("tiny", 0.10)])
def test_twenty_sentences_are_understood(gate: Hearing, model: str, most: float) -> None:
    heard = [gate.hear(clips.speak(each).read_bytes(), model=model).json()["text"] for each in clips.SENTENCES]
    rate = error_rate(clips.SENTENCES, heard)
    wrong = [(said, text) for said, text in zip(clips.SENTENCES, heard, strict=True) if NORMAL(said) != NORMAL(text)]
    assert rate <= most, (rate, wrong)
