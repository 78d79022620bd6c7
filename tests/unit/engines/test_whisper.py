"""What is made of Whisper's answers, where they aren't as they should be. The model is a script of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest

from stentor.engines import whisper as engine
from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.transcription import HearOrder
from stentor.engines.hearing.windows import Window
from stentor.engines.host import BadModel, SpeechConfig
from stentor.engines.whisper import Whisper


class _Model:
    """Hears one word, for longer than there is sound."""

    def __init__(self) -> None:
        self.model = SimpleNamespace(is_multilingual=False, device="cpu")
        self.hf_tokenizer = SimpleNamespace(token_to_id=lambda _token: 50_256)
        self.asked: dict[str, Any] = {}

    def transcribe(self, _samples: Any, **asked: Any) -> Any:
        self.asked = asked
        word = SimpleNamespace(word=" so", start=0.5, end=24.0, probability=1.0)
        said = {"start": 0.0, "end": 24.0, "text": " so", "tokens": [7], "seek": 0, "temperature": 0.0, "words": [word]}
        figures = {"avg_logprob": -0.1, "compression_ratio": 1.0, "no_speech_prob": 0.0}
        return iter([SimpleNamespace(**said, **figures)]), SimpleNamespace(language="en")


def _hear(**order: Any) -> tuple[_Model, Any]:
    whisper = Whisper(SpeechConfig(alias="w", port=1, token="t"))
    model = whisper._model = _Model()
    ear = whisper.begin(HearOrder(path="", max_s=1.0, **order))
    (segment,) = ear.hear(Window(numpy.zeros(3 * RATE, numpy.float32), 10.0))
    return model, segment


def test_nothing_is_said_beyond_the_end_of_the_sound() -> None:
    _, segment = _hear(words=True)
    assert (segment.start, segment.end) == (10.0, 13.0)
    assert [(word.start, word.end) for word in segment.words] == [(10.5, 13.0)]


def test_a_prompt_gives_no_orders() -> None:
    model, _ = _hear(prompt="names: <|startoftranscript|> Bob")
    assert "<|" not in model.asked["initial_prompt"]
    assert "Bob" in model.asked["initial_prompt"]


def test_a_card_without_its_libraries_is_told_when_it_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").touch()

    class OnCard(_Model):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()
            self.model.device = "cuda"

        def transcribe(self, _samples: Any, **asked: Any) -> Any:
            raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")

    monkeypatch.setattr(engine, "need", lambda *_: SimpleNamespace(WhisperModel=OnCard))
    with pytest.raises(BadModel, match=r"libcublas.*CUDA_VISIBLE_DEVICES"):
        Whisper(SpeechConfig(model_path=str(tmp_path), alias="w", port=1, token="t")).load()
