"""Where settings come from: the settings file, the environment, the command line; each becomes one layer of values.

Within a layer two names for one setting must agree; between layers the later one wins. A value is parsed in the layer
that holds it, so that its error can name its origin.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from stentor.core.errors import StentorError
from stentor.settings.declared import (
    BY_NAME,
    CONFIG_NAME,
    DECLARED,
    LMSERV_MARKS,
    PREFIX,
    UNUSED_ALIASES,
    Setting,
)
from stentor.settings.kinds import BadValue

CONFIG_FILE = "stentor.toml"
MODELS_KEY = "models"


class SettingsError(StentorError):
    """A setting that can't be used. The text names it, where it was set, what is wrong, and often what to write."""


class Notice(msgspec.Struct, frozen=True):
    """Something to tell the operator about the settings: ``kind``: alias, unknown, unused, risk."""

    kind: str
    text: str


class Given(msgspec.Struct, frozen=True):
    """One parsed value and where it was written: ``spelled`` is the name used, ``origin`` the place."""

    value: Any
    spelled: str
    origin: str

    @property
    def where(self) -> str:
        return f"{self.spelled} ({self.origin})"


Layer = dict[str, Given]


class File(msgspec.Struct, frozen=True):
    """The settings file as read: its path, its lines (to say where a key stands), and its top-level table."""

    path: Path
    text: str
    table: dict[str, Any]

    def place(self, key: str, section: int | None = None) -> str:
        """``path:line`` of a key; ``section`` counts ``[[models]]`` tables from 0."""
        lines = self.text.splitlines()
        begin = 0
        if section is not None:
            heads = [at for at, line in enumerate(lines) if re.match(r"\s*\[\[\s*models\s*\]\]", line)]
            begin = heads[section] if section < len(heads) else 0
        for at in range(begin, len(lines)):
            if re.match(rf"\s*(\[models\.)?[\"']?{re.escape(key)}[\"']?\s*[=.\]]", lines[at]):
                return f"{self.path}:{at + 1}"
        return f"{self.path}:{begin + 1}" if section is not None else str(self.path)


def nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """«; did you mean X?», or nothing where no known name is near. ``prefix`` is common to all and is not compared."""
    close = get_close_matches(word.removeprefix(prefix), list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def parse_value(setting: Setting, raw: Any, base: Path, spelled: str, origin: str) -> Given:
    """Parse one value. Raises SettingsError that names the setting, its origin and the problem."""
    try:
        return Given(setting.kind.parse(raw, base), spelled, origin)
    except BadValue as problem:
        raise SettingsError(f"{spelled} ({origin}) {problem}.") from None


def place_value(layer: Layer, setting: Setting, given: Given) -> None:
    """Put a value into its layer; ``BIND_ADDRESS`` becomes ``HOST`` and ``PORT``. Raises where two names disagree."""
    if setting.name == "BIND_ADDRESS":
        host, port = given.value
        _place(layer, "HOST", msgspec.structs.replace(given, value=host))
        _place(layer, "PORT", msgspec.structs.replace(given, value=port))
    else:
        _place(layer, setting.name, given)


def _place(layer: Layer, name: str, given: Given) -> None:
    other = layer.get(name)
    if other is not None and other.value != given.value:
        raise SettingsError(
            f"{other.where} and {given.where} both set {name}, to different values. Remove one of them."
        )
    layer.setdefault(name, given)


def find_file(argv: Mapping[str, Any], environ: Mapping[str, str], cwd: Path) -> tuple[Path | None, Path | None]:
    """The settings file: ``--config``, else STENTOR_CONFIG, else ./stentor.toml, else {DATA_DIR}/stentor.toml.

    The second value is the data folder where it was found in the last case, else None.
    """
    named = argv.get("config") or environ.get(PREFIX + CONFIG_NAME)
    if named:
        path = (cwd / Path(named).expanduser()).absolute()
        if not path.is_file():
            raise SettingsError(f"The settings file {path} does not exist. Check --config or {PREFIX}{CONFIG_NAME}.")
        return path, None
    data_dir = argv.get("data_dir") or environ.get(PREFIX + "DATA_DIR") or "data"
    folder = (cwd / Path(data_dir).expanduser()).absolute()
    if (cwd / CONFIG_FILE).is_file():
        return (cwd / CONFIG_FILE).absolute(), None
    if (folder / CONFIG_FILE).is_file():
        return folder / CONFIG_FILE, folder
    return None, None


def read_file(path: Path) -> File:
    """Read the settings file. Raises SettingsError with the line where the TOML is broken."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The settings file {path} can't be read: {error}.") from None
    try:
        return File(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"The settings file {path} is not valid TOML: {error}.") from None


def file_layer(file: File) -> Layer:
    """The layer of the settings file; ``[[models]]`` is left to the caller. Unknown keys are refused."""
    known = {setting.key: setting for setting in DECLARED}
    layer: Layer = {}
    for key, raw in file.table.items():
        if key == MODELS_KEY:
            continue
        setting = known.get(key)
        if setting is None:
            hint = nearest(key.lower().removeprefix(PREFIX.lower()), [*known, MODELS_KEY])
            if isinstance(raw, dict) and not hint:
                hint = "; write settings at the top of the file, in no table, as `port = 4000`"
            raise SettingsError(f"{key} ({file.place(key)}) is not a setting{hint}")
        place_value(layer, setting, parse_value(setting, raw, file.path.parent, key, file.place(key)))
    return layer


def lmserv_words_count(file: Layer, environ: Mapping[str, str], command: Layer) -> bool:
    """Whether common words are names of settings: where the last layer that sets ``COMPAT`` says so, or beside a mark.

    It is asked before the environment becomes a layer, because that depends on it.
    """
    said = environ.get(PREFIX + "COMPAT", "").strip().lower()
    if "COMPAT" in command:
        said = command["COMPAT"].value
    elif not said and "COMPAT" in file:
        said = file["COMPAT"].value
    return said == "lmserv" or any(environ.get(mark) for mark in LMSERV_MARKS)


def _spellings(setting: Setting, with_common: bool) -> list[str]:
    common = setting.common_aliases if with_common else ()
    return [PREFIX + setting.name, *setting.aliases, *common]


def environment_layer(environ: Mapping[str, str], cwd: Path, with_common: bool) -> tuple[Layer, list[Notice]]:
    """The layer of the environment, aliases included; an empty variable counts as not set."""
    layer: Layer = {}
    notices: list[Notice] = []
    for setting in DECLARED:
        for spelled in _spellings(setting, with_common):
            raw = environ.get(spelled, "")
            if not raw.strip():
                continue
            place_value(layer, setting, parse_value(setting, raw, cwd, spelled, "environment"))
            if not spelled.startswith(PREFIX):
                notices.append(Notice("alias", f"{spelled} is taken as {PREFIX}{setting.name}."))
    notices += [
        Notice("unused", f"{name} is accepted and not used: {why}.")
        for name, why in UNUSED_ALIASES.items()
        if environ.get(name)
    ]
    return layer, notices + _unknown_names(environ)


def _unknown_names(environ: Mapping[str, str]) -> list[Notice]:
    known = (*BY_NAME, CONFIG_NAME)
    return [
        Notice("unknown", f"{name} (environment) is not a setting{nearest(name, known, PREFIX)}")
        for name in sorted(environ)
        if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known
    ]


def command_layer(argv: Mapping[str, Any], cwd: Path) -> Layer:
    """The layer of the command line; keys are settings' names in lower case, None means not given."""
    layer: Layer = {}
    for key, raw in argv.items():
        if raw is None or key in ("config", MODELS_KEY):
            continue
        setting = BY_NAME.get(key.upper())
        if setting is None:
            raise SettingsError(f"{key} (command line) is not a setting{nearest(key.upper(), BY_NAME)}")
        text = raw if isinstance(raw, (str, int, float, bool)) else str(raw)
        place_value(layer, setting, parse_value(setting, text, cwd, setting.option, "command line"))
    return layer
