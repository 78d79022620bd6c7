"""A gateway put together: the same parts in the one process of a small server and in each worker of a larger one."""

import asyncio
import gc
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from stentor.core.books import Books
from stentor.core.clock import SystemClock
from stentor.core.operator import Operate
from stentor.core.scheduler import Scheduler
from stentor.core.sessions import SessionBook
from stentor.egress.engines import EngineSettings
from stentor.egress.outbound import Outbound
from stentor.egress.passage import EnginePassage
from stentor.egress.settings import EgressSettings
from stentor.flows.attempt import Attempt
from stentor.flows.calls import Calls
from stentor.flows.chat import ChatFlow
from stentor.flows.hearing import HearingAttempt
from stentor.flows.images import ImageFetcher
from stentor.flows.inputs import InputsAttempt
from stentor.flows.listening.stream import Listening
from stentor.flows.speech.speaking import SpeechAttempt
from stentor.flows.upstreams.remote import RemoteClient, Upstreams
from stentor.http.admin.downloads import DownloadEndpoints
from stentor.http.admin.handlers import show_session
from stentor.http.admin.logs import LogEndpoints
from stentor.http.auth import Authenticator
from stentor.http.dialects.handlers import dialect_handlers
from stentor.http.dialects.service import DialectService
from stentor.http.gateway import Callers, Gateway, HttpSettings
from stentor.http.handler import Handler
from stentor.http.open_streams import OpenStreams
from stentor.http.openai.keeping import KeptChat
from stentor.http.openai.models import ModelEndpoints
from stentor.http.openai.speech import SpeechEndpoints
from stentor.http.openai.text import TextEndpoints
from stentor.http.openai.transcriptions import TranscriptionEndpoints, UploadBounds
from stentor.http.passage import EnginePassageEndpoints
from stentor.http.public import PublicEndpoints
from stentor.http.ring.bridge import Bridge
from stentor.http.spool import Spool, sweep_dead
from stentor.telemetry.logs import Log
from stentor.telemetry.trace import Tracer
from stentor.version import VERSION

STOP_S = 5.0


class GatewayParts:
    """What serves requests in this process, and how it ends."""

    def __init__(
        self,
        settings: HttpSettings,
        books: Books,
        scheduler: Scheduler,
        pepper: bytes,
        tracer: Tracer,
        log: Log,
        egress: EgressSettings = EgressSettings(),  # noqa: B008  # frozen
    ) -> None:
        self.calls = Calls()
        self._outbound = Outbound(egress)
        self.engines = Upstreams(EngineSettings(), RemoteClient(self._outbound))
        self.authenticator = Authenticator(books, pepper)
        books.on_revoked(self.calls.interrupt_key)
        self._settings = settings
        self._pepper = pepper
        self._books = books
        self._scheduler = scheduler
        self._tracer = tracer
        self._log = log
        images = ImageFetcher(self._outbound) if egress.allow_image_urls else None
        flow = ChatFlow(books, self.engines, tracer, images=images)
        inputs = ChatFlow(books, self.engines, tracer, InputsAttempt)
        self._text = text = TextEndpoints(flow, inputs, self.calls, settings.body_max_bytes)
        models = ModelEndpoints(scheduler)
        self.listening = Listening(books, self.engines, tracer, self.calls)
        self._streams = OpenStreams()
        books.on_revoked(self._streams.end_of)
        self._passage = EnginePassage()
        passage = EnginePassageEndpoints(scheduler, self._passage, self._streams, log, settings.body_max_bytes)
        self._dialects = DialectService(text, settings.body_max_bytes)
        self._handlers: dict[str, Handler] = {
            "completion": text.completion,
            "embeddings": text.embeddings,
            "rerank": text.rerank,
            "tokenize": text.tokenize,
            "list_models": models.list_models,
            "get_model": models.get_model,
            "pass_on": passage.pass_on,
            **self._audio_handlers(),
        }

    def _audio_handlers(self) -> dict[str, Handler]:
        """What is said written down, and texts spoken aloud."""
        settings = self._settings
        heard, spoken = self._media(HearingAttempt), self._media(SpeechAttempt)
        spool_dir = Path(settings.spool_dir)
        sweep_dead(spool_dir)  # the worker whose place this one may have taken had no time for it
        spool = Spool(spool_dir)
        bounds = UploadBounds(settings.audio_max_bytes, settings.audio_max_s, settings.upload_least_bytes_per_s)
        hearing = TranscriptionEndpoints(heard, spool, bounds)
        speech = SpeechEndpoints(spoken, self._scheduler, settings.body_max_bytes)
        return {
            "transcription": hearing.transcription,
            "translation": hearing.translation,
            "speak": speech.speak,
            "list_voices": speech.list_voices,
        }

    def _media(self, attempt: type[Attempt]) -> TextEndpoints:
        flow = ChatFlow(self._books, self.engines, self._tracer, attempt)
        return TextEndpoints(flow, flow, self.calls, self._settings.body_max_bytes)

    def app(
        self,
        operators: Mapping[str, Handler],
        render_metrics: Callable[[], Awaitable[bytes]],
        operate: Operate,
        sessions: SessionBook,
        *,
        operator_socket: bool = False,
    ) -> Gateway:
        """The application; ``operators`` are the handlers of the managed routes, ``operate`` asks one of them."""
        public = PublicEndpoints(self._books, self._scheduler, render_metrics, VERSION)
        handlers: dict[str, Handler] = {
            **self._handlers,
            **dialect_handlers(self._dialects, self._scheduler, operate, SystemClock()),
            "health": public.health,
            "root": public.root,
            "metrics": public.metrics,
            "openapi": public.openapi,
            "docs": public.docs,
            "chat": KeptChat(self._text, operate, self._log).chat,
            "admin_session": show_session,
            "user_session": show_session,
            "follow_log": LogEndpoints(operate, self._streams).follow,
            "get_download": DownloadEndpoints(operate, self._streams).get,
            **operators,
        }
        bridge = Bridge(self.authenticator, self._pepper) if self._settings.ring_bridge else None
        return Gateway(
            self._settings,
            Callers(self.authenticator, sessions, bridge),
            handlers,
            self._log,
            operator_socket=operator_socket,
        )

    async def drain(self, drain_s: float) -> None:
        """Let running requests end within ``drain_s``, then end them with ``server_shutdown``."""
        self._streams.close()
        if not await self.calls.wait_idle(drain_s):
            self._log.event("requests_interrupted", level="warning", count=len(self.calls))
            self.calls.interrupt_all("server_shutdown")
            await self.calls.wait_idle(STOP_S)

    async def close(self) -> None:
        """Close the connections to engines, and send what waits of the traces."""
        self._streams.close()
        await self._passage.close()
        await self.engines.close()
        await self._outbound.close()
        await asyncio.to_thread(self._tracer.close)


def tune_collector() -> None:
    """Leave what was made at start out of garbage collections, and collect less often: a request makes few cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
