"""The engine ``listen``: Silero's detector of speech, microWakeWord, and smart-turn, side by side on one stream.

The model is a folder with ``silero*.onnx``; ``smart-turn*.onnx`` beside it tells complete turns, ``.json`` and
``.tflite`` are wake words beyond those that come with the library.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from stentor.core.lazy import load
from stentor.engines.answer import Handler
from stentor.engines.hearing.silero import knows
from stentor.engines.host import BadModel, Socket, SpeechConfig, need, run
from stentor.engines.listening.session import Ask, Attention, Ears, Listener
from stentor.engines.listening.turn import SmartTurn
from stentor.engines.listening.wake import WakeWords
from stentor.engines.onnx import open_session

_EXTRA = "listen"
_PLACE_BYTES = 16 << 20
_WORK_BYTES = 64 << 20


class ListenEngine:
    """See :class:`~stentor.engines.host.Engine`."""

    def __init__(self, config: SpeechConfig) -> None:
        self._config = config
        self._ears: Ears

    def load(self) -> None:
        """See :class:`~stentor.engines.host.Engine`."""
        if not self._config.model_path:
            raise BadModel("model_path is missing: this engine needs a folder with silero*.onnx")
        path = Path(self._config.model_path)
        folder = path if path.is_dir() else path.parent
        runtime, library = need("onnxruntime", _EXTRA), need("pymicro_wakeword", _EXTRA)
        silero = _find(folder, "silero*.onnx")
        if silero is None:
            raise BadModel(f"there is no silero*.onnx in {folder}")
        session = open_session(runtime, silero, self._config.threads_each)
        if not knows(session):
            raise BadModel(f"{silero} is no detector that is known: Silero's from version 5 on is wanted")
        smart_turn = _find(folder, "smart-turn*.onnx")
        turn = None if smart_turn is None else SmartTurn(open_session(runtime, smart_turn, self._config.threads_each))
        words = WakeWords(library, folder)
        words.load_all()
        self._ears = Ears(session, words, turn)

    def room_bytes(self, _loaded_bytes: int) -> int | None:
        """See :class:`~stentor.engines.host.BoundedEngine`."""
        return self._config.workers * _WORK_BYTES + self._config.places * _PLACE_BYTES

    def check(self) -> None:
        """See :class:`~stentor.engines.host.Engine`."""
        attention = Attention(self._ears, Ask("begin", wake_words=list(self._ears.words.names[:1])))
        attention.hear(bytes(16_000))
        if self._ears.turn is not None:
            self._ears.turn.judge(load("numpy").zeros(1, "float32"))

    def handlers(self) -> Mapping[str, Handler]:
        """See :class:`~stentor.engines.host.Engine`."""
        return {}

    def sockets(self) -> Mapping[str, Callable[[Socket], Awaitable[None]]]:
        """See :class:`~stentor.engines.host.TalkingEngine`."""
        return {"/v1/activity": lambda socket: Listener(self._ears, socket).run()}


def _find(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern))), None)


def make(config: SpeechConfig) -> ListenEngine:
    """The engine of this configuration."""
    return ListenEngine(config)


if __name__ == "__main__":
    run(make)
