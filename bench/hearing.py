"""`python -m bench.hearing`: transcription through Stentor beside the library called directly, in alternating pairs.

Both hear the same clip with the same model, threads and settings (greedy, English, silences cut away): the library in
this process, Stentor in its own with the engine in another. Prints medians, the overhead of pairs, real-time factors.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import peers
from bench.process import POLL_S, Process, free_port, stop
from stentor.core.lazy import load
from stentor.runtime.offers import OFFERS
from stentor.runtime.sources import Sources

CACHE = peers.ROOT / ".cache" / "models"
TEXT = (
    "The quick train to the northern station leaves at seven in the morning. Please turn on the living room lights and "
    "close the kitchen window. She bought three apples, a loaf of bread and a small jar of honey."
)
OVERHEAD_MOST = 0.05
REAL_TIME_MOST = {"whisper-base": 0.12}  # of the clip's length, on two free threads


def fetch(name: str) -> Path:
    """A model by its short name, from the checkout's cache."""
    return asyncio.run(Sources(CACHE, os.environ).fetch(OFFERS[name].source))


def speak(folder: Path) -> Path:
    """A clip of more than ten seconds, by a real voice."""
    voice = fetch("piper-joe")
    path = folder / "clip.wav"
    with wave.open(str(path), "wb") as file:
        load("piper").PiperVoice.load(voice / "en_US-joe-medium.onnx").synthesize_wav(TEXT, file)
    return path


class Direct:
    """The library in this process."""

    def __init__(self, model: str, threads: int) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        self._model: Any = load("faster_whisper").WhisperModel(
            str(fetch(model)), device="cpu", compute_type="int8", cpu_threads=threads
        )

    def hear(self, clip: Path) -> str:
        found, _ = self._model.transcribe(
            str(clip), beam_size=1, best_of=1, language="en", vad_filter=True, condition_on_previous_text=False
        )
        return "".join(each.text for each in found).strip()


class Through:
    """A running Stentor."""

    def __init__(self, port: int, key: str, model: str) -> None:
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._key = key
        self._model = model

    def hear(self, clip: Path) -> str:
        mark = uuid.uuid4().hex
        fields = "".join(
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in (("model", self._model), ("language", "en"))
        )
        head = f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="clip.wav"\r\n\r\n'
        body = (fields + head).encode() + clip.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": f"multipart/form-data; boundary={mark}"}
        self._line.request("POST", "/v1/audio/transcriptions", body, headers)
        response = self._line.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise SystemExit(f"Stentor answered {response.status}: {answer}")
        return str(answer["text"])


def clock(work: Any, clip: Path) -> tuple[float, str]:
    """Seconds that one hearing took, and what was heard."""
    began = time.perf_counter()
    text = work.hear(clip)
    return time.perf_counter() - began, text


def compare(direct: Direct, through: Through, clip: Path, pairs: int) -> dict[str, Any]:
    """Alternating pairs, after one of each to warm up."""
    length_s = len_of(clip)
    texts = {clock(direct, clip)[1], clock(through, clip)[1]}
    times: list[tuple[float, float]] = []
    for number in range(pairs):
        first, second = (direct, through) if number % 2 else (through, direct)
        one, two = clock(first, clip)[0], clock(second, clip)[0]
        times.append((one, two) if number % 2 else (two, one))
    library, server = (statistics.median(column) for column in zip(*times, strict=True))
    overhead = statistics.median(behind / alone - 1 for alone, behind in times)
    return {
        "clip_s": round(length_s, 2),
        "pairs": pairs,
        "library_s": round(library, 4),
        "stentor_s": round(server, 4),
        "overhead_median": round(overhead, 4),
        "real_time_library": round(library / length_s, 4),
        "real_time_stentor": round(server / length_s, 4),
        "same_text": len(texts) == 1,
    }


def len_of(clip: Path) -> float:
    """Seconds of a WAV file."""
    with wave.open(str(clip), "rb") as file:
        return file.getnframes() / file.getframerate()


@contextlib.contextmanager
def serving(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[Process]:
    """Runs the server on all cores: its engine must have what the library has."""
    out, log = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        popen = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
        )
    process = Process(popen.pid, popen, time.perf_counter(), out, log)
    try:
        yield process
    finally:
        stop(process)


def measure(model: str, threads: int, pairs: int, folder: Path) -> dict[str, Any]:
    """One model on a server of its own."""
    clip = speak(folder)
    config = folder / "stentor.toml"
    config.write_text(
        f'[[models]]\nid = "ear"\nsource = "{model}"\nthreads = {threads}\nparallel = 1\npreload = true\n'
    )
    command = [sys.executable, "-m", "stentor", "up", "--json", "--config", str(config)]
    port = free_port()
    environment = {
        **os.environ,
        "STENTOR_DATA_DIR": str(folder / "data"),
        "STENTOR_MODEL_CACHE": str(CACHE),
        "STENTOR_PORT": str(port),
    }
    with serving(command, folder, environment) as process:
        while not (said := process.out.read_text()).endswith("\n"):
            process.check_alive()
            time.sleep(POLL_S)
        key = json.loads(said)["api_key"]
        return compare(Direct(model, threads), Through(port, key, "ear"), clip, pairs)


def main() -> int:
    """Measure, print, and say whether the targets are met."""
    parser = argparse.ArgumentParser(prog="python -m bench.hearing")
    parser.add_argument("--models", nargs="+", default=["whisper-tiny.en", "whisper-base"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=30)
    arguments = parser.parse_args()
    missed = False
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, arguments.threads, arguments.pairs, Path(folder))
        missed = missed or found["overhead_median"] > OVERHEAD_MOST
        missed = missed or found["real_time_stentor"] > REAL_TIME_MOST.get(model, 1.0)
        print(json.dumps({"model": model, "threads": arguments.threads, **found}))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
