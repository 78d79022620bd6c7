"""The one way to settings: read the layers, check them against each other, compose."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stentor.runtime.spec import ModelSpec
from stentor.settings.checks import choose_engine_binary, find_risks
from stentor.settings.compose import Read, Settings, compose, with_defaults
from stentor.settings.layers import (
    Notice,
    SettingsError,
    command_layer,
    environment_layer,
    file_layer,
    find_file,
    lmserv_words_count,
    read_file,
)
from stentor.settings.models import choose_models, file_models, named_models


def load_settings(
    argv_overrides: Mapping[str, Any], environ: Mapping[str, str], cwd: Path
) -> tuple[Settings, list[Notice]]:
    """Settings from defaults < settings file < environment < command line, and what to tell the operator about them.

    ``argv_overrides`` is keyed by settings' names in lower case (``port``), plus ``config`` for the settings file and
    ``models`` for sources to serve and start at once.
    Raises SettingsError naming the setting, where it was set, and the problem.
    """
    path, found_in = find_file(argv_overrides, environ, cwd)
    file = read_file(path) if path is not None else None
    from_file = file_layer(file) if file is not None else {}
    from_command = command_layer(argv_overrides, cwd)
    with_common = lmserv_words_count(from_file, environ, from_command)
    from_environment, notices = environment_layer(environ, cwd, with_common)
    merged = {**from_file, **from_environment, **from_command}
    moved = from_file.get("DATA_DIR")
    if found_in is not None and moved is not None and moved.value != found_in:
        raise SettingsError(f"{moved.where} names {moved.value}, but the file was found because {found_in} is in use.")
    values = with_defaults({name: given.value for name, given in merged.items()}, cwd)
    origins = {name: given.where for name, given in merged.items()}
    values["ENGINE_BIN"], engine_notices = choose_engine_binary(values["ENGINE_BIN"], origins.get("ENGINE_BIN", ""))
    named = named_models(values, tuple(argv_overrides.get("models") or ()), cwd)
    tables = file_models(file, values["ENGINE_BIN"]) if file is not None else ()
    models = choose_models(tables, named, values["ENGINE_BIN"])
    settings = compose(Read(values, origins, models, named, path, environ))
    return settings, [*notices, *engine_notices, *find_risks(settings)]


def reload_models(settings: Settings) -> tuple[ModelSpec, ...]:
    """The models as the settings file says them now, with those that were named elsewhere at the start.

    Nothing else of the file is taken over. Raises SettingsError, also where another part of the file is wrong.
    """
    if settings.config_file is None:
        raise SettingsError("This server was started without a settings file; there is nothing to read again.")
    file = read_file(settings.config_file)
    file_layer(file)
    tables = file_models(file, settings.runtime.engine_bin)
    return choose_models(tables, settings.named_models, settings.runtime.engine_bin)
