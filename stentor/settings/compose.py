"""From flat values to the frozen :class:`Settings`, composed of what each package asks for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import ModelSpec
from stentor.settings.declared import DECLARED, Setting
from stentor.store.settings import StoreSettings


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was decided before start, read once.

    ``values`` holds every declared setting by its upper-case name, ``origins`` where each that isn't a default came
    from. The parts are for the packages that they are named after.
    """

    host: str
    port: int
    data_dir: Path
    gateway_workers: int
    log_level: str
    log_format: str
    drain_s: float
    instances: int
    api_key: str | None
    model_cache: Path
    store: StoreSettings
    runtime: RuntimeSettings
    config_file: Path | None
    values: Mapping[str, Any]
    origins: Mapping[str, str]

    @property
    def admin_socket(self) -> Path:
        """The Unix socket over which the command line talks to a running server."""
        return self.data_dir / "run" / "admin.sock"

    def __repr__(self) -> str:
        return f"Settings(data_dir={str(self.data_dir)!r}, host={self.host!r}, port={self.port})"


def with_defaults(given: Mapping[str, Any], cwd: Path) -> dict[str, Any]:
    """All settings by name: what was given, else the declared default, else what is worked out from others."""
    values = {setting.name: given.get(setting.name, setting.default) for setting in DECLARED}
    values["DATA_DIR"] = values["DATA_DIR"] or (cwd / "data").absolute()
    values["DATABASE_URL"] = values["DATABASE_URL"] or str(values["DATA_DIR"] / "stentor.db")
    values["MODEL_CACHE"] = values["MODEL_CACHE"] or values["DATA_DIR"] / "models"
    return values


def compose(
    values: Mapping[str, Any], origins: Mapping[str, str], config_file: Path | None, models: tuple[ModelSpec, ...]
) -> Settings:
    """Build the frozen settings from the flat values."""
    return Settings(
        host=values["HOST"],
        port=values["PORT"],
        data_dir=values["DATA_DIR"],
        gateway_workers=values["GATEWAY_WORKERS"],
        log_level=values["LOG_LEVEL"],
        log_format=values["LOG_FORMAT"],
        drain_s=values["DRAIN_S"],
        instances=values["INSTANCES"],
        api_key=values["API_KEY"],
        model_cache=values["MODEL_CACHE"],
        store=_store(values),
        runtime=_runtime(values, models),
        config_file=config_file,
        values=values,
        origins=origins,
    )


def _store(values: Mapping[str, Any]) -> StoreSettings:
    return StoreSettings(data_dir=values["DATA_DIR"], url=values["DATABASE_URL"], durability=values["DURABILITY"])


def _runtime(values: Mapping[str, Any], models: tuple[ModelSpec, ...]) -> RuntimeSettings:
    return RuntimeSettings(
        data_dir=values["DATA_DIR"],
        slot_first_port=values["SLOT_FIRST_PORT"],
        slot_count=values["SLOT_COUNT"],
        queue_max=values["QUEUE_MAX"],
        queue_timeout_s=values["QUEUE_TIMEOUT_S"],
        default_ctx=values["DEFAULT_CTX"],
        default_threads=values["DEFAULT_THREADS"],
        memory_limit_mb=values["MEMORY_LIMIT_MB"],
        engine_bin=values["ENGINE_BIN"],
        models=models,
        drain_s=values["DRAIN_S"],
    )


def show_value(setting: Setting, value: Any) -> str:
    """A value for human eyes: secrets and passwords inside addresses are masked, absent values are empty."""
    if value is None:
        return ""
    if setting.secret:
        return "********"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    text = str(value)
    scheme, mark, rest = text.partition("://")
    if mark and "@" in rest.partition("/")[0]:
        return f"{scheme}://********@{rest.partition('@')[2]}"
    return text
