"""Models without a process: a number of places each, a queue in front of them, and a circuit that knows their health.

The scheduler keeps them beside its pools and asks them the same questions.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from stentor.core.errors import Refused
from stentor.core.ids import InstanceId, KeyId, ModelId
from stentor.core.remote import RemoteKind
from stentor.core.scheduler import ModelCard, ModelState
from stentor.runtime.circuit import Circuit, CircuitPolicy
from stentor.runtime.place import Place
from stentor.runtime.queue import Waiter, WaitQueue, refuse_late
from stentor.runtime.spec import ModelSpec, ServedModel
from stentor.telemetry.logs import Log


class Provider(msgspec.Struct, frozen=True):
    """An entry of the vault: where, how, and with which credential an upstream is asked."""

    kind: RemoteKind
    base_url: str
    credential: str

    def __repr__(self) -> str:
        return f"Provider(kind={self.kind!r}, base_url={self.base_url!r})"


class Address(msgspec.Struct, frozen=True):
    """An upstream as a probe asks it."""

    kind: RemoteKind
    base_url: str
    credential: str
    trusted: bool

    def __repr__(self) -> str:
        return f"Address(kind={self.kind!r}, base_url={self.base_url!r})"


FindProvider = Callable[[str], Provider | None]
Tell = Callable[[str], None]
"""Is told the name of a provider whenever a place at it is taken; empty where a model has none."""
Look = Callable[[Address], Awaitable[str]]
"""Looks at an upstream's list of models: empty if it is well, else what is wrong, for operators."""


class Remote:
    """One remote model: its places, who waits for them, and whether it is worth asking."""

    def __init__(
        self, spec: ModelSpec, find_provider: FindProvider, on_taken: Tell, queue_max: int, generation: int = 0
    ) -> None:
        assert spec.remote is not None
        self.generation = generation
        self.spec = spec
        self.remote = spec.remote
        self.instance = InstanceId(f"{spec.id}#remote")
        self.running = 0
        self.enabled = True
        self.queue = WaitQueue(queue_max)
        self.circuit = Circuit(CircuitPolicy())
        self.problem = ""
        self.idle = asyncio.Event()
        self.idle.set()
        self._find_provider = find_provider
        self._on_taken = on_taken
        self._address: Address | None = None

    def address(self) -> Address | None:
        """Where it is now; None while the vault has no provider of its name and kind."""
        remote = self.remote
        provider = self._find_provider(remote.provider) if remote.provider else None
        if remote.provider and provider is None:
            return None
        if provider is not None and provider.kind != remote.kind:
            return None
        base_url = remote.base_url or (provider.base_url if provider else "")
        return Address(remote.kind, base_url.rstrip("/"), provider.credential if provider else "", remote.is_trusted)

    def try_take(self, now_s: float) -> Place | None:
        """A free place, or None where all are taken, somebody waits, or it isn't worth asking."""
        if self.queue.length or self.running >= self.spec.parallel or self.find_refusal(now_s) is not None:
            return None
        return self._take(now_s, 0)

    def _take(self, now_s: float, queued_us: int) -> Place:
        address = self._address  # the one that was just found to be worth asking
        assert address is not None
        self.circuit.begin(now_s)
        self._on_taken(self.remote.provider)
        self.running += 1
        self.idle.clear()
        return Place(self.instance, self.generation, address.base_url, address.credential, queued_us)

    def find_refusal(self, now_s: float) -> Refused | None:
        """Why a request can't be sent now, or None."""
        if not self.enabled:
            return _unavailable(self.spec, "it was stopped by an administrator", 60.0)
        self._address = self.address()
        if self._address is None:
            if self.remote.terms().ours:
                return _unavailable(self.spec, "no server that runs it is up", 5.0)
            return _unavailable(self.spec, f"there is no provider '{self.remote.provider}' of its kind", 60.0)
        if not self.circuit.allows(now_s):
            return _unavailable(self.spec, "its upstream doesn't answer", max(1.0, self.circuit.retry_s(now_s)))
        return None

    async def wait(self, served: ServedModel, key_id: KeyId, timeout_s: float) -> Place:
        """Wait in line for a place. Raises Refused; a cancelled wait holds nothing."""
        future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        waiter = Waiter(key_id, 0, time.monotonic(), future)
        self.queue.add(waiter, served)
        try:
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            self._leave(waiter)
            raise refuse_late(served, timeout_s, loading=False) from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def _leave(self, waiter: Waiter) -> None:
        self.queue.remove(waiter)
        future = waiter.place
        if not future.done():
            future.cancel()
        elif not future.cancelled() and future.exception() is None:
            # The place was given in the same moment: it goes to the next in line.
            self.circuit.forget()
            self.give_back()

    def give_back(self) -> None:
        """A request is over."""
        self.running = max(0, self.running - 1)
        if self.running == 0:
            self.idle.set()
        self.serve_waiting()

    def serve_waiting(self) -> None:
        """Give free places to those who wait; once the upstream isn't worth asking, they are told."""
        while self.queue.length and self.running < self.spec.parallel:
            now_s = time.monotonic()
            refusal = self.find_refusal(now_s)
            if refusal is not None:
                if self.circuit.state(now_s) != "half-open":
                    self.queue.refuse_all(self._refuse_waiting)
                return
            waiter = self.queue.pop()
            if waiter is None:
                return
            waited_us = int((now_s - waiter.queued_at_s) * 1_000_000)
            waiter.place.set_result(self._take(now_s, waited_us))

    def _refuse_waiting(self) -> Refused:
        return self.find_refusal(time.monotonic()) or _unavailable(self.spec, "its upstream doesn't answer", 1.0)

    def state(self, now_s: float) -> ModelState:
        """One word for it: ``cold`` while it was stopped."""
        if not self.enabled:
            return "cold"
        return "ready" if self.address() is not None and self.circuit.state(now_s) != "open" else "failed"


class Remotes:
    """All remote models of a server."""

    def __init__(self, queue_max: int, log: Log | None = None) -> None:
        self._providers: FindProvider = _find_nothing
        self._queue_max = queue_max
        self._look: Look | None = None
        self._log = log
        self._remotes: dict[ModelId, Remote] = {}
        self._by_instance: dict[InstanceId, Remote] = {}
        self._closing = False
        self._made = 0
        self.on_taken: Tell = _ignore

    def connect(self, find_provider: FindProvider, look: Look) -> None:
        """Say where providers are found, and who looks at upstreams; before that there are none, and nobody does."""
        self._providers = find_provider
        self._look = look

    def _find_provider(self, name: str) -> Provider | None:
        return self._providers(name)

    def _tell_taken(self, provider: str) -> None:
        self.on_taken(provider)

    def __contains__(self, model: ModelId) -> bool:
        return model in self._remotes

    def add(self, specs: Iterable[ModelSpec]) -> None:
        """Take in the remote ones of ``specs``; one that is there already is replaced, its requests go on."""
        for spec in specs:
            if spec.remote is not None:
                self.remove(ModelId(spec.id))
                self._made += 1
                remote = Remote(spec, self._find_provider, self._tell_taken, self._queue_max, self._made)
                self._remotes[ModelId(spec.id)] = remote
                self._by_instance[remote.instance] = remote

    def remove(self, model: ModelId) -> None:
        """Forget a model; whoever waits for it is told."""
        remote = self._remotes.pop(model, None)
        if remote is not None:
            del self._by_instance[remote.instance]
            remote.queue.refuse_all(lambda: _unavailable(remote.spec, "it was removed", 1.0))

    # -- requests --------------------------------------------------------------------------------------------------

    def try_acquire(self, model: ModelId) -> Place | None:
        """A free place, if nobody waits for one."""
        remote = self._remotes.get(model)
        return None if remote is None or self._closing else remote.try_take(time.monotonic())

    async def acquire(self, served: ServedModel, key_id: KeyId, timeout_s: float) -> Place:
        """A place, after waiting where needed. Raises Refused."""
        remote = self._remotes[served.id]
        now_s = time.monotonic()
        refusal = remote.find_refusal(now_s)
        if refusal is not None:
            raise refusal
        return remote.try_take(now_s) or await remote.wait(served, key_id, timeout_s)

    def release(self, instance: InstanceId, generation: int) -> None:
        """Give a place back; one of a model that is gone is ignored."""
        remote = self._by_instance.get(instance)
        if remote is not None and remote.generation == generation:
            remote.give_back()

    def is_available(self, model: ModelId) -> bool:
        """Whether asking is worth it now; True for what isn't remote."""
        remote = self._remotes.get(model)
        return remote is None or remote.find_refusal(time.monotonic()) is None

    def report(self, model: ModelId, ok: bool | None, retry_after_s: float) -> None:
        """How a request went: None says nothing about the upstream. Called before its place is given back."""
        remote = self._remotes.get(model)
        if remote is None:
            return
        now_s = time.monotonic()
        before = remote.circuit.state(now_s)
        if ok:
            remote.circuit.succeed()
            remote.problem = ""
        elif ok is None:
            remote.circuit.forget()
        else:
            remote.circuit.fail(now_s)
        if retry_after_s > 0:
            remote.circuit.pause(now_s, retry_after_s)
        self._say(remote, before, now_s)

    def _say(self, remote: Remote, before: str, now_s: float) -> None:
        after = remote.circuit.state(now_s)
        if self._log is not None and before != after:
            self._log.event("upstream_changed", level="warning", model=remote.spec.id, state=after)

    # -- what operators see and do ---------------------------------------------------------------------------------

    def describe(self, served: ServedModel, created_us: int) -> ModelCard:
        """The model as operators and clients see it."""
        remote = self._remotes[served.id]
        now_s = time.monotonic()
        refusal = remote.find_refusal(now_s)
        state = remote.state(now_s)
        return ModelCard(
            id=served.id,
            aliases=served.aliases,
            abilities=served.abilities,
            context_size=served.context_size,
            state=state,
            engine=served.engine,
            created_us=created_us,
            source=remote.remote.provider or "remote",
            places=remote.spec.parallel,
            ready_instances=int(state == "ready"),
            reason=remote.problem or ("" if refusal is None else refusal.details["reason"]),
            type=served.type,
            voices=served.voices,
        )

    def models(self) -> list[ModelId]:
        """All ids."""
        return list(self._remotes)

    def set_enabled(self, model: ModelId, enabled: bool) -> None:
        """Starting and stopping a model that has no process. Starting it gives it another chance at once."""
        remote = self._remotes[model]
        remote.enabled = enabled
        if enabled:
            remote.circuit.invite(time.monotonic())
        remote.serve_waiting()

    def running_by_model(self) -> dict[ModelId, int]:
        """Requests under way, by model."""
        return {model: remote.running for model, remote in self._remotes.items()}

    def waiting_by_model(self) -> dict[ModelId, int]:
        """Requests that wait for a place, by model."""
        return {model: remote.queue.length for model, remote in self._remotes.items()}

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look at every upstream in its own time, for ever."""
        if self._look is None:
            return
        due: dict[ModelId, float] = {}
        while True:
            now_s = time.monotonic()
            turn = []
            for model, remote in self._remotes.items():
                if remote.remote.health_s and now_s >= due.get(model, 0.0):
                    due[model] = now_s + remote.remote.health_s
                    turn.append(self._examine(remote, self._look))
            await asyncio.gather(*turn)
            await asyncio.sleep(1.0)

    async def _examine(self, remote: Remote, look: Look) -> None:
        address = remote.address()
        if address is None or not remote.enabled:
            return
        problem = await look(address)
        now_s = time.monotonic()
        before = remote.circuit.state(now_s)
        remote.problem = problem
        if problem:
            remote.circuit.fail(now_s)
        else:
            remote.circuit.invite(now_s)
            remote.serve_waiting()
        self._say(remote, before, now_s)

    def close(self, refuse: Callable[[], Refused]) -> None:
        """No new requests; whoever waits is refused."""
        self._closing = True
        for remote in self._remotes.values():
            remote.queue.refuse_all(refuse)

    async def drained(self, drain_s: float) -> None:
        """Wait until nothing runs, at most ``drain_s``."""
        try:
            async with asyncio.timeout(drain_s):
                for remote in list(self._remotes.values()):
                    await remote.idle.wait()
        except TimeoutError:
            return


def _find_nothing(_name: str) -> Provider | None:
    return None


def _ignore(_name: str) -> None:
    return


def _unavailable(spec: ModelSpec, why: str, retry_s: float) -> Refused:
    return Refused(
        "model_unavailable",
        f"The model '{spec.id}' can't be reached now: {why}. Try again later.",
        retry_after_s=round(retry_s, 1),
        details={"reason": why},
    )
