"""Wake words by microWakeWord: those that come with its package, and an operator's own beside the model's files.

A word is a ``.json`` with its phrase, threshold and window, and the ``.tflite`` that it names. For each 10 ms of sound
the features are made once for all words.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from stentor.engines.host import BadModel, Problem

_STEP = 160  # samples of one column of features
_REST = 200  # columns, two seconds, in which a word that was told isn't told again
WORDS_MOST = 8
_CONFIG_MAX_BYTES = 1 << 20
_ADVICE = "Correct it, or take it out of the folder."


class _Config(msgspec.Struct):
    type: str
    model: str


class Heard(NamedTuple):
    """A wake word that was said by ``sample``."""

    name: str
    probability: float
    sample: int


class WakeWords:
    """The words there are, by name. ``library`` is pymicro_wakeword, ``folder`` where an operator's own lie."""

    def __init__(self, library: Any, folder: Path) -> None:
        self._library = library
        own = Path(library.__file__).parent / "models"
        found = (path for place in (own, folder) for path in sorted(place.glob("*.json")))
        self._configs = {path.stem: path for path in found if _is_word(path)}

    @property
    def names(self) -> tuple[str, ...]:
        """What may be asked for."""
        return tuple(sorted(self._configs))

    def load_all(self) -> None:
        """Try each word. Raises BadModel."""
        tensorflow = self._library.MicroWakeWord.from_builtin(self._library.Model.OKAY_NABU).lib
        for name, path in self._configs.items():
            try:
                _check_model(tensorflow, path)
                self._open(name)
            except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
                words = f"it has no {error}" if isinstance(error, KeyError) else error
                raise BadModel(f"the wake word {path} can't be loaded: {words}. {_ADVICE}") from None

    def listen(self, names: list[str], cutoff: float | None) -> "WakeListener":
        """A listener of one stream for these words; ``cutoff`` None: each word's own. Raises Problem."""
        unknown = [name for name in names if name not in self._configs]
        if unknown:
            known = ", ".join(self.names)
            raise Problem("invalid_wake_word", f"The wake word '{unknown[0][:40]}' is not known. Known are: {known}.")
        return WakeListener(self._library.MicroWakeWordFeatures(), {name: self._open(name) for name in names}, cutoff)

    def _open(self, name: str) -> Any:
        return self._library.MicroWakeWord.from_config(self._configs[name])


def _check_model(tensorflow: Any, config: Path) -> None:
    """Whether a word's model can be read: the library would use what there isn't. Raises ValueError, OSError."""
    model = config.with_name(_read(config).model)
    with model.open("rb"):
        pass
    loaded = tensorflow.TfLiteModelCreateFromFile(str(model).encode())
    if not loaded:
        raise ValueError(f"{model} is no TensorFlow Lite model, or not all of it")
    tensorflow.TfLiteModelDelete(loaded)


def _is_word(path: Path) -> bool:
    """Whether a JSON file describes a word, as microWakeWord has it; folders hold others, too."""
    try:
        said = _read(path)
    except (OSError, msgspec.DecodeError, RecursionError):
        return False
    return said.type == "micro" and Path(said.model).name == said.model


def _read(path: Path) -> _Config:
    with path.open("rb") as file:
        return msgspec.json.decode(file.read(_CONFIG_MAX_BYTES), type=_Config)


class WakeListener:
    """Listens to one stream."""

    def __init__(self, features: Any, words: dict[str, Any], cutoff: float | None) -> None:
        self._features = features
        self._words = words
        self._cutoff = cutoff
        self._columns = 0
        self._quiet_until = dict.fromkeys(words, 0)

    def feed(self, data: bytes) -> list[Heard]:
        """More sound, s16le at 16 kHz; the words that are complete by it."""
        found: list[Heard] = []
        for column in self._features.process_streaming(data):
            self._columns += 1
            for name, word in self._words.items():
                probability = word.process_streaming_prob(column) or 0.0
                cutoff = word.probability_cutoff if self._cutoff is None else self._cutoff
                if probability > cutoff and self._columns >= self._quiet_until[name]:
                    self._quiet_until[name] = self._columns + _REST
                    found.append(Heard(name, round(probability, 4), self._columns * _STEP))
        return found
