"""Speech by the hub's inference service: it takes a text and answers sound in a form of its own choice."""

from urllib.parse import quote

import msgspec

from stentor.core.sound import SpeechForm
from stentor.flows.failure import EngineFailed, EngineRefused
from stentor.flows.speech.request import SpeechAsk

_encode = msgspec.json.Encoder().encode
_FORMS: dict[str, SpeechForm] = {
    "audio/flac": "flac", "audio/x-flac": "flac", "audio/wav": "wav", "audio/x-wav": "wav", "audio/wave": "wav",
    "audio/mpeg": "mp3", "audio/mp3": "mp3", "audio/ogg": "opus", "audio/aac": "aac",
}  # fmt: skip


def inference_request(ask: SpeechAsk, repo: str) -> tuple[str, bytes]:
    """Path and body of a question to the service. Raises EngineRefused for what it can't be told."""
    if ask.speed != 1.0:
        raise EngineRefused("invalid_request", "This model speaks at its own speed; leave out 'speed'.", param="speed")
    return f"/models/{quote(repo)}", _encode({"inputs": ask.text})


def choose_form(ask: SpeechAsk, media_type: str) -> SpeechForm:
    """The form that the answer has. Raises EngineRefused where the client asked for another one."""
    form = _FORMS.get(media_type)
    if form is None:
        raise EngineFailed("upstream_rubbish", f"it answered {media_type[:60]}, which is no known sound", suspect=True)
    if form != ask.form and not ask.any_form:
        raise EngineRefused(
            "invalid_request",
            f"This model makes {form} alone, not {ask.form}. Ask for response_format '{form}', or leave it out.",
            param="response_format",
        )
    return form
