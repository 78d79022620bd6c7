"""`python -m bench.speaking`: speech through Stentor beside the library called directly, in alternating pairs.

Both speak the same text with the same voice and threads, the library in this process, Stentor in its own with the
engine in another. The overhead of a pair is taken for each second of sound, as a voice never takes exactly as long
twice. Kokoro's library gets the text in the pieces that Stentor makes of it: all at once it takes an eighth less time,
and its first sound comes with its last.
Prints medians, the real-time factors, and how soon the first sound of a sentence of twelve words is there.
"""

import argparse
import asyncio
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import peers
from bench.process import POLL_S, Process, free_port, stop
from stentor.core.lazy import load
from stentor.core.voice_files import find_kokoro_files, find_piper_files
from stentor.engines.kokoro import PACE, choose_pause_s
from stentor.engines.onnx import open_session
from stentor.engines.speaking.sentences import split_sentences
from stentor.runtime.offers import OFFERS
from stentor.runtime.sources import Sources

CACHE = peers.ROOT / ".cache" / "models"
ENGLISH = (
    "The quick train to the northern station leaves at seven in the morning. Please turn on the living room lights and "
    "close the kitchen window. She bought three apples, a loaf of bread and a small jar of honey. In the evening the "
    "two of them walked along the river and talked about the years that had gone by."
)
JAPANESE = (
    "きょうはとてもいいてんきです。あしたはあめがふるでしょう。えきまであるいていきます。おなかがすきました。"
    "ともだちとこうえんでおべんとうをたべて、それからとしょかんでほんをよみます。"
)
SENTENCES = {
    "piper-joe": "The small brown dog ran quickly over the old bridge this morning.",
    "kokoro": "わたしは あした ともだちと いっしょに えきまえの あたらしい "
    "ちいさな みせで とても おいしい ひるごはんを たべます。",
}
FIRST_MOST_S = {"piper-joe": 0.25, "kokoro": 0.9}
OVERHEAD_MOST = 0.05
REAL_TIME_MOST = {"piper-joe": 0.06}  # of the sound's length, on two free threads


class Spoken(NamedTuple):
    """One speech: until its first sound, until its end, and how long it is, in seconds."""

    first_s: float
    whole_s: float
    sound_s: float


def fetch(name: str) -> Path:
    """A model by its short name, from the checkout's cache."""
    return asyncio.run(Sources(CACHE, os.environ).fetch(OFFERS[name].source))


def piper(folder: Path, threads: int) -> Callable[[], Iterator[float]]:
    """Speaks the English text by piper-tts; gives the seconds of each piece of sound."""
    model, description = find_piper_files(folder)
    config = load("piper.config").PiperConfig.from_dict(json.loads(description.read_bytes()))
    voice = load("piper").PiperVoice(session=open_session(load("onnxruntime"), model, threads), config=config)
    return lambda: (len(chunk.audio_int16_bytes) / 2 / chunk.sample_rate for chunk in voice.synthesize(ENGLISH))


def kokoro(folder: Path, threads: int) -> Callable[[], Iterator[float]]:
    """Speaks the Japanese text by kokoro-onnx, in the pieces by which the first sound is there soon."""
    model, (voices, *_) = find_kokoro_files(folder)
    library = load("kokoro_onnx").Kokoro.from_session(open_session(load("onnxruntime"), model, threads), str(voices))
    voice = sorted(library.get_voices())[0]
    pieces = list(split_sentences(JAPANESE, PACE))

    def speak() -> Iterator[float]:
        for piece in pieces:
            samples, rate = library.create(piece, voice, lang="ja")
            yield len(samples) / rate + choose_pause_s(piece)

    return speak


TEXTS = {"piper-joe": ENGLISH, "kokoro": JAPANESE}
LIBRARIES = {"piper-joe": piper, "kokoro": kokoro}


class Direct:
    """The library in this process."""

    def __init__(self, model: str, threads: int) -> None:
        self._speak = LIBRARIES[model](fetch(model), threads)

    def speak(self) -> Spoken:
        began = time.perf_counter()
        first_s = sound_s = 0.0
        for piece_s in self._speak():
            first_s = first_s or time.perf_counter() - began
            sound_s += piece_s
        return Spoken(first_s, time.perf_counter() - began, sound_s)


class Through:
    """A running Stentor."""

    def __init__(self, port: int, key: str) -> None:
        self._line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._key = key

    def speak(self, text: str) -> Spoken:
        body = json.dumps({"model": "voice", "input": text, "response_format": "pcm"})
        began = time.perf_counter()
        self._line.request("POST", "/v1/audio/speech", body, {"Authorization": f"Bearer {self._key}"})
        response = self._line.getresponse()
        size = len(response.read(1))
        first_s = time.perf_counter() - began
        size += len(response.read())
        if response.status != 200:
            raise SystemExit(f"Stentor answered {response.status}")
        return Spoken(first_s, time.perf_counter() - began, size / 48_000)


def compare(direct: Direct, through: Through, model: str, pairs: int) -> dict[str, Any]:
    """Alternating pairs, after one of each to warm up."""
    text = TEXTS[model]
    direct.speak()
    through.speak(text)
    alone: list[Spoken] = []
    behind: list[Spoken] = []
    for number in range(pairs):
        for side in (0, 1) if number % 2 else (1, 0):
            (behind if side else alone).append(through.speak(text) if side else direct.speak())
    rates = [[spoken.whole_s / spoken.sound_s for spoken in side] for side in (alone, behind)]
    overheads = [two / one - 1 for one, two in zip(*rates, strict=True)]
    first_s = statistics.median(through.speak(SENTENCES[model]).first_s for _ in range(9))
    return {
        "sound_s": round(statistics.median(spoken.sound_s for spoken in alone), 2),
        "pairs": pairs,
        "real_time_library": round(statistics.median(rates[0]), 4),
        "real_time_stentor": round(statistics.median(rates[1]), 4),
        "overhead_median": round(statistics.median(overheads), 4),
        "first_sound_s": round(first_s, 4),
    }


def measure(model: str, threads: int, pairs: int, folder: Path) -> dict[str, Any]:
    """One model on a server of its own, on all cores: its engine must have what the library has."""
    config = folder / "stentor.toml"
    config.write_text(
        f'[[models]]\nid = "voice"\nsource = "{model}"\nthreads = {threads}\nparallel = 1\npreload = true\n'
    )
    port = free_port()
    environment = {
        **os.environ,
        "STENTOR_DATA_DIR": str(folder / "data"),
        "STENTOR_MODEL_CACHE": str(CACHE),
        "STENTOR_PORT": str(port),
    }
    out, log = folder / "stdout", folder / "stderr"
    with out.open("wb") as stdout, log.open("wb") as stderr:
        popen = subprocess.Popen(
            [sys.executable, "-m", "stentor", "up", "--json", "--config", str(config)],
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=environment, start_new_session=True,
        )  # fmt: skip
    process = Process(popen.pid, popen, time.perf_counter(), out, log)
    try:
        while not (said := process.out.read_text()).endswith("\n"):
            process.check_alive()
            time.sleep(POLL_S)
        return compare(Direct(model, threads), Through(port, json.loads(said)["api_key"]), model, pairs)
    finally:
        stop(process)


def main() -> int:
    """Measure, print, and say whether the targets are met."""
    parser = argparse.ArgumentParser(prog="python -m bench.speaking")
    parser.add_argument("--models", nargs="+", choices=list(TEXTS), default=list(TEXTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=30)
    arguments = parser.parse_args()
    missed = False
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, arguments.threads, arguments.pairs, Path(folder))
        missed = missed or found["overhead_median"] > OVERHEAD_MOST or found["first_sound_s"] > FIRST_MOST_S[model]
        missed = missed or found["real_time_stentor"] > REAL_TIME_MOST.get(model, 1.0)
        print(json.dumps({"model": model, "threads": arguments.threads, **found}))
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
