"""The engine ``whisper``: faster-whisper (CTranslate2), with Silero's detector of speech from the same package."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stentor.core.lazy import load
from stentor.engines.hearing.engine import HearingEngine
from stentor.engines.hearing.silero import Silero
from stentor.engines.hearing.sound import RATE
from stentor.engines.hearing.transcription import Ear, HearOrder, Segment, Word
from stentor.engines.hearing.windows import Detector, Window
from stentor.engines.host import FETCH_AGAIN, BadModel, Problem, SpeechConfig, need, run

_EXTRA = "whisper"
# What is tried in turn where the words found are unlikely: Whisper's own ladder.
_TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
# The model's own words for what it is to do, which a prompt mustn't have.
_MARK = "<|"
_START, _END = "<|startoftranscript|>", "<|endoftext|>"
_TOKENIZER = "tokenizer.json"


class Whisper:
    """A loaded Whisper model."""

    def __init__(self, config: SpeechConfig) -> None:
        self._config = config
        self._model: Any = None
        self._vad: Any = None

    def load(self) -> None:
        """See :class:`~stentor.engines.hearing.transcription.Recognizer`."""
        config = self._config
        need("av", _EXTRA)
        library = need("faster_whisper", _EXTRA)
        tokenizer = Path(config.model_path, _TOKENIZER)
        if not tokenizer.is_file():
            raise BadModel(f"{tokenizer} is missing. {FETCH_AGAIN}")  # the library would ask the hub
        try:
            self._model = library.WhisperModel(
                config.model_path,
                device="auto",
                compute_type="int8",
                cpu_threads=config.threads_each,
                num_workers=config.workers,
                local_files_only=True,
            )
        except Exception as error:  # noqa: BLE001 - the library of tokenizers raises nothing narrower
            # And nothing else raises what is no more than that; it names no file.
            place = tokenizer if type(error) is Exception else config.model_path
            words = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise BadModel(f"faster-whisper can't load {place}: {words}. {FETCH_AGAIN}") from None
        if any(self._model.hf_tokenizer.token_to_id(mark) is None for mark in (_START, _END)):
            raise BadModel(f"{tokenizer} is not Whisper's: it has no {_START}. {FETCH_AGAIN}")
        self._vad = load("faster_whisper.vad").get_vad_model()
        if self._model.model.device != "cpu":
            self._try_card()

    def _try_card(self) -> None:
        """Work on it once: whether its libraries are there shows itself by then. Raises BadModel."""
        silence = load("numpy").zeros(RATE, "float32")
        try:
            list(self.begin(HearOrder(path="", max_s=1.0)).hear(Window(silence, 0.0)))
        except RuntimeError as error:
            raise BadModel(
                f"the graphics card is there but can't be used: {error}. Install what CTranslate2 needs (CUDA's cuBLAS "
                "and cuDNN), or keep the model on the processor: env = { CUDA_VISIBLE_DEVICES = '' }"
            ) from None

    def room_bytes(self, loaded_bytes: int) -> int | None:
        """See :class:`~stentor.engines.host.BoundedEngine`. On a GPU its libraries take as they like."""
        if self._model.model.device != "cpu":
            return None
        # Measured: base holds 270 MiB and takes 230 more for each window heard at once; larger models take more.
        return self._config.workers * ((256 << 20) + loaded_bytes // 2)

    def begin(self, order: HearOrder) -> Ear:
        """See :class:`~stentor.engines.hearing.transcription.Recognizer`."""
        if not self._model.model.is_multilingual:
            if order.task == "translate":
                raise Problem("missing_ability", "This model knows English alone, so it can't translate.")
            if order.language not in ("", "en"):
                raise Problem("invalid_language", f"This model knows English alone, not '{order.language[:40]}'.")
        elif order.language and not self._knows(order.language):
            known = ", ".join(sorted(filter(self._knows, self._model.supported_languages)))
            raise Problem("invalid_language", f"The language '{order.language[:40]}' is not known. Known are: {known}.")
        return _WhisperEar(self._model, order)

    def _knows(self, language: str) -> bool:
        # The library lists what the newest models know; a model has a word for each language that it knows itself.
        return self._model.hf_tokenizer.token_to_id(f"<|{language}|>") is not None

    def detector(self) -> Detector:
        """See :class:`~stentor.engines.hearing.transcription.Recognizer`."""
        return Silero(self._vad.session)


class _WhisperEar:
    """One request."""

    def __init__(self, model: Any, order: HearOrder) -> None:
        self.language = order.language if model.model.is_multilingual else "en"
        self.output_tokens: int | None = 0
        self._model = model
        self._order = order
        self._end_of_text: int = model.hf_tokenizer.token_to_id(_END)

    def hear(self, window: Window) -> Iterable[Segment]:
        """See :class:`~stentor.engines.hearing.transcription.Ear`."""
        order = self._order
        found, said = self._model.transcribe(
            window.samples,
            task=order.task,
            language=self.language or None,
            beam_size=1,
            best_of=1,
            temperature=_TEMPERATURES if not order.temperature else [order.temperature],
            initial_prompt=order.prompt.replace(_MARK, " ") or None,
            condition_on_previous_text=False,
            word_timestamps=order.words,
        )
        # What the first window is in, the rest is in: to find out costs as much as to hear.
        self.language = self.language or said.language
        return self._segments(found, window.start_s, len(window.samples) / RATE)

    def _segments(self, found: Iterable[Any], start_s: float, length_s: float) -> Iterator[Segment]:
        for each in found:
            tokens = [token for token in each.tokens if token < self._end_of_text]
            assert self.output_tokens is not None
            self.output_tokens += len(tokens)
            yield Segment(
                # It hears half a minute always, and may believe that what was said took longer than there is sound.
                start=round(start_s + min(float(each.start), length_s), 3),
                end=round(start_s + min(float(each.end), length_s), 3),
                text=each.text,
                tokens=each.tokens,
                seek=int(each.seek) + round(start_s * 100),
                temperature=float(each.temperature or 0.0),
                avg_logprob=float(each.avg_logprob),
                compression_ratio=float(each.compression_ratio),
                no_speech_prob=float(each.no_speech_prob),
                words=None if each.words is None else [_word(word, start_s, length_s) for word in each.words],
            )


def _word(word: Any, start_s: float, length_s: float) -> Word:
    # Some of its numbers are numpy's.
    start, end = (round(start_s + min(float(each), length_s), 3) for each in (word.start, word.end))
    return Word(word.word.strip(), start, end, round(float(word.probability), 4))


def make(config: SpeechConfig) -> HearingEngine:
    """The engine of this configuration."""
    # A hub is for sources alone: nothing here may look for a file elsewhere.
    os.environ["HF_HUB_OFFLINE"] = "1"
    return HearingEngine(config, Whisper(config))


if __name__ == "__main__":
    run(make)
