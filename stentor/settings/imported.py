"""What is taken over from another program's configuration, and how it is written down here.

Models and settings go into the settings file, as extra arguments and commands may stand nowhere else; a running server
reads its models again by itself. What lives in the store goes over the management calls.
"""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from stentor.core.errors import UNREADABLE, StentorError
from stentor.settings.declared import BY_NAME
from stentor.settings.layers import MODELS_KEY, File, SettingsError, file_layer
from stentor.settings.models import file_models

FILE_MAX_BYTES = 8 << 20
Action = Literal["add", "set", "keep", "skip"]


class ImportFailed(StentorError):
    """The file to import can't be read or understood: names it, the place, and what is wrong."""


class Change(msgspec.Struct, frozen=True):
    """One line of what an import does. ``keep``: it is there already; ``skip``: it isn't taken over, and why."""

    action: Action
    kind: str
    name: str
    detail: str = ""


class Call(msgspec.Struct, frozen=True):
    """A management call that takes over what lives in the store."""

    method: str
    path: str
    body: dict[str, Any]
    change: Change


class Imported(msgspec.Struct):
    """What was found: settings by their key, models as tables of the settings file, calls, and what is left out."""

    settings: dict[str, Any] = {}
    models: list[dict[str, Any]] = []
    calls: list[Call] = []
    skipped: list[Change] = []

    def skip(self, kind: str, name: str, why: str) -> None:
        """Note something that isn't taken over."""
        self.skipped.append(Change("skip", kind, name, why))


class FilePlan(msgspec.Struct, frozen=True):
    """The settings file as it would be, and what that changes. ``text`` None: nothing."""

    text: str | None
    changes: tuple[Change, ...]


def plan_file(path: Path, imported: Imported) -> FilePlan:
    """Put settings before, and models after what the settings file says; nothing that it says already is changed.

    Raises SettingsError where the file is broken, and where what would come out is.
    """
    text = path.read_text("utf-8") if path.is_file() else ""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The settings file {path} is not valid TOML: {error}.") from None
    changes: list[Change] = []
    settings = [_plan_setting(table, name, value, changes) for name, value in imported.settings.items()]
    taken = _names_in(table)
    models = [_plan_model(taken, model, changes) for model in imported.models]
    head, tail = "".join(filter(None, settings)), "".join(filter(None, models))
    if not head and not tail:
        return FilePlan(None, tuple(changes))
    joined = head + ("\n" if head and text else "") + text + ("\n" if text and not text.endswith("\n") else "") + tail
    file = File(path.absolute(), joined, tomllib.loads(joined))
    file_layer(file)
    file_models(file, None)
    return FilePlan(joined, tuple(changes))


def _plan_setting(table: Mapping[str, Any], name: str, value: Any, changes: list[Change]) -> str:
    key = BY_NAME[name].key
    if key in table:
        if table[key] != value:
            changes.append(Change("keep", "setting", key, f"stays {table[key]!r}; the import says {value!r}"))
        return ""
    changes.append(Change("set", "setting", key, str(value)))
    return f"{key} = {toml_value(value)}\n"


def _plan_model(taken: set[str], model: dict[str, Any], changes: list[Change]) -> str:
    if model["id"] in taken:
        changes.append(Change("keep", "model", model["id"], "a model of this name is there already"))
        return ""
    aliases = [name for name in model.get("aliases", []) if name not in taken]
    model = {**model, "aliases": aliases} if aliases else {name: v for name, v in model.items() if name != "aliases"}
    taken |= {model["id"], *aliases}
    changes.append(Change("add", "model", model["id"], str(model.get("source") or " ".join(model.get("command", [])))))
    return "\n[[models]]\n" + "".join(f"{name} = {toml_value(value)}\n" for name, value in model.items())


def _names_in(table: Mapping[str, Any]) -> set[str]:
    models = table.get(MODELS_KEY, [])
    found: set[str] = set()
    for model in models if isinstance(models, list) else []:
        if isinstance(model, dict):
            found |= {str(model.get("id", "")), *map(str, model.get("aliases", []))}
    return found


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_text(str(name))} = {toml_value(each)}" for name, each in value.items()) + " }"
    return _toml_text(str(value))


def _toml_text(text: str) -> str:
    """A basic string; JSON's escapes are TOML's, but for one that TOML wants and JSON doesn't."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007F")


def read_file(path: Path) -> bytes:
    """A regular file of a configuration's size. Raises ImportFailed."""
    try:
        if path.exists() and not path.is_file():
            raise ImportFailed(f"{path} can't be read: it is no regular file.")
        with path.open("rb") as file:
            content = file.read(FILE_MAX_BYTES + 1)
    except ValueError as error:
        raise ImportFailed(f"{path!r} can't be read: {error}.") from None
    except OSError as error:
        raise ImportFailed(f"{path} can't be read: {error.strerror}.") from None
    if len(content) > FILE_MAX_BYTES:
        raise ImportFailed(f"{path} can't be read: it is over {FILE_MAX_BYTES >> 20} MiB.")
    return content


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises ImportFailed."""
    try:
        value = msgspec.json.decode(read_file(path))
    except UNREADABLE as error:
        raise ImportFailed(f"{path} is no JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ImportFailed(f"{path} holds no JSON object.")
    return value


def free_id(wanted: str, taken: Iterable[str]) -> str:
    """``wanted``, or with a number behind it where that is taken."""
    names = set(taken)
    numbered = (f"{wanted}-{number}" for number in range(2, 10_000))
    return wanted if wanted not in names else next(name for name in numbered if name not in names)
