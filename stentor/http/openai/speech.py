"""``/v1/audio/speech`` and ``/v1/audio/voices``: from the connection to the flow and back."""

from urllib.parse import parse_qsl

from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.core.scheduler import Scheduler
from stentor.flows.client import AnswerHead
from stentor.flows.speech.delivery import media_type_of
from stentor.flows.speech.request import SpeechAsk, read_speech
from stentor.http.connection import Connection
from stentor.http.errors import error_frame
from stentor.http.openai import audio_wire
from stentor.http.openai.models import may_use, respond_json
from stentor.http.openai.text import TextEndpoints, not_in_models


class _Listener:
    """Who hears a speech, behind ``stentor.flows.client.Client``."""

    def __init__(self, connection: Connection, ask: SpeechAsk) -> None:
        self.request_id = connection.request_id
        self.received_s = connection.received_s
        self._connection = connection
        self._ask = ask
        self.write = connection.write
        self.end_stream = connection.end_stream
        self.answer = connection.answer
        connection.fail = self.fail_stream

    async def start_stream(self, head: AnswerHead) -> None:
        media_type = media_type_of(self._ask.form, self._ask.delivery)  # an upstream may have chosen its own
        await self._connection.start_stream(head, media_type.encode())

    async def fail_stream(self, refusal: Refused) -> None:
        # Sound can't say that it ends early: the connection closes without its last chunk.
        if self._ask.delivery == "sse":
            await self._connection.write(error_frame(refusal))
        await self._connection.cut()


class SpeechEndpoints:
    """Texts spoken aloud."""

    def __init__(self, text: TextEndpoints, scheduler: Scheduler, body_max_bytes: int) -> None:
        self._text = text
        self._scheduler = scheduler
        self._body_max_bytes = body_max_bytes

    async def speak(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /v1/audio/speech"""
        as_json = (connection.header(b"accept") or b"").strip().lower() == b"application/json"
        ask = read_speech(await connection.read_body(self._body_max_bytes), as_json=as_json)
        await self._text.answer(connection, principal, ask, _Listener(connection, ask))

    async def list_voices(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /v1/audio/voices"""
        cards = [card for card in await self._scheduler.list_models() if may_use(principal, card)]
        wanted = dict(parse_qsl(connection.exchange.query.decode("latin-1"))).get("model", "")
        if wanted:
            named = await self._scheduler.find_model(wanted, principal.models)
            cards = [card for card in cards if named is not None and card.id == named.id]
            if not cards:
                raise not_in_models(wanted)
        voices = [audio_wire.Voice(voice.id, card.id, voice.language) for card in cards for voice in card.voices]
        names = [audio_wire.VoiceName(name, name) for name in dict.fromkeys(voice.id for voice in voices)]
        await respond_json(connection, audio_wire.VoiceList(data=voices, voices=names))
