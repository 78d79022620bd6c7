"""From a model's definition to a child that can be spawned: fetch the weights, look at them, fit them in, launch."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from stentor.core.errors import StentorError
from stentor.core.ids import ModelId
from stentor.core.scheduler import ModelFile
from stentor.core.units import MIB
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.downloads import Progress
from stentor.runtime.estimate import estimate_bytes, estimate_memory
from stentor.runtime.file_facts import describe_file
from stentor.runtime.gpus import GpuMemory, GpuPlan, plan_gpu
from stentor.runtime.kinds import Nature, find_nature, reconcile
from stentor.runtime.launchers.base import Launch, Launcher, LaunchOrder, LaunchRefused
from stentor.runtime.launchers.llama_server import LlamaServerLauncher
from stentor.runtime.memory import ContextPlan, choose_pooling, choose_threads, describe_bytes, plan_memory
from stentor.runtime.process import EngineProcess, TakeRoom
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.sizes import Sizes
from stentor.runtime.spec import SPEECH_TYPES, EngineKind, Learned, ModelSpec
from stentor.runtime.speech import Voice, find_voice

# Extra arguments of an operator's that say something about cards.
_ABOUT_CARDS = frozenset({
    "-ngl", "--gpu-layers", "--n-gpu-layers", "-ts", "--tensor-split", "-sm", "--split-mode", "-mg", "--main-gpu",
    "-dev", "--device", "-fit", "--fit", "-ot", "--override-tensor", "--cpu-moe", "-cmoe", "--n-cpu-moe", "-ncmoe",
})  # fmt: skip
_HIDES_CARDS = "CUDA_VISIBLE_DEVICES"


class ModelSource(Protocol):
    """Where weights come from."""

    async def fetch(self, source: str, progress: Progress | None = None) -> Path:
        """The local file or folder of ``source``, downloaded if need be. Raises StentorError."""
        ...

    def find(self, source: str) -> Path | None:
        """The local file or folder of ``source`` if it is there. Raises StentorError."""
        ...


class Rung(msgspec.Struct, frozen=True):
    """How much less a model is given after it ran out of memory: the projector on the CPU, a part of its automatic
    context, and so many times the estimate asked for, which has idle models leave.
    """

    projector_on_cpu: bool = False
    ctx_share: float = 1.0
    margin: float = 1.0


class Preparation:
    """Makes launches for the models of one catalogue."""

    def __init__(
        self,
        settings: RuntimeSettings,
        catalogue: Catalogue,
        source: ModelSource,
        launchers: Mapping[EngineKind, Launcher],
        sizes: Sizes,
        find_gpus: Callable[[], tuple[GpuMemory, ...]] = tuple,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._source = source
        self._launchers = launchers
        self._sizes = sizes
        self._find_gpus = find_gpus
        self._fetching: dict[str, asyncio.Lock] = {}
        self._fetched: dict[str, tuple[int, int]] = {}
        self._found: dict[ModelId, Learned] = {}
        self._rungs: dict[ModelId, int] = {}

    async def prepare(self, spec: ModelSpec, find_budget: Callable[[], int], take_room: TakeRoom) -> Launch:
        """The child that serves ``spec``. Raises StentorError, LaunchRefused where a retry can't help.

        ``find_budget`` says how many bytes it could have at most. Room is taken only once the weights are there: a
        download must not keep a slot from other models.
        """
        threads = spec.threads or choose_threads(self._settings.default_threads)
        weights, pooling, way, rung, gpu = None, spec.pooling, "", Rung(), None
        cards: tuple[GpuMemory, ...] = ()
        if spec.engine == "command":
            plans = self._plan_command(spec, find_budget())
        elif spec.engine in SPEECH_TYPES:
            weights = await self._fetch(spec) if spec.source else None
            voice = await asyncio.to_thread(find_voice, spec, weights)
            spec, way = voice.spec, f"{voice.size_bytes}"
            self._learn_voice(voice)
            plans = self._plan_speech(voice, way, find_budget())
        else:
            weights = await self._fetch(spec)
            nature = await asyncio.to_thread(find_nature, spec, weights)
            spec = nature.spec
            rung = self._choose_rung(spec)
            self._learn(nature, weights)
            pooling = choose_pooling(nature.header, spec)
            seeing_bytes = nature.projector.file_bytes if nature.projector else 0
            way = f"{nature.header.file_bytes + seeing_bytes}/{spec.cache_type_k}/{spec.cache_type_v}"
            cards = await self._find_cards(spec)
            plans = self._plan(nature, way, rung, find_budget(), cards)
        berth = await take_room(plans, way)
        if cards:
            gpu = _plan_cards(nature, rung, cards, berth.plan.ctx, berth.plan.places)
        order = LaunchOrder(
            spec=spec,
            port=berth.port,
            weights=weights,
            ctx=berth.plan.ctx,
            places=berth.plan.places,
            threads=threads,
            pooling=pooling,
            projector_on_cpu=rung.projector_on_cpu,
            gpu=gpu,
        )
        launch = await self._launchers[spec.engine].prepare(order)
        return msgspec.structs.replace(launch, spec=spec)

    def _plan_speech(self, voice: Voice, way: str, budget_bytes: int) -> tuple[ContextPlan, ...]:
        spec = voice.spec
        ctx = spec.ctx or self._settings.default_ctx
        needed_bytes = self._sizes.correct(ModelId(spec.id), f"{way}/{ctx}/{spec.parallel}", voice.needed_bytes)
        if needed_bytes > budget_bytes:
            raise LaunchRefused(
                f"Model '{spec.id}' needs {needed_bytes // MIB} MiB; {budget_bytes // MIB} MiB can be had. Raise "
                "MEMORY_LIMIT_MB, or take a smaller model.",
                public="there is not enough memory for it",
            )
        return (ContextPlan(ctx, spec.parallel, needed_bytes),)

    def look(self, specs: Iterable[ModelSpec]) -> None:
        """Learn what models are whose files are there. What can't be read is told when it is started."""
        for spec in specs:
            if not spec.source or spec.engine == "command":
                continue
            with contextlib.suppress(StentorError):
                path = self._source.find(spec.source)
                if path is not None and spec.engine in SPEECH_TYPES:
                    voice = find_voice(spec, path)
                    self._learn_voice(voice)
                elif path is not None:
                    self._learn(find_nature(spec, path, quick=True), path)

    def _learn_voice(self, voice: Voice) -> None:
        spec, file = voice.spec, ModelFile(size_bytes=voice.size_bytes)
        self._catalogue.learn(ModelId(spec.id), Learned(spec.kind, voice.abilities, voice.voices, file))

    def _learn(self, nature: Nature, weights: Path) -> None:
        model = ModelId(nature.spec.id)
        file = describe_file(nature.header, nature.projector, weights)
        self._found[model] = Learned(nature.spec.kind, nature.abilities, file=file)
        self._catalogue.learn(model, self._found[model])

    def note_ready(self, model: ModelId, process: EngineProcess) -> None:
        """Say in the catalogue what a running engine really holds per request, and what it takes beside text.

        Where it says otherwise than the model's files, ``process.doubt`` says so.
        """
        if process.context_size is not None:
            self._catalogue.correct_context(model, process.context_size)
        if process.props is not None:
            served, spec = self._catalogue.served(model), self._catalogue.specs[model]
            found = self._found.get(model) or Learned(served.type, served.abilities)
            learned, process.doubt = reconcile(found, spec.type, process.props)
            self._catalogue.learn(model, learned)

    def note_out_of_memory(self, model: ModelId) -> None:
        """A start of the model ran out of memory: the next one is given less."""
        self._rungs[model] = self._rungs.get(model, 0) + 1

    def forget(self, model: ModelId) -> None:
        """The model was given another definition."""
        self._rungs.pop(model, None)
        self._found.pop(model, None)

    def _choose_rung(self, spec: ModelSpec) -> Rung:
        rungs, number = list_rungs(spec), self._rungs.get(ModelId(spec.id), 0)
        if number < len(rungs):
            return rungs[number]
        # The next try, after the pause of the breaker, begins with the most modest one.
        self._rungs[ModelId(spec.id)] = len(rungs) - 1
        raise LaunchRefused(
            f"Model '{spec.id}' ran out of memory {number} times while loading, the last time with "
            f"{rungs[-1].ctx_share:.0%} of its context on {spec.parallel} places. Set ctx, parallel or gpu_layers "
            "lower, or take a smaller model or quantization.",
            public="memory did not suffice for it",
        )

    async def _find_cards(self, spec: ModelSpec) -> tuple[GpuMemory, ...]:
        """The cards that the model is planned onto; none where an operator or the engine decides about them."""
        launcher = self._launchers[spec.engine]
        theirs = spec.gpu_layers >= 0 or _ABOUT_CARDS.intersection(spec.arguments) or _HIDES_CARDS in spec.env
        if not isinstance(launcher, LlamaServerLauncher) or theirs:
            return ()
        cards = await asyncio.to_thread(self._find_gpus)
        # Another number of cards is another numbering: then the engine knows better.
        return cards if cards and await launcher.count_cards(spec) == len(cards) else ()

    def _plan(
        self, nature: Nature, way: str, rung: Rung, budget_bytes: int, cards: Sequence[GpuMemory]
    ) -> tuple[ContextPlan, ...]:
        spec, header = nature.spec, nature.header
        ctx = spec.ctx or max(min(2048, self._settings.default_ctx), int(self._settings.default_ctx * rung.ctx_share))
        ctx = min(ctx, header.trained_ctx) if header.trained_ctx else ctx
        # An external server and an explicit number of GPU layers put the weights where this machine's RAM says nothing.
        looks = (spec.engine == "llama" and spec.gpu_layers <= 0) or bool(cards)

        def estimate(tokens: int, places: int) -> int:
            gpu = _plan_cards(nature, rung, cards, tokens, places) if cards else None
            if gpu is not None:
                return gpu.host_bytes
            formula = int(estimate_bytes(header, spec, tokens, places, nature.projector) * rung.margin)
            return self._sizes.correct(ModelId(spec.id), f"{way}/{tokens}/{places}", formula)

        return plan_memory(spec, ctx, budget_bytes if looks else None, estimate)

    def _plan_command(self, spec: ModelSpec, budget_bytes: int) -> tuple[ContextPlan, ...]:
        ctx = spec.ctx or self._settings.default_ctx
        needed_bytes = (spec.memory_mib or 0) * MIB
        if needed_bytes > budget_bytes:
            raise LaunchRefused(
                f"Model '{spec.id}' is said to need {spec.memory_mib} MiB; {budget_bytes // MIB} MiB can be had. "
                "Correct its memory_mib or raise MEMORY_LIMIT_MB.",
                public="there is not enough memory for it",
            )
        return (ContextPlan(ctx, spec.parallel, needed_bytes),)

    def explain_fetch(self, spec: ModelSpec) -> str:
        """How far the download of a model's file is, as the end of a sentence; empty where none is under way."""
        found = self._fetched.get(spec.source)
        if found is None:
            return ""
        done_bytes, total_bytes = found
        if not total_bytes:
            return "is being downloaded"
        share = min(99, 100 * done_bytes // total_bytes)
        return f"is being downloaded ({share} % of {describe_bytes(total_bytes)})"

    async def _fetch(self, spec: ModelSpec) -> Path:
        def hear(done_bytes: int, total_bytes: int) -> None:
            self._fetched[spec.source] = (done_bytes, total_bytes)

        # Two instances of one model must not download it twice.
        async with self._fetching.setdefault(spec.source, asyncio.Lock()):
            try:
                return await self._source.fetch(spec.source, hear)
            finally:
                self._fetched.pop(spec.source, None)


def _plan_cards(nature: Nature, rung: Rung, cards: Sequence[GpuMemory], tokens: int, places: int) -> GpuPlan | None:
    """What goes on the cards with so many tokens on each of so many places."""
    parts = estimate_memory(nature.header, nature.spec, tokens, places, nature.projector)
    return plan_gpu(nature.header, parts, cards, margin=rung.margin, eyes=not rung.projector_on_cpu)


def list_rungs(spec: ModelSpec) -> tuple[Rung, ...]:
    """What is tried after a start ran out of memory, one rung a try; only rungs that change something for ``spec``."""
    rungs = [Rung()]
    if spec.mmproj is not None and spec.gpu_layers != 0:
        rungs.append(Rung(projector_on_cpu=True))
    last = rungs[-1]
    if spec.ctx is None:
        last = msgspec.structs.replace(last, ctx_share=0.5)
        rungs.append(last)
    rungs.append(msgspec.structs.replace(last, margin=1.5))
    return tuple(rungs)
