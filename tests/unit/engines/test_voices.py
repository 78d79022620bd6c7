"""Which voice speaks."""

import pytest

from stentor.core.voices import VoiceCard
from stentor.engines.host import Problem
from stentor.engines.speaking.synthesis import choose_voice

VOICES = tuple(VoiceCard(name, "en") for name in ("af_heart", "af_nova", "Bob"))


@pytest.mark.parametrize(
    ("wanted", "speaks"),
    [("", "af_heart"), ("default", "af_heart"), ("bob", "Bob"), ("nova", "af_nova"), ("Alloy", "af_heart")],
)
def test_the_voice_that_is_meant_speaks(wanted: str, speaks: str) -> None:
    assert choose_voice(VOICES, wanted).id == speaks


def test_a_name_of_nobodys_is_refused() -> None:
    with pytest.raises(Problem, match="Near it: af_nova"):
        choose_voice(VOICES, "af_novo")
