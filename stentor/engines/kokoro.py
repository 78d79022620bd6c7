"""The engine ``kokoro``: Kokoro-82M, one ONNX model and many voices, phonemes by espeak-ng (kokoro-onnx)."""

import io
import tempfile
import threading
import zipfile
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stentor.core.lazy import load
from stentor.core.voice_files import NoVoice, find_kokoro_files, list_kokoro_voices
from stentor.core.voices import VoiceCard, kokoro_language
from stentor.engines.host import FETCH_AGAIN, BadModel, SpeechConfig, need, run
from stentor.engines.onnx import open_session
from stentor.engines.speaking.phonemes import plain_marks, respell
from stentor.engines.speaking.sentences import Pace
from stentor.engines.speaking.synthesis import SpeakingEngine

RATE_HZ = 24_000
_EXTRA = "kokoro"
# What the model itself can do; beyond it the sound is stretched.
SLOWEST, QUICKEST = 0.5, 2.0
# Pauses behind a sentence and behind a clause; the model's own are cut off, as they are as long as they like.
PAUSE_S, CLAUSE_PAUSE_S = 0.2, 0.1
# With two threads of a small machine a second of sound takes 0.35 s, and half a second of it is silence that is cut
# off. So a sentence of twelve words takes two seconds, its first words half a second.
PACE = Pace(first=20, growth=2.0, most=400, gather=True)
_ENDS, _CLAUSES = frozenset(".!?…。！？｡‥"), frozenset(",;:—–،、，；：")
_CLOSERS = "\"'”’»›)]}」』）】》"
_STYLE = (-1, 1, 256)
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error)


class KokoroSynthesizer:
    """The loaded model."""

    rate_hz = RATE_HZ
    pace = PACE

    def __init__(self, folder: Path, threads: int) -> None:
        """Raises BadModel for files that don't make a model, and without the library."""
        need("av", _EXTRA)
        library = need("kokoro_onnx", _EXTRA)
        try:
            model, files = find_kokoro_files(folder)
            self.voices = list_kokoro_voices(folder)
        except NoVoice as problem:
            raise BadModel(str(problem)) from None
        except _UNREADABLE as problem:
            raise BadModel(f"the voices in {folder} can't be read: {problem}. {FETCH_AGAIN}") from None
        self._numpy: Any = load("numpy")
        self._styles = {name: style for path in files for name, style in self._read_all(path)}
        session = open_session(load("onnxruntime"), model, threads)
        try:
            self._kokoro = self._make(library, session, files)
        except (KeyError, TypeError, ValueError, RuntimeError, *_UNREADABLE) as problem:
            raise BadModel(f"{model} can't be loaded as a Kokoro model: {problem}. {FETCH_AGAIN}") from None
        self._phonemizer: Any = load("phonemizer")
        self._turn = threading.Lock()

    def _make(self, library: Any, session: Any, files: list[Path]) -> Any:
        """It wants a file of voices, and is given arrays later: one of the model's own, so that a full disk is none
        of our business, or an empty one."""
        known = next((path for path in files if zipfile.is_zipfile(path)), None)
        if known is not None:
            return library.Kokoro.from_session(session, str(known))
        with tempfile.NamedTemporaryFile(suffix=".npz") as none:
            self._numpy.savez(none)
            none.flush()
            return library.Kokoro.from_session(session, none.name)

    def _read_all(self, path: Path) -> list[tuple[str, Any]]:
        """The voices of one file by name. Raises BadModel."""
        try:
            styles = list(self._read_styles(path))
        except (KeyError, TypeError, ValueError, *_UNREADABLE):
            styles = []
        if not styles:
            raise BadModel(f"{path} holds no voices of Kokoro's: arrays of 256 numbers a phoneme. {FETCH_AGAIN}")
        empty = next((name for name, style in styles if not len(style)), None)
        if empty is not None:
            raise BadModel(f"the voice '{empty}' in {path} is empty. {FETCH_AGAIN}")
        return styles

    def _read_styles(self, path: Path) -> Iterator[tuple[str, Any]]:
        numpy = self._numpy
        if not zipfile.is_zipfile(path):
            yield path.stem, numpy.fromfile(path, dtype="<f4").reshape(_STYLE)
            return
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                style = numpy.load(io.BytesIO(archive.read(name)), allow_pickle=False)
                yield name.removesuffix(".npy"), style.astype("float32").reshape(_STYLE)

    def speak(self, text: str, voice: VoiceCard, speed: float, place: int) -> "Iterator[array[int]]":
        """See :class:`~stentor.engines.speaking.synthesis.Synthesizer`. What can't be pronounced is a pause."""
        if not text.strip():
            return
        own = min(max(speed, SLOWEST), QUICKEST)
        with self._turn:
            levels = self._create(text, voice, own)
        samples = self._numpy.clip(levels * 32767.0, -32768, 32767).astype("<i2").tobytes()
        if speed != own:
            samples = _stretch(samples, speed / own)
        yield array("h", samples + bytes(2 * round(choose_pause_s(text) / speed * RATE_HZ)))

    def _create(self, text: str, voice: VoiceCard, speed: float) -> Any:
        style = self._styles[voice.id]
        phonemes = self._spell(text, kokoro_language(voice.id)[1])
        if not phonemes:
            return self._numpy.zeros(0, dtype="float32")
        levels, _ = self._kokoro.create(phonemes, style, speed, is_phonemes=True)
        return levels

    def _spell(self, text: str, language: str) -> str:
        """What the model reads; sounds that it doesn't know are left out."""
        found = self._phonemizer.phonemize(
            plain_marks(text).strip(),
            language,
            preserve_punctuation=True,
            with_stress=True,
            language_switch="remove-flags",
        )
        known = self._kokoro.tokenizer.vocab
        return "".join(sound for sound in respell(found, language) if sound in known).strip()


def choose_pause_s(piece: str) -> float:
    """How long it is silent behind a piece of a text: none where it was cut between two words."""
    last = piece.rstrip().rstrip(_CLOSERS)[-1:]
    return PAUSE_S if last in _ENDS or "\n" in piece[-3:] else CLAUSE_PAUSE_S if last in _CLAUSES else 0.0


def _stretch(samples: bytes, tempo: float) -> bytes:
    """``samples`` quicker by ``tempo`` (0.5 to 100) at the same pitch (FFmpeg's atempo)."""
    av: Any = load("av")
    graph = av.filter.Graph()
    source = graph.add_abuffer(format="s16", sample_rate=RATE_HZ, layout="mono")
    tempo_filter, sink = graph.add("atempo", f"{tempo:.6f}"), graph.add("abuffersink")
    source.link_to(tempo_filter)
    tempo_filter.link_to(sink)
    graph.configure()
    frame = av.AudioFrame(format="s16", layout="mono", samples=len(samples) // 2)
    if not frame.samples:
        return b""
    frame.sample_rate = RATE_HZ
    frame.planes[0].update(samples)
    graph.push(frame)
    graph.push(None)
    parts: list[bytes] = []
    while True:
        try:
            made = graph.pull()
        except (av.error.EOFError, av.error.BlockingIOError):
            return b"".join(parts)
        parts.append(bytes(made.planes[0])[: 2 * made.samples])


def make(config: SpeechConfig) -> SpeakingEngine:
    """The engine of this configuration."""
    return SpeakingEngine(lambda: KokoroSynthesizer(Path(config.model_path), config.threads))


if __name__ == "__main__":
    run(make)
