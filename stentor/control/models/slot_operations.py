"""The operations on slots: which engine serves where, in the words of LLM Gateway's API and our own."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from stentor.control.management import Management
from stentor.control.models.book import ModelBook, make_spec
from stentor.control.reading import Operation, Row, actor_of, number_of, page_of, read_body
from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.core.operator import Task
from stentor.core.scheduler import EngineControl, InstanceCard, ModelCard, SlotCard
from stentor.runtime.folders import ModelFolders
from stentor.runtime.origins import id_from_source
from stentor.runtime.sources import Sources
from stentor.runtime.spec import ModelSpec, ModelType

LOG_WAIT_MAX_S = 30
INSTANCES_MAX = 64
_STATUS = {
    "starting": "loading",
    "ready": "loaded",
    "draining": "draining",
    "stopping": "unloading",
    "stopped": "stopped",
    "failed": "failed",
}
_SEEDS_WORDS = {
    "text": "text",
    "vision": "image",
    "audio": "audio",
    "embedding": "embedding",
    "rerank": "rerank",
    "transcription": "transcription",
    "tts": "speech",
}


class _Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to load: a model of the catalogue, or a file below the model folders."""

    slot: int | None = None
    model: str = ""
    model_path: str = ""
    model_type: ModelType | None = None
    ctx_size: int | None = None
    threads: int | None = None
    mmproj_path: str | None = None
    instances: int = 1


class Gauges(Protocol):
    """What the machine says of itself and of processes."""

    async def describe(self) -> Row:
        """CPU, memory, disk, GPUs, as plain values."""
        ...

    async def measure(self, pids: Sequence[int]) -> Mapping[int, tuple[float, float]]:
        """Memory in MiB and CPU in percent of one core, of the processes that are still there."""
        ...


class Shelf:
    """Where definitions and files of models are found."""

    def __init__(self, book: ModelBook, sources: Sources, folders: ModelFolders) -> None:
        self.book = book
        self.sources = sources
        self.folders = folders


class SlotOperations:
    """Loading, draining, unloading; what is where, and what it takes."""

    def __init__(self, engines: EngineControl, management: Management, shelf: Shelf, gauges: Gauges) -> None:
        self._engines = engines
        self._management = management
        self._shelf = shelf
        self._gauges = gauges

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "list_slots": self.list_slots,
            "load_slot": self.load,
            "unload_slot": self.unload,
            "drain_slot": self.drain,
            "read_log": self.read_log,
            "system": self.system,
        }

    # -- looking -----------------------------------------------------------------------------------------------------

    async def list_slots(self, task: Task) -> Row:
        """All slots by port, empty ones too; then engines that hold none, which failed or were stopped."""
        return page_of(await self._slot_rows(), None)

    async def system(self, task: Task) -> Row:
        """The machine and its engines."""
        return {**await self._gauges.describe(), "slots": await self._slot_rows()}

    async def _slot_rows(self) -> list[Row]:
        slots = await self._engines.list_slots()
        held = {slot.instance.id for slot in slots if slot.instance is not None}
        rest = [card for card in await self._engines.list_instances() if card.id not in held]
        cards = {card.id: card for card in await self._engines.list_models()}
        pids = [card.pid for card in (*(slot.instance for slot in slots), *rest) if card is not None and card.pid]
        measured = await self._gauges.measure(pids)
        paths = await asyncio.to_thread(self._find_paths, {card.model for card in cards_of(slots, rest)})
        rows = []
        for slot in slots:
            if slot.instance is None:
                rows.append(_empty(slot.port))
            else:
                rows.append(self._row(slot.instance, cards, measured, paths))
        return rows + [self._row(card, cards, measured, paths) for card in rest]

    def _find_paths(self, models: set[ModelId]) -> dict[ModelId, str]:
        found = {}
        for model in models:
            spec = self._shelf.book.find(model)
            path = self._shelf.sources.find(spec.source) if spec is not None and spec.source else None
            if path is not None:
                found[model] = str(path)
        return found

    def _row(
        self,
        card: InstanceCard,
        models: Mapping[ModelId, ModelCard],
        measured: Mapping[int, tuple[float, float]],
        paths: Mapping[ModelId, str],
    ) -> Row:
        spec = self._shelf.book.find(card.model)
        model = models.get(card.model)
        abilities = model.abilities if model is not None else ()
        ram_mb, cpu_percent = measured.get(card.pid or 0, (0.0, 0.0))
        row: Row = msgspec.to_builtins(card)
        return row | {
            "status": _STATUS[card.state],
            "model_name": card.model,
            "model_path": paths.get(card.model, ""),
            "model_type": _type_of(spec, model),
            "ctx_size": card.context_size or (0 if model is None else model.context_size),
            "threads": None if spec is None else spec.threads,
            "capabilities": {word: ability in abilities for word, ability in _SEEDS_WORDS.items()},
            "abilities": list(abilities),
            "ram_mb": ram_mb,
            "cpu_percent": cpu_percent,
        }

    async def read_log(self, task: Task) -> Row:
        """An engine's last lines, or those after ``after``, for which it waits ``wait_s``."""
        slot = task.params["slot"]
        wait_s = min(max(number_of(task.query, "wait_s") or 0, 0), LOG_WAIT_MAX_S)
        page = await self._engines.read_log(slot, max(number_of(task.query, "after") or 0, 0), wait_s)
        if page is None:
            raise Refused("not_found", f"There is no engine '{slot[:128]}'; `stentor ps` shows all.")
        return page_of(page.lines, page.next)

    # -- changing ----------------------------------------------------------------------------------------------------

    async def load(self, task: Task) -> Row:
        """Bring a model up, in a slot of its own if one is named; what is there drains first."""
        ask = read_body(task.body, _Load)
        if not 1 <= ask.instances <= INSTANCES_MAX:
            raise Refused("invalid_request", f"instances is {ask.instances}; use 1 to {INSTANCES_MAX}.")
        spec = await self._find_spec(task, ask)
        after = {"slot": ask.slot, "instances": ask.instances}
        await self._management.record(actor_of(task), "slot_load", ("model", spec.id), after)
        cards = await self._engines.load(ModelId(spec.id), ask.instances, ask.slot)
        card = next((card for card in cards if card.port == ask.slot), cards[0] if cards else None)
        if card is None:
            raise Refused("model_unavailable", f"The model '{spec.id}' was stopped while it was being loaded.")
        return {
            "status": "loaded",
            "slot": card.port,
            "model": spec.id,
            "model_type": _type_of(spec, await self._engines.find_model(spec.id)),
            "pid": card.pid,
            "instance": card.id,
        }

    async def _find_spec(self, task: Task, ask: _Load) -> ModelSpec:
        """The definition to load, registered or changed as the request says. Raises Refused."""
        if bool(ask.model) == bool(ask.model_path):
            raise Refused("invalid_request", "Name either a model or a model_path.", param="model")
        fields: dict[str, Any] = {"type": ask.model_type, "ctx": ask.ctx_size, "threads": ask.threads}
        if ask.mmproj_path is not None:
            path = await asyncio.to_thread(self._shelf.folders.resolve, ask.mmproj_path, "mmproj_path")
            fields["mmproj"] = str(path)
        fields = {name: value for name, value in fields.items() if value is not None}
        book = self._shelf.book
        if ask.model:
            card = await self._engines.find_model(ask.model)
            if card is None:
                raise Refused("model_not_found", f"There is no model '{ask.model[:128]}'.", param="model")
            model = card.id
        else:
            path = await asyncio.to_thread(self._shelf.folders.resolve, ask.model_path, "model_path")
            source = f"file:{path}"
            known = book.sources().get(source)
            if not known:
                spec = make_spec({"id": id_from_source(source), "source": source, **fields})
                return await book.register(actor_of(task), spec)
            model = known[0]
        spec = book.get(model)
        if all(getattr(spec, name) == value or str(getattr(spec, name)) == value for name, value in fields.items()):
            return spec
        return await book.change(actor_of(task), model, fields)

    async def unload(self, task: Task) -> Row:
        """Let a slot's requests end, then stop its engine."""
        slot = _port(task)
        model = await self._find_model(slot)
        await self._engines.unload(slot)
        # Afterwards: an engine must be stoppable even while nothing can be written.
        await self._management.record(actor_of(task), "slot_unload", ("model", model), {"slot": slot})
        return {"status": "unloaded", "slot": slot, "model": model}

    async def drain(self, task: Task) -> Row:
        """Give a slot no new requests, and wait for those that run."""
        slot = _port(task)
        model = await self._find_model(slot)
        await self._engines.drain(slot)
        await self._management.record(actor_of(task), "slot_drain", ("model", model), {"slot": slot})
        return {"status": "drained", "slot": slot, "model": model}

    async def _find_model(self, slot: int) -> str:
        for card in await self._engines.list_slots():
            if card.port == slot and card.instance is not None:
                return card.instance.model
        raise Refused("not_found", f"Slot {slot} is empty, or there is no such slot; `stentor ps` shows all.")


def _type_of(spec: ModelSpec | None, card: ModelCard | None) -> str:
    """What the model was found to be; of one that is in the catalogue no more, what it was declared as."""
    return card.type if card is not None else (spec.type or "" if spec is not None else "")


def cards_of(slots: Sequence[SlotCard], rest: Sequence[InstanceCard]) -> list[InstanceCard]:
    """All instances, in slots and out of them."""
    return [*(slot.instance for slot in slots if slot.instance is not None), *rest]


def _port(task: Task) -> int:
    text = task.params["slot"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 5):
        raise Refused("not_found", f"'{text[:40]}' isn't a slot; slots are named by their ports.")
    return int(text)


def _empty(port: int) -> Row:
    return {
        "port": port,
        "status": "empty",
        "id": "",
        "model": "",
        "state": "empty",
        "pid": None,
        "generation": 0,
        "running": 0,
        "places": 0,
        "started_us": None,
        "restarts": 0,
        "reason": "",
        "log_tail": [],
        "planned_bytes": 0,
        "resident_bytes": 0,
        "context_size": 0,
        "leaves_us": None,
        "model_name": "",
        "model_path": "",
        "model_type": "",
        "ctx_size": 0,
        "threads": None,
        "capabilities": dict.fromkeys(_SEEDS_WORDS, False),
        "abilities": [],
        "ram_mb": 0.0,
        "cpu_percent": 0.0,
    }
