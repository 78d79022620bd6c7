"""Files that are damaged, or of another model: an engine ends with one line that names them and says what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pymicro_wakeword
import pytest

from stentor.engines.host import EXIT_BAD_MODEL
from stentor.runtime.offers import OFFERS
from tests.kinds.models import fetch
from tests.serving import ROOT

JOE = "en_US-joe-medium.onnx"
WORD = json.dumps(
    {
        "type": "micro", "wake_word": "x", "model": "x.tflite",
        "micro": {"probability_cutoff": 0.9, "sliding_window_size": 5},
    }
)  # fmt: skip


def offered(name: str, file: str = "") -> Path:
    return fetch(OFFERS[name].source) / file


def half(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: len(content) // 2]


def joe(**changes: object) -> bytes:
    return json.dumps({**json.loads(offered("piper-joe", f"{JOE}.json").read_text()), **changes}).encode()


def wake_word(file: str) -> Path:
    return Path(pymicro_wakeword.__file__).parent / "models" / file


Files = dict[str, Callable[[], bytes]]
CASES: dict[str, tuple[str, str, Files, str]] = {
    "whisper: a page instead of its tokenizer": (
        "whisper", "whisper-tiny.en", {"tokenizer.json": lambda: b"<html>not found</html>"}, "tokenizer.json",
    ),
    "whisper: half a tokenizer": (
        "whisper", "whisper-tiny.en",
        {"tokenizer.json": lambda: half(offered("whisper-tiny.en", "tokenizer.json"))}, "tokenizer.json",
    ),
    "whisper: the tokenizer of another size": (
        "whisper", "whisper-tiny.en",
        {"tokenizer.json": lambda: offered("whisper-base", "tokenizer.json").read_bytes()}, "",
    ),
    "whisper: no words": ("whisper", "whisper-tiny.en", {"vocabulary.txt": lambda: b""}, ""),
    "piper: another model": (
        "piper", "piper-joe", {JOE: lambda: offered("listen", "silero_vad.onnx").read_bytes()}, "",
    ),
    "piper: numbers that the model doesn't have": (
        "piper", "piper-joe", {f"{JOE}.json": lambda: joe(phoneme_id_map={"ɐ": [9999], "a": [9999], "^": [9999]})}, "",
    ),
    "piper: no rate": ("piper", "piper-joe", {f"{JOE}.json": lambda: joe(audio={"sample_rate": "a"})}, f"{JOE}.json"),
    "listen: another model": (
        "listen", "listen", {"smart-turn.onnx": lambda: offered("listen", "silero_vad.onnx").read_bytes()}, "",
    ),
    "listen: half a wake word": (
        "listen", "listen", {"x.json": WORD.encode, "x.tflite": lambda: half(wake_word("alexa.tflite"))}, "x.tflite",
    ),
    "sense_voice: another model": (
        "sense_voice", "listen",
        {"model.onnx": lambda: offered("listen", "silero_vad.onnx").read_bytes(), "tokens.txt": lambda: b"a 0\n"},
        "model.onnx",
    ),
    "sense_voice: a page instead of its tokens": (
        "sense_voice", "listen", {"model.onnx": lambda: b"x", "tokens.txt": lambda: b"<html>\nnot found now\n"},
        "tokens.txt",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_an_engine_names_the_files_that_it_can_not_use(tmp_path: Path, name: str) -> None:
    kind, offer, files, named = CASES[name]
    for path in offered(offer).iterdir():
        (tmp_path / path.name).symlink_to(path)
    for file, make in files.items():
        content = make()
        (tmp_path / file).unlink(missing_ok=True)
        (tmp_path / file).write_bytes(content)
    config = {"model_path": str(tmp_path), "alias": "x", "port": 1, "token": "t", "threads": 1, "places": 1}
    done = subprocess.run(
        [sys.executable, "-P", "-m", f"stentor.engines.{kind}"],
        input=json.dumps(config) + "\n",
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == EXIT_BAD_MODEL, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert str(tmp_path / named) in line
    assert "its source" in line or "Correct it" in line
