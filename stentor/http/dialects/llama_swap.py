"""What programs written for llama-swap ask of it beside answers: what runs, and that it be unloaded."""

import asyncio

import msgspec

from stentor.core.clock import Clock
from stentor.core.ids import ModelId
from stentor.core.operator import Operate
from stentor.core.principal import Principal
from stentor.core.scheduler import InstanceCard, Scheduler
from stentor.http.connection import Connection
from stentor.http.dialects.service import stop_model
from stentor.http.openai.models import may_use, respond_json
from stentor.http.openai.text import not_in_models

_STATES = {"starting": "starting", "ready": "ready", "draining": "stopping", "stopping": "stopping"}
_BODY_MAX_BYTES = 1024
_ORDER = ("ready", "starting", "stopping")


class SwapRunning(msgspec.Struct):
    """A model that has a process. ``ttl``: seconds until it is unloaded if nobody asks it, 0: not for being idle.

    ``cmd`` and ``proxy`` are empty: how engines are run is nobody's business here.
    """

    model: str
    state: str
    ttl: int
    cmd: str = ""
    proxy: str = ""
    name: str = ""
    description: str = ""


class SwapRunningList(msgspec.Struct):
    """All of them that the key may use."""

    running: list[SwapRunning]


class LlamaSwapEndpoints:
    """Lists, and unloads as administrators do: what runs ends first."""

    def __init__(self, scheduler: Scheduler, operate: Operate, clock: Clock) -> None:
        self._scheduler = scheduler
        self._operate = operate
        self._clock = clock

    async def running(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /running"""
        found = await self._find_loaded()
        cards = [card for card in await self._scheduler.list_models() if card.id in found and may_use(principal, card)]
        now_us = self._clock.now_us()
        await respond_json(connection, SwapRunningList([_running(card.id, found[card.id], now_us) for card in cards]))

    async def unload(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /unload, POST /api/models/unload and /api/models/unload/{model_name}: one model, or all of them."""
        await connection.read_body(_BODY_MAX_BYTES)  # some send an empty object
        name = params.get("model_name", "")
        if name:
            card = await self._scheduler.find_model(name, principal.models)
            if card is None:
                raise not_in_models(name)
            models = [card.id]
        else:
            models = [model for model in await self._find_loaded() if not principal.models or model in principal.models]
        stops = (stop_model(self._operate, connection, principal, model) for model in models)
        for problem in await asyncio.gather(*stops, return_exceptions=True):
            if isinstance(problem, BaseException):
                raise problem
        text = (b"content-type", b"text/plain; charset=utf-8")
        await connection.respond(200, [(b"x-request-id", connection.request_id.encode()), text], b"OK")

    async def _find_loaded(self) -> dict[ModelId, list[InstanceCard]]:
        loaded: dict[ModelId, list[InstanceCard]] = {}
        for instance in await self._scheduler.list_instances():
            if instance.state in _STATES:
                loaded.setdefault(instance.model, []).append(instance)
        return loaded


def _running(model: ModelId, instances: list[InstanceCard], now_us: int) -> SwapRunning:
    states = {_STATES[instance.state] for instance in instances}
    times_us = [instance.leaves_us for instance in instances]
    last_us = max((time_us for time_us in times_us if time_us is not None), default=0)
    left_s = 0 if None in times_us else max(1, (last_us - now_us) // 1_000_000)
    return SwapRunning(model, min(states, key=_ORDER.index), left_s)
