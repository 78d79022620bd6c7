"""From flat values to the frozen :class:`Settings`, composed of what each package asks for."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from stentor.accounting.settings import AccountingSettings
from stentor.core.units import MIB
from stentor.egress.settings import EgressSettings
from stentor.receipts.settings import ReceiptSettings
from stentor.registry.settings import RegistrySettings
from stentor.runtime.hub import HubSettings
from stentor.runtime.keeping import KeepBounds
from stentor.runtime.settings import RuntimeSettings
from stentor.runtime.spec import ModelSpec
from stentor.settings.declared import DECLARED, PREFIX, UNUSED_ALIASES, Setting
from stentor.store.settings import StoreSettings
from stentor.telemetry.settings import TelemetrySettings
from stentor.vault.settings import VaultSettings

MASTER_KEY_FILE = "master.key"
ANCHOR_FILE = "receipts.anchor"
_SECRET_PARAMETER = re.compile(r"((?:^|&)[^=&]*(?:pass|secret|token)[^=&]*=)[^&]*", re.IGNORECASE)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was decided before start, read once.

    ``values`` holds every declared setting by its upper-case name, ``origins`` where each that isn't a default came
    from. ``allowed_hosts`` are the names that requests may carry beside the machine's own; ``api_key`` is the
    operator's fixed key. ``environ`` is the environment for child processes that need the machine's configuration
    (pip). The parts ``store``, ``vault``, ``accounting``, ``runtime``, ``telemetry``, ``hub``, ``egress`` are
    for the packages of these names.
    """

    host: str
    port: int
    public_url: str | None
    allowed_hosts: tuple[str, ...]
    cors_origins: tuple[str, ...]
    trusted_proxies: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    body_max_bytes: int
    gateway_workers: int
    drain_s: float
    data_dir: Path
    model_cache: Path
    model_dirs: tuple[Path, ...]
    instances: int
    api_key: str | None
    store: StoreSettings
    vault: VaultSettings
    accounting: AccountingSettings
    runtime: RuntimeSettings
    telemetry: TelemetrySettings
    hub: HubSettings
    egress: EgressSettings
    receipts: ReceiptSettings
    registry: RegistrySettings
    config_file: Path | None
    named_models: tuple[ModelSpec, ...]
    environ: Mapping[str, str]
    values: Mapping[str, Any]
    origins: Mapping[str, str]

    @property
    def admin_socket(self) -> Path:
        """The Unix socket over which the command line talks to a running server."""
        return self.data_dir / "run" / "admin.sock"

    @property
    def spool_dir(self) -> Path:
        """Where uploads lie while they are worked on."""
        return self.data_dir / "tmp"

    def __repr__(self) -> str:
        return f"Settings(data_dir={str(self.data_dir)!r}, host={self.host!r}, port={self.port})"


def with_defaults(given: Mapping[str, Any], cwd: Path) -> dict[str, Any]:
    """All settings by name: what was given, else the declared default, else what is worked out from others."""
    values = {setting.name: given.get(setting.name, setting.default) for setting in DECLARED}
    values["DATA_DIR"] = values["DATA_DIR"] or (cwd / "data").absolute()
    values["DATABASE_URL"] = values["DATABASE_URL"] or str(values["DATA_DIR"] / "stentor.db")
    values["MODEL_CACHE"] = values["MODEL_CACHE"] or values["DATA_DIR"] / "models"
    return values


class Read(msgspec.Struct, frozen=True):
    """What was read: flat ``values`` by name, where they came from, the models, and the surroundings."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    models: tuple[ModelSpec, ...]
    named_models: tuple[ModelSpec, ...]
    config_file: Path | None
    environ: Mapping[str, str]


def compose(read: Read) -> Settings:
    """Build the frozen settings from the flat values."""
    values = read.values
    return Settings(
        host=values["HOST"],
        port=values["PORT"],
        public_url=values["PUBLIC_URL"],
        allowed_hosts=_allowed_hosts(values),
        cors_origins=values["CORS_ORIGINS"],
        trusted_proxies=values["TRUSTED_PROXIES"],
        tls_cert=values["TLS_CERT"],
        tls_key=values["TLS_KEY"],
        body_max_bytes=values["BODY_MAX_MB"] * MIB,
        gateway_workers=values["GATEWAY_WORKERS"],
        drain_s=values["DRAIN_S"],
        data_dir=values["DATA_DIR"],
        model_cache=values["MODEL_CACHE"],
        model_dirs=values["MODEL_DIRS"],
        instances=values["INSTANCES"],
        api_key=values["API_KEY"],
        store=_store(values),
        vault=_vault(values),
        accounting=AccountingSettings(
            default_max_tokens=values["DEFAULT_MAX_TOKENS"], rate_limit_qps=values["RATE_LIMIT_QPS"]
        ),
        runtime=_runtime(values, read.models),
        telemetry=_telemetry(values),
        hub=HubSettings(
            endpoint=values["HF_ENDPOINT"],
            token=values["HF_TOKEN"],
            inference_url=values["HF_INFERENCE_URL"],
            allow=values["EGRESS_ALLOW"],
        ),
        receipts=_receipts(values),
        registry=RegistrySettings(base_url=values["REGISTRY_BASE_URL"] or "", ttl_s=values["CACHE_TTL"]),
        egress=EgressSettings(allow=values["EGRESS_ALLOW"], allow_image_urls=values["ALLOW_IMAGE_URLS"]),
        config_file=read.config_file,
        named_models=read.named_models,
        environ=child_environ(read.environ),
        values=values,
        origins=read.origins,
    )


def _allowed_hosts(values: Mapping[str, Any]) -> tuple[str, ...]:
    """What the operator allows, and the names that the server was told it has."""
    named = [urlsplit(values[name] or "").hostname for name in ("PUBLIC_URL", "NODE_URL")]
    return tuple(dict.fromkeys([*values["ALLOWED_HOSTS"], values["HOST"], *(name for name in named if name)]))


def child_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without this server's settings, some of which are secret."""
    secrets = {name for setting in DECLARED for name in (*setting.aliases, *setting.common_aliases)}
    return {
        name: text
        for name, text in environ.items()
        if not name.startswith(PREFIX) and name not in secrets and name not in UNUSED_ALIASES
    }


def _store(values: Mapping[str, Any]) -> StoreSettings:
    return StoreSettings(
        data_dir=values["DATA_DIR"],
        url=values["DATABASE_URL"],
        durability=values["DURABILITY"],
        schema=values["DATABASE_SCHEMA"],
        pool_size=values["DATABASE_POOL_SIZE"],
        pool_overflow=values["DATABASE_POOL_OVERFLOW"],
        answer_timeout_s=values["DATABASE_TIMEOUT_S"],
    )


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
        idle_unload_s=values["IDLE_UNLOAD_S"],
        keep_alive=KeepBounds(min_s=values["KEEP_ALIVE_MIN_S"], max_s=values["KEEP_ALIVE_MAX_S"]),
        engine_bin=values["ENGINE_BIN"],
        models=models,
        lenient_routing=values["ROUTING"] == "lenient",
        drain_s=values["DRAIN_S"],
    )


def _receipts(values: Mapping[str, Any]) -> ReceiptSettings:
    return ReceiptSettings(
        anchor=values["DATA_DIR"] / ANCHOR_FILE,
        origin=values["RECEIPTS_ORIGIN"] or "",
        private_key_b64=values["RECEIPTS_PRIVATE_KEY_B64"] or "",
        public_key_b64=values["RECEIPTS_PUBLIC_KEY_B64"] or "",
        key_id=values["RECEIPTS_KEY_ID"] or "",
    )


def _vault(values: Mapping[str, Any]) -> VaultSettings:
    key = values["MASTER_KEY"]
    return VaultSettings(key_file=values["DATA_DIR"] / MASTER_KEY_FILE, master_key=key.hex() if key else "")


def _telemetry(values: Mapping[str, Any]) -> TelemetrySettings:
    log_format = values["LOG_FORMAT"]
    if log_format == "auto":
        log_format = "pretty" if sys.stderr.isatty() else "json"
    return TelemetrySettings(
        log_level=values["LOG_LEVEL"], log_format=log_format, otel_endpoint=values["OTEL_ENDPOINT"] or ""
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
        return ",".join(_mask_address(str(item)) for item in value)
    return _mask_address(str(value))


def _mask_address(text: str) -> str:
    """What is no address stays. A password may hold what separates the parts, so everything before an @ is masked."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        return text
    place, question, query = rest.partition("?")
    if "@" in place:
        place = "********@" + place.rpartition("@")[2]
    return f"{scheme}://{place}{question}" + _SECRET_PARAMETER.sub(r"\1********", query)
