"""Slots: wire types and routes."""

from typing import Literal

import msgspec

from stentor.http.admin import wire
from stentor.http.route import Route, admin
from stentor.http.wire import Json

ModelType = Literal["text", "vision", "omni", "embedding", "vision-embedding", "reranker", "audio", "tts", "listen"]


class Capabilities(msgspec.Struct):
    """What the model in a slot can take and give."""

    text: bool
    vision: bool
    audio: bool
    embedding: bool
    rerank: bool
    transcription: bool
    tts: bool


class Slot(msgspec.Struct):
    """A port and the engine on it. ``status`` is what people read, ``state`` the engine's own.

    ``threads`` null: the server's default. ``cpu_percent`` is of one core, since the last look. ``leaves_us`` is when
    it is unloaded if nobody asks it any more, in µs since 1970; null: not for being idle.
    """

    port: int
    status: Literal["empty", "loading", "loaded", "draining", "unloading", "stopped", "failed"]
    model_path: str
    model_name: str
    model_type: str
    ctx_size: int
    threads: int | None
    pid: int | None
    capabilities: Capabilities
    abilities: list[str]
    ram_mb: float
    cpu_percent: float
    reason: str
    id: str
    model: str
    state: str
    generation: int
    running: int
    places: int
    started_us: int | None
    restarts: int
    planned_bytes: int
    resident_bytes: int
    context_size: int
    leaves_us: int | None
    log_tail: list[str]


class SlotPage(msgspec.Struct):
    """All slots by port; then engines that hold none: they failed or were stopped."""

    data: list[Slot]
    next: None


class LoadRequest(msgspec.Struct, omit_defaults=True):
    """A model of the catalogue, or a file below the model folders. ``slot`` is a port; what is there drains first."""

    slot: int | None = None
    model: str = ""
    model_path: str = ""
    model_type: ModelType | None = None
    ctx_size: int | None = None
    threads: int | None = None
    mmproj_path: str | None = None
    instances: int = 1


class Loaded(msgspec.Struct):
    """Where the model serves now."""

    status: Literal["loaded"]
    slot: int
    model: str
    model_type: str
    pid: int | None
    instance: str


class Unloaded(msgspec.Struct):
    """What became of the slot."""

    status: Literal["unloaded", "drained"]
    slot: int
    model: str


class System(msgspec.Struct):
    """The machine: cores, memory and disk in bytes, GPUs, and the slots."""

    cpu: Json
    memory: Json
    disk: Json
    gpus: list[Json]
    slots: list[Slot]


_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

ROUTES: tuple[Route, ...] = (
    admin("GET", "/slots", "list_slots", "Slots and what serves in them, with last log lines.", None, SlotPage),
    admin("POST", "/slots/load", "load_slot", "Load a model, into a slot if one is named.", LoadRequest, Loaded),
    admin("POST", "/slots/{slot}/unload", "unload_slot", "Drain a slot and stop its engine.", None, Unloaded),
    admin("POST", "/slots/{slot}/drain", "drain_slot", "Give a slot no new requests.", None, Unloaded),
    admin(
        "GET", "/slots/{slot}/log", "read_log", "An engine's last log lines, by port or instance.", None, wire.LogPage
    )._replace(query=("after", "wait_s")),
    Route(
        "GET", "/admin/api/slots/{slot}/logs", "follow_log", "admin", "An engine's log as it is written.", "admin",
        envelope="detail", media_type="text/event-stream",
    ),
    admin("GET", "/system", "system", "The machine and its engines.", None, System),
    *(
        Route(
            method, "/upstream/{instance}/{rest}", "pass_on", "admin",
            "Pass a request on to an engine of this machine, by instance, port or model. Not metered.", "admin",
            envelope="detail", media_type="*/*",
        )
        for method in _METHODS
    ),
)  # fmt: skip
