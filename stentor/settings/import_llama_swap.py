"""llama-swap's YAML: a command line a model, with macros; that of a llama-server is read, others are kept."""

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import yaml

from stentor.runtime.origins import SourceError, id_from_source, parse_source
from stentor.runtime.spec import id_from_name
from stentor.settings.imported import Imported, ImportFailed, free_id, read_file

_MACRO = re.compile(r"\$\{([A-Za-z0-9_-]+)\}")
_MACRO_ROUNDS = 20
_COMMAND_MAX = 1 << 16
_NODES_MAX = 100_000
_DIGITS = re.compile(r"[0-9]{1,12}")
_NUMBERS = {
    "-c": "ctx", "--ctx-size": "ctx", "-np": "parallel", "--parallel": "parallel", "-t": "threads",
    "--threads": "threads", "-b": "batch", "--batch-size": "batch", "-ub": "ubatch", "--ubatch-size": "ubatch",
    "--cache-ram": "cache_ram_mib", "-cram": "cache_ram_mib",
}  # fmt: skip
_TEXTS = {
    "-ctk": "cache_type_k", "--cache-type-k": "cache_type_k", "-ctv": "cache_type_v", "--cache-type-v": "cache_type_v",
    "--pooling": "pooling", "--load-mode": "load_mode", "-lm": "load_mode",
}  # fmt: skip
_SWITCHES: dict[str, dict[str, Any]] = {
    "--embedding": {"type": "embedding"}, "--embeddings": {"type": "embedding"}, "--rerank": {"type": "reranker"},
    "--reranking": {"type": "reranker"}, "--no-mmap": {"load_mode": "none"}, "--mlock": {"load_mode": "mmap+mlock"},
}  # fmt: skip
_FIELDS = frozenset({"cmd", "macros", "proxy", "aliases", "env", "ttl", "useModelName", "checkEndpoint"})
_OURS_WITH_VALUE = frozenset(
    {"--host", "--port", "--api-key", "--api-key-file", "--log-file", "--path", "--api-prefix"}
)
_OURS = frozenset({
    "--jinja", "--metrics", "--slots", "--no-webui", "--no-ui", "--no-context-shift", "-cb", "--cont-batching",
    "--log-disable",
})  # fmt: skip
_FLASH = ("-fa", "--flash-attn")
_LAYERS = ("-ngl", "--gpu-layers", "--n-gpu-layers")


def read_llama_swap(path: Path) -> Imported:
    """The models of a llama-swap configuration. Raises ImportFailed."""
    config = _read_yaml(path)
    found = Imported()
    models = config.get("models")
    if not isinstance(models, dict) or not models:
        raise ImportFailed(f"{path} names no models.")
    idle_s = config.get("globalTTL")
    if isinstance(idle_s, int) and not isinstance(idle_s, bool) and idle_s > 0:
        found.settings["IDLE_UNLOAD_S"] = idle_s
    for name in sorted(map(str, set(config) - {"models", "macros", "groups", "hooks", "startPort", "globalTTL"})):
        found.skip("field", name, "has no counterpart here")
    preload = _list_of(config, "hooks", "on_startup", "preload")
    pinned = _find_persistent(config.get("groups"))
    for name, entry in models.items():
        macros = {**_mapping(config.get("macros")), **_mapping(_mapping(entry).get("macros"))}
        model = _read_model(
            found, str(name), _mapping(entry), {**macros, "MODEL_ID": str(name)}, path.absolute().parent
        )
        if model is not None:
            extra = {"preload": True} if name in preload else {}
            found.models.append(model | extra | ({"pinned": True} if name in pinned else {}))
    return found


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_file(path)
    try:
        root = yaml.compose(text.decode(), Loader=yaml.SafeLoader)
        if root is not None and _grown(root, {}) > _NODES_MAX:
            raise ImportFailed(f"{path} can't be read: its aliases make over {_NODES_MAX} values of it.")
        config = yaml.safe_load(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ImportFailed(f"{path} is no YAML: {' '.join(str(error).split())[:500]}.") from None
    if not isinstance(config, dict):
        raise ImportFailed(f"{path} is no llama-swap configuration.")
    return config


def _grown(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node is with all its aliases written out; one that holds itself is endless."""
    if id(node) not in known:
        known[id(node)] = _NODES_MAX + 1  # until it is counted
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        known[id(node)] = 1 + sum(_grown(part, known) for part in parts)
    return known[id(node)]


def _read_model(
    found: Imported, name: str, entry: dict[str, Any], macros: dict[str, Any], folder: Path
) -> dict[str, Any] | None:
    model_id = free_id(id_from_source(f"file:/{name.replace('/', '-')}"), (each["id"] for each in found.models))
    try:
        words = split_command(_expand(_text(entry, "cmd"), macros))
    except ValueError as error:
        found.skip("model", name, f"its cmd can't be read: {error}")
        return None
    if not words:
        found.skip("model", name, "it has no cmd")
        return None
    if "llama-server" in Path(words[0]).name:
        model = _read_server(found, name, words, folder)
    else:
        model = _read_command(found, name, words, _text(entry, "proxy"))
    if model is None:
        return None
    for field in sorted(set(entry) - _FIELDS):
        found.skip("field", f"{name}: {field}", "has no counterpart here")
    # Who asks for a name as it was written is understood, too.
    named = dict.fromkeys(map(id_from_name, [*_texts(entry.get("aliases")), name]))
    aliases = [alias for alias in named if alias not in ("", model_id)]
    extra: dict[str, Any] = {"aliases": aliases} if aliases else {}
    env = dict(each.split("=", 1) for each in _texts(entry.get("env")) if "=" in each)
    extra |= {"env": env} if env else {}
    ttl = entry.get("ttl")
    extra |= {"idle_unload_s": ttl} if isinstance(ttl, int) and not isinstance(ttl, bool) and ttl >= 0 else {}
    extra |= {"upstream_model": str(entry["useModelName"])} if entry.get("useModelName") else {}
    check = entry.get("checkEndpoint")
    if model.get("engine") == "command" and isinstance(check, str) and check.startswith("/"):
        extra["health_path"] = check
    return {"id": model_id, **model, **extra}


def split_command(text: str) -> list[str]:
    """A command's words: a backslash at the end joins lines, # at the beginning makes a comment. Raises ValueError."""
    lines = [line for line in text.replace("\\\n", " ").splitlines() if not line.lstrip().startswith("#")]
    return shlex.split(" ".join(lines))


def _expand(text: str, macros: dict[str, Any]) -> str:
    """Replace macros, which may hold others; ``${PORT}`` and what is unknown stays."""
    values = {name: str(value) for name, value in macros.items()}
    for _ in range(_MACRO_ROUNDS):
        size = len(text) + sum(len(values.get(name, "")) for name in _MACRO.findall(text))
        if size > _COMMAND_MAX:
            raise ValueError(f"its macros make {size} characters of it, more than {_COMMAND_MAX}")
        fresh = _MACRO.sub(lambda hit: values.get(hit[1], hit[0]) if hit[1] != "PORT" else hit[0], text)
        if fresh == text:
            return text
        text = fresh
    raise ValueError("its macros name each other")


class _Words(msgspec.Struct):
    """A command line that is being read."""

    words: list[str]
    at: int = 1

    def value(self) -> str | None:
        """The next word, if it is a value."""
        if self.at < len(self.words) and not re.match(r"-[A-Za-z-]", self.words[self.at]):
            self.at += 1
            return self.words[self.at - 1]
        return None


def _read_server(found: Imported, name: str, words: list[str], folder: Path) -> dict[str, Any] | None:
    """A llama-server's command line as a model's fields."""
    model: dict[str, Any] = {}
    arguments: list[str] = []
    line = _Words(words)
    while line.at < len(words):
        flag, _, joined = words[line.at].partition("=")
        line.at += 1
        value = joined or (None if flag in _SWITCHES or flag in _OURS else line.value())
        if not _take(model, flag, value, folder):
            arguments += [flag] if value is None else [flag, value]
    total, places = model.pop("ctx", None), model.get("parallel", 1)
    if "source" not in model:
        found.skip("model", name, "its cmd names no model that is understood (-m or -hf)")
        return None
    # llama-swap's context is the sum over the places, ours is that of one.
    model |= {"parallel": places} | ({"ctx": total // places} if total and total // places >= 128 else {})
    binary = {"engine": "llama-server", "binary": words[0]} if "/" in words[0] else {"engine": "llama-server"}
    return binary | model | ({"arguments": arguments} if arguments else {})


def _take(model: dict[str, Any], flag: str, value: str | None, folder: Path) -> bool:
    """Put one flag into the model's fields; False where it has to stay an argument."""
    if flag in _OURS or flag in _OURS_WITH_VALUE:
        return True
    if flag in _SWITCHES:
        model |= _SWITCHES[flag]
        return True
    if flag in _FLASH:
        if value in (None, "on", "off", "auto"):
            model["flash_attention"] = value or "on"
        return value in (None, "on", "off", "auto")
    if value is None:
        return False
    if flag in _NUMBERS and _DIGITS.fullmatch(value) and int(value) > 0:
        model[_NUMBERS[flag]] = int(value)
    elif flag in _TEXTS:
        model[_TEXTS[flag]] = value
    elif flag in _LAYERS and (_DIGITS.fullmatch(value) or value in ("all", "auto")):
        model["gpu_layers"] = {"all": 999, "auto": -1}.get(value) or int(value)
    elif flag in ("-a", "--alias"):
        pass
    else:
        return _take_source(model, flag, value, folder)
    return True


def _take_source(model: dict[str, Any], flag: str, value: str, folder: Path) -> bool:
    if flag in ("-m", "--model"):
        model["source"] = f"file:{folder / Path(value).expanduser()}"
    elif flag in ("-mm", "--mmproj"):
        model["mmproj"] = str(folder / Path(value).expanduser())
    elif flag in ("-hf", "-hfr", "--hf-repo"):
        try:
            parse_source(f"hf:{value}")
        except SourceError:
            return False
        model["source"] = f"hf:{value}"
    else:
        return False
    return True


def _read_command(found: Imported, name: str, words: list[str], proxy: str) -> dict[str, Any] | None:
    """Another program's command line, with its port as ``${PORT}``."""
    if not any("${PORT}" in word for word in words):
        port = re.search(r":(\d{2,5})\b", proxy.partition("://")[2])
        if port is None or not any(re.search(rf"\b{port[1]}\b", word) for word in words):
            found.skip("model", name, "its cmd has no ${PORT}, so it can't be given a port")
            return None
        words = [re.sub(rf"\b{port[1]}\b", "${PORT}", word) for word in words]
    return {"engine": "command", "command": words}


def _find_persistent(groups: Any) -> set[str]:
    """Members of groups that are never swapped out."""
    return {
        str(member)
        for group in _mapping(groups).values()
        if _mapping(group).get("persistent")
        for member in _texts(_mapping(group).get("members"))
    }


def _list_of(value: Any, *names: str) -> set[str]:
    for name in names:
        value = _mapping(value).get(name)
    return set(_texts(value))


def _texts(value: Any) -> list[str]:
    """The entries of a list."""
    return list(map(str, value)) if isinstance(value, list) else []


def _text(entry: dict[str, Any], name: str) -> str:
    """A field that is one text."""
    value = entry.get(name)
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping with text keys; macros may be written as a list of pairs."""
    if isinstance(value, list):
        return {str(name): each for pair in value if isinstance(pair, dict) for name, each in pair.items()}
    return {str(name): each for name, each in value.items()} if isinstance(value, dict) else {}
