"""Every setting, declared once: parsing, validation and the reference page are made from this table."""

from typing import Any

import msgspec

from stentor.settings import kinds
from stentor.settings.kinds import Kind, choice, integer, number


class Setting(msgspec.Struct, frozen=True):
    """One setting. Its environment name is ``STENTOR_`` + ``name``, its key in the file and its option lower-case.

    ``aliases`` are names of the systems that Stentor unites, read from the environment; ``common_aliases`` are words so
    common that they count only beside an ``LLM_*`` name or with ``STENTOR_COMPAT=lmserv``. ``default_text`` says the
    default where it is worked out at start. ``secret`` values are never shown and have no command-line option.
    """

    name: str
    kind: Kind
    text: str
    default: Any = None
    default_text: str = ""
    aliases: tuple[str, ...] = ()
    common_aliases: tuple[str, ...] = ()
    secret: bool = False
    group: str = "Server"

    @property
    def key(self) -> str:
        """The name in the settings file."""
        return self.name.lower()

    @property
    def option(self) -> str:
        """The command-line option."""
        return "--" + self.name.lower().replace("_", "-")


_SERVER = (
    Setting("HOST", kinds.HOST, "Address to listen on.", default="127.0.0.1"),
    Setting("PORT", integer(0, 65535), "Port to listen on; 0 takes a free one.", default=4000),
    Setting(
        "BIND_ADDRESS",
        kinds.BIND_ADDRESS,
        "`HOST` and `PORT` in one.",
        aliases=("LLMSERVER_BIND_ADDRESS",),
    ),
    Setting("PUBLIC_URL", kinds.URL, "Address that clients use, where it differs from the one listened on."),
    Setting(
        "NODE_URL",
        kinds.URL,
        "Address at which other servers on the same PostgreSQL database reach this one; where it is set, they serve "
        "its models, too.",
    ),
    Setting(
        "ALLOWED_HOSTS",
        kinds.WORDS,
        "Names that a request's `Host` may carry, beside loopback, `HOST`, `PUBLIC_URL` and `NODE_URL`.",
        default=(),
    ),
    Setting("TLS_CERT", kinds.PATH, "Certificate chain (PEM) to serve HTTPS with; needs `TLS_KEY`."),
    Setting("TLS_KEY", kinds.PATH, "Private key (PEM) of `TLS_CERT`."),
    Setting(
        "TRUSTED_PROXIES",
        kinds.NETWORKS,
        "Networks whose forwarded headers are believed; ignored from all others.",
        default=(),
    ),
    Setting(
        "ALLOW_INSECURE_ADMIN",
        kinds.SWITCH,
        "Allow password sign-in from other machines without TLS or a trusted proxy.",
        default=False,
    ),
    Setting(
        "GATEWAY_WORKERS",
        integer(1, 64),
        "Processes that terminate HTTP. One keeps everything in one process.",
        default=1,
    ),
    Setting("BODY_MAX_MB", integer(1, 4096, "MiB"), "Largest request body.", default=32),
    Setting("AUDIO_MAX_MB", integer(1, 65536, "MiB"), "Largest audio upload.", default=100),
    Setting("AUDIO_MAX_S", integer(1, None, "s"), "Longest audio upload.", default=7200),
    Setting(
        "UPLOAD_MIN_KB_S",
        integer(1, 1_000_000, "KiB/s"),
        "Slowest audio upload, on the whole; the first ten seconds are free.",
        default=16,
    ),
    Setting(
        "CORS_ORIGINS",
        kinds.WORDS,
        "Origins that browsers may call from; `*` only if you write it.",
        default=(),
        aliases=("LLMRING_CORS_ORIGINS",),
    ),
    Setting("DRAIN_S", number(0, "s"), "How long running requests may go on after SIGTERM.", default=30.0),
    Setting(
        "LOG_LEVEL",
        choice("DEBUG", "INFO", "WARNING", "ERROR", fold=str.upper),
        "Least severe log line to write.",
        default="INFO",
        common_aliases=("LOG_LEVEL",),
    ),
    Setting(
        "LOG_FORMAT",
        choice("auto", "pretty", "json"),
        "`auto`: pretty on a terminal, JSON lines otherwise.",
        default="auto",
    ),
    Setting("OTEL_ENDPOINT", kinds.URL, "OpenTelemetry collector (OTLP over HTTP) for traces; needs `stentor[otel]`."),
    Setting(
        "COMPAT",
        choice("none", "lmserv"),
        "`lmserv`: take the bare names `API_KEY`, `WORKERS`, `MODEL_PATH`, `LOG_LEVEL` as well.",
        default="none",
    ),
)

_STORE = (
    Setting("DATA_DIR", kinds.PATH, "Everything the server writes lies under it.", default_text="`data`"),
    Setting(
        "DATABASE_URL",
        kinds.DATABASE,
        "Where the books are kept: a file of SQLite's or a PostgreSQL database. "
        "In `sqlite://` addresses two slashes start a relative path, three an absolute one.",
        default_text="`{DATA_DIR}/stentor.db`",
        aliases=("LLMSERVER_DATABASE_URL", "LLMSERVER_DATABASE", "LLMRING_DATABASE_URL"),
    ),
    Setting(
        "DURABILITY",
        choice("power", "process"),
        "What a settled request survives: `power`: loss of power; `process`: a crash of the server.",
        default="power",
    ),
    Setting(
        "DATABASE_SCHEMA", kinds.TEXT, "PostgreSQL schema.", default="stentor", aliases=("LLMRING_DATABASE_SCHEMA",)
    ),
    Setting(
        "DATABASE_POOL_SIZE",
        integer(1, 1000),
        "PostgreSQL connections kept.",
        default=20,
        aliases=("LLMRING_DATABASE_POOL_SIZE",),
    ),
    Setting(
        "DATABASE_POOL_OVERFLOW",
        integer(0, 1000),
        "PostgreSQL connections beyond those.",
        default=10,
        aliases=("LLMRING_DATABASE_POOL_OVERFLOW",),
    ),
    Setting(
        "DATABASE_TIMEOUT_S",
        number(0.1, "s"),
        "How long PostgreSQL may take for a step before the store counts as failed.",
        default=5.0,
    ),
    Setting(
        "MASTER_KEY",
        kinds.KEY_BYTES,
        "Key that wraps the data keys. Made and kept as `{DATA_DIR}/master.key` while the database holds no data key.",
        default_text="made at first start",
        aliases=("LLMSERVER_MASTER_KEY", "LLMSERVER_ENCRYPTION_KEY"),
        secret=True,
    ),
    Setting(
        "RETENTION_DAYS",
        integer(1),
        "Age at which usage events are folded into a period-close row.",
        default_text="kept",
    ),
)

_MODELS = (
    Setting(
        "MODEL_CACHE",
        kinds.PATH,
        "Where fetched models are kept.",
        default_text="`{DATA_DIR}/models`",
        aliases=("LLMSERVER_MODEL_CACHE", "LLMSERVER_HF_CACHE"),
    ),
    Setting(
        "HF_TOKEN",
        kinds.TEXT,
        "Token for gated and private repositories of the model hub; else the vault's, `stentor secrets`.",
        secret=True,
    ),
    Setting(
        "HF_ENDPOINT",
        kinds.URL,
        "Address of the model hub or of a mirror.",
        default_text="the hub library's own",
    ),
    Setting(
        "HF_INFERENCE_URL",
        kinds.URL,
        "Address of the hub's inference service, for models whose source is `hf-inference:org/repo`.",
        default_text="none: such models can't be asked",
    ),
    Setting(
        "MODEL_DIRS",
        kinds.PATHS,
        "Folders whose GGUF files may be named by relative paths, beside `MODEL_CACHE`.",
        default=(),
    ),
    Setting(
        "MODEL_PATH",
        kinds.PATH,
        "One GGUF file to serve without a `[[models]]` table.",
        aliases=("LLM_MODEL_PATH",),
        common_aliases=("MODEL_PATH",),
    ),
    Setting(
        "ENGINE_BIN",
        kinds.PATH,
        "A `llama-server` to use for models that name no engine, in place of the embedded one.",
        aliases=("LLM_BIN_PATH", "LLAMA_BIN"),
    ),
    Setting(
        "INSTANCES",
        integer(1, 64),
        "Instances to start of `MODEL_PATH` (or of `--model`).",
        default=1,
        aliases=("LLM_WORKERS",),
        common_aliases=("WORKERS",),
    ),
    Setting("SLOT_COUNT", integer(1, 256), "Most engine processes at a time.", default=7),
    Setting("SLOT_FIRST_PORT", integer(1024, 65535), "First loopback port of the engines.", default=4801),
    Setting(
        "MEMORY_LIMIT_MB",
        integer(64, None, "MiB"),
        "Memory that all engines together may plan with.",
        default_text="what the machine has free",
    ),
    Setting(
        "IDLE_UNLOAD_S",
        number(0, "s"),
        "Unload a model after so long without a request, where its table says nothing; 0 never.",
        default=0.0,
    ),
    Setting(
        "KEEP_ALIVE_MIN_S",
        number(0, "s"),
        "How long an idle model stays at least when a request asks for less (`keep_alive` of Ollama's clients). Keys "
        "with the scope `admin` may ask for anything.",
        default=0.0,
    ),
    Setting(
        "KEEP_ALIVE_MAX_S",
        number(0, "s"),
        "How long an idle model stays at most when a request asks for more than `IDLE_UNLOAD_S`, or its table, says.",
        default=3600.0,
    ),
    Setting("QUEUE_MAX", integer(0), "Requests that may wait for one model.", default=256),
    Setting("QUEUE_TIMEOUT_S", number(0, "s"), "How long a request may wait.", default=60.0),
    Setting(
        "ROUTING",
        choice("strict", "lenient"),
        "`lenient`: a model name that nothing here has means the cheapest local model that can do what the request "
        "needs. `strict`: it is refused, with the nearest names.",
        default="strict",
    ),
    Setting(
        "DEFAULT_CTX",
        integer(128),
        "Tokens of context per request, where the model's table says nothing.",
        default=8192,
    ),
    Setting(
        "DEFAULT_THREADS",
        integer(1, 1024),
        "Threads per engine, where the model's table says nothing.",
        default_text="physical cores less one",
    ),
    Setting("DEFAULT_MAX_TOKENS", integer(1), "Output tokens of a request that names no limit.", default=2048),
)

_ACCESS = (
    Setting(
        "API_KEY",
        kinds.API_KEY,
        "One fixed key with inference scope, owned by the user `env`. One that can be guessed is warned about. A key "
        "that somebody has already stays theirs, with their rights.",
        common_aliases=("API_KEY",),
        secret=True,
    ),
    Setting(
        "RATE_LIMIT_QPS",
        number(0),
        "Requests a second per key, at each node by itself; 0 is off.",
        default=0.0,
        aliases=("RATE_LIMIT_QPS",),
    ),
    Setting(
        "EGRESS_ALLOW",
        kinds.EGRESS,
        "Hosts (`*.example.org` for all below one), addresses and networks that aren't public and that outgoing "
        "requests may reach all the same. Addresses in the settings file itself need no entry.",
        default=(),
    ),
    Setting(
        "ALLOW_IMAGE_URLS",
        kinds.SWITCH,
        "Fetch `https:` images that clients name in `image_url`, from public hosts: 20 MiB and 10 s each.",
        default=False,
    ),
    Setting("SIGNUP", kinds.SWITCH, "Let people ask for an account.", default=True),
    Setting(
        "ALERT_THRESHOLDS",
        kinds.PERCENTS,
        "How much of a budget, spending or token limit is used when webhooks are told; empty tells nobody.",
        default=(50, 80, 100),
    ),
)

_RING = (
    Setting(
        "RING_KEY_MODE",
        choice("strict", "bridge"),
        "`bridge`: any string is its own tenant on the LLMRing surface.",
        default="strict",
    ),
    Setting(
        "RING_BRIDGE_PUBLIC", kinds.SWITCH, "Allow `bridge` on an address that other machines reach.", default=False
    ),
    Setting(
        "REGISTRY_BASE_URL",
        kinds.URL,
        "Where the model registry is read from; nothing is fetched where it is empty, a bundled snapshot serves.",
        aliases=("LLMRING_REGISTRY_BASE_URL",),
    ),
    Setting(
        "CACHE_URL",
        kinds.TEXT,
        "Valkey or Redis in which servers share what they fetched of the registry; nothing else needs it.",
        default_text="each server keeps its own copies",
        aliases=("LLMRING_REDIS_URL",),
        secret=True,
    ),
    Setting(
        "CACHE_TTL",
        integer(0, None, "s"),
        "How long a copy of the registry counts as fresh.",
        default=3600,
        aliases=("LLMRING_CACHE_TTL",),
    ),
    Setting(
        "RECEIPTS_PRIVATE_KEY_B64",
        kinds.TEXT,
        "Ed25519 key that signs receipts.",
        default_text="made and kept in the vault",
        aliases=("LLMRING_RECEIPTS_PRIVATE_KEY_B64",),
        secret=True,
    ),
    Setting("RECEIPTS_PUBLIC_KEY_B64", kinds.TEXT, "Its public half.", aliases=("LLMRING_RECEIPTS_PUBLIC_KEY_B64",)),
    Setting("RECEIPTS_KEY_ID", kinds.TEXT, "Name of that key.", aliases=("LLMRING_RECEIPTS_KEY_ID",)),
    Setting(
        "RECEIPTS_ORIGIN",
        kinds.TEXT,
        "Origin line of the receipt log's checkpoints: a name of yours, without blanks or `+`.",
        default_text="made from the database's own name",
    ),
    Setting(
        "HISTORY_LEVEL",
        choice("full", "metadata", "none"),
        "The most that is kept of messages: with contents, with their hashes, or nothing. A conversation's title and "
        "system prompt are contents.",
        default="full",
    ),
    Setting(
        "HISTORY_RETENTION_DAYS",
        integer(0),
        "Age in days at which kept messages are removed, and of conversations left empty title and system prompt; "
        "0 never.",
        default=0,
    ),
)


def _grouped() -> tuple[Setting, ...]:
    groups = {"Server": _SERVER, "Store": _STORE, "Models": _MODELS, "Access": _ACCESS, "Ring": _RING}
    return tuple(
        msgspec.structs.replace(setting, group=group) for group, settings in groups.items() for setting in settings
    )


DECLARED: tuple[Setting, ...] = _grouped()
BY_NAME: dict[str, Setting] = {setting.name: setting for setting in DECLARED}

PREFIX = "STENTOR_"
CONFIG_NAME = "CONFIG"
UNUSED_ALIASES: dict[str, str] = {"LLMSERVER_SESSION_KEY": "session keys live in the keyring"}
LMSERV_MARKS: tuple[str, ...] = ("LLM_MODEL_PATH", "LLM_BIN_PATH", "LLM_WORKERS")
