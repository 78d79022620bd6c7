"""The engine for SenseVoice, on sherpa-onnx's own recognizer and a model that hears the same word in everything."""

import json
import threading
import wave
from pathlib import Path
from typing import Any

import numpy
import pytest

from stentor.engines.host import BadModel, Problem, SpeechConfig
from stentor.engines.sense_voice import make
from tests.unit.engines.onnx_file import write_sense_voice


def loaded(folder: Path) -> Any:
    engine = make(SpeechConfig(model_path=str(folder), alias="sense", port=1, token="t", threads=1, places=1))
    engine.load()
    return engine


def hear(engine: Any, path: Path, **fields: Any) -> list[Any]:
    order = json.dumps({"path": str(path), "max_s": 60, **fields}).encode()
    pieces = engine.handlers()["/v1/transcribe"](order, threading.Event()).pieces
    return [json.loads(line) for line in b"".join(pieces).splitlines()]


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """Two seconds of silence, then two of noise."""
    path = tmp_path / "noise.wav"
    random = numpy.random.default_rng(1)
    sound = numpy.concatenate([random.normal(0, 5, 32_000), random.normal(0, 4_000, 32_000)]).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(sound.tobytes())
    return path


def test_text_comes_without_the_models_tags(tmp_path: Path, noise: Path) -> None:
    engine = loaded(write_sense_voice(tmp_path, says=5))
    engine.check()
    *segments, done = [line for line in hear(engine, noise) if line["event"] != "progress"]
    assert [segment["text"] for segment in segments] == [" hello"]
    assert 1.0 < segments[0]["start"] < 2.1
    assert done == {"event": "done", "duration_s": 4.0, "language": "en", "output_tokens": None}


def test_words_have_times(tmp_path: Path, noise: Path) -> None:
    engine = loaded(write_sense_voice(tmp_path, says=6))
    segment = next(line for line in hear(engine, noise, words=True, language="en") if line["event"] == "segment")
    (word,) = segment["words"]
    assert word["word"].strip("▁ ") == "there"
    assert segment["start"] <= word["start"] < word["end"] <= segment["end"]


def test_what_it_hears_nothing_in_has_no_segment(tmp_path: Path, noise: Path) -> None:
    engine = loaded(write_sense_voice(tmp_path, says=0))
    assert [line["event"] for line in hear(engine, noise) if line["event"] != "progress"] == ["done"]


def test_what_it_can_not_do_is_named(tmp_path: Path, noise: Path) -> None:
    engine = loaded(write_sense_voice(tmp_path, says=5))
    for fields, code in (({"task": "translate"}, "missing_ability"), ({"language": "de"}, "invalid_language")):
        with pytest.raises(Problem) as problem:
            hear(engine, noise, **fields)
        assert problem.value.code == code


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel):
        loaded(tmp_path)
