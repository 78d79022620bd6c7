"""The engine ``sense_voice``: SenseVoice through sherpa-onnx, five languages, text with its punctuation."""

import mmap
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from stentor.engines.hearing.engine import HearingEngine
from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.transcription import Ear, HearOrder, Segment, Word
from stentor.engines.hearing.windows import Detector, Loudness, Window
from stentor.engines.host import FETCH_AGAIN, BadModel, Problem, SpeechConfig, need, run

_EXTRA = "sense_voice"
_WINDOW_BYTES = 256 << 20
LANGUAGES = ("en", "ja", "ko", "yue", "zh")
# What the model says of itself before the text: its language, the mood, what kind of sound it is.
_TAG = re.compile(r"<\|([^|]*)\|>")

Open = Callable[[Any, Path, SpeechConfig, str], Any]


class SenseVoice:
    """A loaded model: sherpa-onnx takes the language when it loads, so each language has a recognizer of its own.

    ``open_recognizer`` makes one, on the library, for a folder, a configuration and a language.
    """

    def __init__(self, config: SpeechConfig, open_recognizer: Open | None = None) -> None:
        self._config = config
        self._open = open_recognizer or open_sense_voice
        self._library: Any = None
        self._recognizers: dict[str, Any] = {}
        self._loading = threading.Lock()

    def load(self) -> None:
        """See :class:`~stentor.engines.hearing.transcription.Recognizer`."""
        need("av", _EXTRA)
        self._library = need("sherpa_onnx", _EXTRA)
        self._find("auto")

    def _find(self, language: str) -> Any:
        """The recognizer of a language; the last one asked for and the one that finds out are kept."""
        with self._loading:  # one at a time: there is room for no more
            known = self._recognizers.get(language)
            if known is not None:
                return known
            folder = Path(self._config.model_path)
            try:
                made = self._open(self._library, folder, self._config, language)
            except (RuntimeError, ValueError, OSError) as error:
                words = (str(error).splitlines() or [""])[0].rstrip(".")
                raise BadModel(f"sherpa-onnx can't load {folder}: {words}. {FETCH_AGAIN}") from None
            self._recognizers = {name: each for name, each in self._recognizers.items() if name == "auto"}
            self._recognizers[language] = made
            return made

    def room_bytes(self, loaded_bytes: int) -> int | None:
        """See :class:`~stentor.engines.host.BoundedEngine`: there may be three recognizers while one is replaced."""
        return 2 * loaded_bytes + self._config.workers * _WINDOW_BYTES

    def begin(self, order: HearOrder) -> Ear:
        """See :class:`~stentor.engines.hearing.transcription.Recognizer`."""
        if order.task == "translate":
            raise Problem("missing_ability", "This model writes down what is said and doesn't translate it.")
        if order.language and order.language not in LANGUAGES:
            raise Problem(
                "invalid_language",
                f"The language '{order.language[:40]}' is not known. Known are: {', '.join(LANGUAGES)}.",
            )
        return _SenseEar(self._find(order.language or "auto"), order)

    def detector(self) -> Detector:
        """See :class:`~stentor.engines.hearing.transcription.Recognizer`."""
        return Loudness()


class _SenseEar:
    """One request."""

    def __init__(self, recognizer: Any, order: HearOrder) -> None:
        self.language = order.language
        self.output_tokens: int | None = None
        self._recognizer = recognizer
        self._words = order.words

    def hear(self, window: Window) -> Iterable[Segment]:
        """See :class:`~stentor.engines.hearing.transcription.Ear`."""
        stream = self._recognizer.create_stream()
        stream.accept_waveform(RATE, window.samples)
        self._recognizer.decode_stream(stream)
        found = stream.result
        tags = _TAG.findall(f"{getattr(found, 'lang', '')}{found.text}")
        self.language = self.language or next((tag for tag in tags if tag in LANGUAGES), "")
        text = _TAG.sub("", found.text).strip()
        if not text:
            return []
        start_s, end_s = window.start_s, window.start_s + len(window.samples) / RATE
        # Whisper's pieces begin with a blank, and whoever joins pieces relies on it.
        lead = "" if self.language in ("ja", "zh", "yue") else " "
        words = _read_words(found, window.start_s, end_s) if self._words else None
        return [Segment(round(start_s, 3), round(end_s, 3), lead + text, words=words)]


def _read_words(found: Any, start_s: float, end_s: float) -> list[Word]:
    """Tokens with the time at which each begins; one lasts until the next."""
    tokens, times = list(found.tokens), list(found.timestamps)
    if len(tokens) != len(times):
        return []
    ends = [*times[1:], end_s - start_s]
    return [
        Word(token.strip(), round(start_s + begin, 3), round(start_s + end, 3))
        for token, begin, end in zip(tokens, times, ends, strict=True)
        if token.strip() and not _TAG.fullmatch(token)
    ]


def check_tokens(path: Path) -> None:
    """Whether each line is a token and its number. Raises ValueError."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if fields and not (len(fields) <= 2 and fields[-1].isdigit()):
                raise ValueError(f"line {number} of {path} is no token with its number")
        if not lines.tell():
            raise ValueError(f"{path} is empty")


def check_model(path: Path) -> None:
    """Whether a model says of itself what only SenseVoice's say. Raises ValueError, OSError."""
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
        if content.rfind(b"lfr_window_size") < 0:
            raise ValueError(f"{path} is no SenseVoice as sherpa-onnx exports it")


def open_sense_voice(library: Any, folder: Path, config: SpeechConfig, language: str) -> Any:
    """sherpa-onnx's recognizer for a SenseVoice folder; of several models the smallest."""
    models = sorted(folder.glob("model*.onnx"), key=lambda path: path.stat().st_size)
    if not models:
        raise FileNotFoundError(f"there is no model*.onnx in {folder}")
    # Over these the library ends the process.
    check_tokens(folder / "tokens.txt")
    check_model(models[0])
    return library.OfflineRecognizer.from_sense_voice(
        model=str(models[0]),
        tokens=str(folder / "tokens.txt"),
        num_threads=config.threads_each,
        language=language,
        use_itn=True,
    )


def make(config: SpeechConfig) -> HearingEngine:
    """The engine of this configuration."""
    return HearingEngine(config, SenseVoice(config))


if __name__ == "__main__":
    run(make)
