"""Whether somebody is done speaking, by how it sounds: smart-turn v3, which hears the last eight seconds of a turn."""

from typing import Any

from stentor.core.lazy import load
from stentor.engines.hearing.sound import RATE
from stentor.engines.listening.mel import log_mel

SPAN = 8 * RATE


class SmartTurn:
    """A loaded model."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def judge(self, samples: Any) -> float:
        """How likely a turn with this sound is complete, 0 to 1. Of a longer one its last eight seconds count."""
        numpy = load("numpy")
        whole = numpy.zeros(SPAN, numpy.float32)
        kept = samples[-SPAN:]
        whole[SPAN - len(kept) :] = kept
        # The model was trained on sound of one loudness.
        whole = (whole - whole.mean()) / numpy.sqrt(whole.var() + 1e-7)
        (found,) = self._session.run(None, {"input_features": log_mel(whole)[None]})[:1]
        return float(found.reshape(-1)[0])
