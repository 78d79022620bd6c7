"""The engine ``piper``: a VITS model as ONNX with a JSON file beside it, phonemes by the espeak-ng inside piper-tts."""

import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from stentor.core.lazy import load
from stentor.core.voice_files import NoVoice, find_piper_files
from stentor.core.voices import VoiceCard, read_piper_voices
from stentor.engines.host import FETCH_AGAIN, BadModel, SpeechConfig, need, run
from stentor.engines.onnx import open_session
from stentor.engines.speaking.sentences import PACE
from stentor.engines.speaking.synthesis import SpeakingEngine

_EXTRA = "piper"
_SLOWEST_HZ, _QUICKEST_HZ = 8_000, 192_000


class PiperSynthesizer:
    """One loaded voice."""

    pace = PACE

    def __init__(self, place: Path, threads: int) -> None:
        """Raises BadModel for files that don't make a voice, and without the library."""
        need("av", _EXTRA)
        self._library: Any = need("piper", _EXTRA)
        try:
            model, description = find_piper_files(place)
        except NoVoice as problem:
            raise BadModel(str(problem)) from None
        text = description.read_bytes()
        try:
            self.voices = read_piper_voices(text, model.stem)
        except ValueError as problem:
            raise BadModel(f"{description} can't be read: {problem}. {FETCH_AGAIN}") from None
        self._voice = _load_voice(self._library, model, text, threads)
        self.rate_hz: int = self._voice.config.sample_rate
        # One text has all threads of the session; several at once would only share them.
        self._turn = threading.Lock()

    def speak(self, text: str, voice: VoiceCard, speed: float, place: int) -> "Iterator[array[int]]":
        """See :class:`~stentor.engines.speaking.synthesis.Synthesizer`."""
        config = self._voice.config
        wanted = self._library.SynthesisConfig(
            speaker_id=config.speaker_id_map.get(voice.id),
            length_scale=config.length_scale / speed,
        )
        chunks = self._voice.synthesize(text, wanted)
        while True:
            with self._turn:
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield array("h", chunk.audio_int16_bytes)


def _load_voice(library: Any, model: Path, description: bytes, threads: int) -> Any:
    try:
        config = load("piper.config").PiperConfig.from_dict(msgspec.json.decode(description))
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise BadModel(f"{model}.json is no description of a Piper voice: {problem!r}. {FETCH_AGAIN}") from None
    if not isinstance(config.sample_rate, int) or not _SLOWEST_HZ <= config.sample_rate <= _QUICKEST_HZ:
        raise BadModel(f"{model}.json says a sample rate of {config.sample_rate!r}. {FETCH_AGAIN}")
    if not config.phoneme_id_map:
        raise BadModel(f"{model}.json names no phonemes (phoneme_id_map). {FETCH_AGAIN}")
    session = open_session(load("onnxruntime"), model, threads)
    return library.PiperVoice(session=session, config=config)


def make(config: SpeechConfig) -> SpeakingEngine:
    """The engine of this configuration."""
    return SpeakingEngine(lambda: PiperSynthesizer(Path(config.model_path), config.threads))


if __name__ == "__main__":
    run(make)
