"""Ollama's API over the chat flow, for editors and apps that were written for it. A key is needed all the same."""

import datetime
import hashlib

import msgspec

from stentor.core.ids import ModelId
from stentor.core.operator import Operate
from stentor.core.principal import Principal
from stentor.core.scheduler import InstanceCard, ModelCard, Scheduler
from stentor.flows.client import AnswerHead
from stentor.flows.dialects import ollama_answer, ollama_request
from stentor.http.connection import Connection
from stentor.http.dialects import ollama_wire as wire
from stentor.http.dialects.service import DialectService, occasion_of, stop_model
from stentor.http.openai.models import may_use
from stentor.http.openai.text import not_in_models

# What of Ollama's API is spoken here. Its clients refuse servers that say less than they need.
OLLAMA_VERSION = "0.13.0"
_CAPABILITIES = {
    "text": ("completion", "tools"), "image": ("vision",), "audio": ("audio",), "embedding": ("embedding",),
}  # fmt: skip
_ELSEWHERE = ("openai", "anthropic", "hf-inference")  # there is nothing to load here
_FOREVER = "9999-12-31T23:59:59Z"
_LAST_US = 253_402_300_799 * 1_000_000
_encode = msgspec.json.Encoder().encode
_JSON = (b"content-type", b"application/json; charset=utf-8")


class OllamaEndpoints:
    """Answers, and what there is to ask."""

    def __init__(self, service: DialectService, scheduler: Scheduler, operate: Operate) -> None:
        self._service = service
        self._scheduler = scheduler
        self._operate = operate

    async def chat(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /api/chat"""
        asked = ollama_request.read_chat(await self._service.read_body(connection))
        await self._answer(connection, principal, asked, chat=True)

    async def generate(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /api/generate"""
        asked = ollama_request.read_generate(await self._service.read_body(connection))
        await self._answer(connection, principal, asked, chat=False)

    async def _answer(
        self,
        connection: Connection,
        principal: Principal,
        asked: ollama_request.OllamaAsk | ollama_request.Preload,
        *,
        chat: bool,
    ) -> None:
        if isinstance(asked, ollama_request.Preload):
            await self._preload(connection, principal, asked, chat=chat)
            return
        voice = ollama_answer.OllamaVoice(occasion_of(connection), asked.model, chat=chat)
        await self._service.run(connection, principal, asked.ask, voice, "ollama")

    async def _preload(
        self, connection: Connection, principal: Principal, asked: ollama_request.Preload, *, chat: bool
    ) -> None:
        """Have a model loaded, by a request without a question, or unloaded."""

        def answer() -> bytes:
            return _encode(ollama_answer.preloaded(asked.model, chat=chat, leave=asked.leave))

        card = await self._find(principal, ollama_request.plain_name(asked.model))
        if asked.leave and "admin" in principal.scopes:
            await stop_model(self._operate, connection, principal, card.id)
        elif card.engine not in _ELSEWHERE and not (asked.leave and card.state in ("cold", "failed")):
            # Others share the model: for an ordinary key it leaves as after a question, once it is idle.
            ask = ollama_request.preload_ask(asked, answer)
            await self._service.run_inputs(connection, principal, ask, connection)
            return
        await _respond(connection, answer())

    async def embed(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /api/embed"""
        ask = ollama_request.read_embed(await self._service.read_body(connection))
        await self._service.run_inputs(connection, principal, ask, _EmbedClient(connection, old=False))

    async def embeddings(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /api/embeddings"""
        ask = ollama_request.read_old_embeddings(await self._service.read_body(connection))
        await self._service.run_inputs(connection, principal, ask, _EmbedClient(connection, old=True))

    async def tags(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /api/tags"""
        cards = [card for card in await self._scheduler.list_models() if may_use(principal, card)]
        await _respond(connection, _encode(wire.OllamaTags([_tag(card) for card in cards])))

    async def show(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """POST /api/show"""
        card = await self._find(principal, ollama_request.read_show(await self._service.read_body(connection)))
        capabilities = [word for ability in card.abilities for word in _CAPABILITIES.get(ability, ())]
        shown = wire.OllamaModel(
            modelfile="",
            parameters="",
            template="",
            details=_details(card),
            model_info=_model_info(card),
            capabilities=capabilities,
            modified_at=_time_text(card.created_us),
        )
        await _respond(connection, _encode(shown))

    async def running(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /api/ps"""
        ready: dict[ModelId, list[InstanceCard]] = {}
        for instance in await self._scheduler.list_instances():
            if instance.state == "ready":
                ready.setdefault(instance.model, []).append(instance)
        cards = [card for card in await self._scheduler.list_models() if card.id in ready and may_use(principal, card)]
        models = [_running(card, ready[card.id]) for card in cards]
        await _respond(connection, _encode(wire.OllamaProcesses(models)))

    async def version(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /api/version"""
        await _respond(connection, _encode(wire.OllamaVersion(OLLAMA_VERSION)))

    async def _find(self, principal: Principal, name: str) -> ModelCard:
        card = await self._scheduler.find_model(name, principal.models)
        if card is None:
            raise not_in_models(name)
        return card


class _EmbedClient:
    """A caller of ``/api/embed``, or of ``/api/embeddings`` (``old``): behind ``stentor.flows.client.Client``."""

    def __init__(self, connection: Connection, *, old: bool) -> None:
        self.request_id = connection.request_id
        self.received_s = connection.received_s
        self._connection = connection
        self._old = old
        self.start_stream = connection.start_stream
        self.write = connection.write
        self.end_stream = connection.end_stream
        self.fail_stream = connection.fail_stream

    async def answer(self, head: AnswerHead, body: bytes) -> None:
        if self._old:
            said = ollama_answer.old_embeddings_answer(body)
        else:
            said = ollama_answer.embed_answer(body, occasion_of(self._connection), head.model)
        await self._connection.answer(head, said)


def _tag(card: ModelCard) -> wire.OllamaTag:
    name = card.id + ollama_request.LATEST
    digest = hashlib.sha256(f"{card.id}\n{card.source}".encode()).hexdigest()
    return wire.OllamaTag(name, name, _time_text(card.created_us), card.file.size_bytes, digest, _details(card))


def _details(card: ModelCard) -> wire.OllamaDetails:
    file, family = card.file, card.file.architecture
    families = [family, *(["clip"] if "image" in card.abilities else [])] if family else None
    form = "" if card.engine in _ELSEWHERE else "gguf"
    return wire.OllamaDetails("", form, family, families, file.parameters, file.quant)


def _model_info(card: ModelCard) -> dict[str, str | int]:
    """What clients look up: lengths stand under the architecture's name, whatever it is."""
    file = card.file
    architecture = file.architecture or "stentor"
    info: dict[str, str | int] = {
        "general.architecture": architecture,
        "general.basename": card.id,
        f"{architecture}.context_length": card.context_size,
        "stentor.context_length": card.context_size,
    }
    if file.parameter_count:
        info["general.parameter_count"] = file.parameter_count
    if file.vector_size:
        info[f"{architecture}.embedding_length"] = file.vector_size
    return info


def _running(card: ModelCard, instances: list[InstanceCard]) -> wire.OllamaRunning:
    """A loaded model; it is there as long as one of its ``instances`` is."""
    times_us = [instance.leaves_us for instance in instances]
    last_us = max((time_us for time_us in times_us if time_us is not None), default=0)
    tag = _tag(card)
    return wire.OllamaRunning(
        tag.name,
        tag.model,
        tag.modified_at,
        max(instance.resident_bytes for instance in instances),
        tag.digest,
        tag.details,
        _FOREVER if None in times_us else _time_text(last_us),
        0,
        card.context_size,
    )


def _time_text(time_us: int) -> str:
    made = datetime.datetime.fromtimestamp(min(time_us, _LAST_US) / 1_000_000, datetime.UTC)
    return made.isoformat(timespec="seconds").replace("+00:00", "Z")


async def _respond(connection: Connection, body: bytes) -> None:
    await connection.respond(200, [(b"x-request-id", connection.request_id.encode()), _JSON], body)
