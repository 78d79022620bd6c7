"""The embedded text engine: llama.cpp's own server, hosted by xllamacpp in a process of its own.

Reads one JSON line of :class:`LlamaConfig` on stdin (the token never stands in argv or the environment), serves on
127.0.0.1, writes its log to stderr, and ends with status 0 on SIGTERM. A problem that trying again can't solve ends
with one line ``error: …`` and :data:`EXIT_BAD_MODEL`.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

from stentor.core.lazy import load
from stentor.core.media_marker import media_marker

EXIT_USAGE = 64
EXIT_BAD_MODEL = 65
EXIT_UNAVAILABLE = 69
_CONFIG_MAX_BYTES = 1 << 20
_GGUF_MAGIC = b"GGUF"
_FLASH = {"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}
_LOAD_MODES = {"mmap+mlock": "MMAP_MLOCK", "dio": "DIRECT_IO"}
_KEPT: list[socket.socket] = []


class LlamaConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Everything the engine is told. ``ctx`` is tokens per place; the engine holds ``ctx`` × ``parallel`` in all."""

    model_path: str
    alias: str
    port: int
    token: str
    type: str = "text"
    ctx: int
    parallel: int
    threads: int
    batch: int | None = None
    ubatch: int | None = None
    gpu_layers: int = -1
    pooling: str = ""
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    cache_ram_mib: int = 0
    flash_attention: str = "auto"
    load_mode: str = "auto"
    mmproj: str = ""
    projector_on_cpu: bool = False
    chat_template: str = ""


def read_config() -> LlamaConfig:
    """The one line on stdin. Raises msgspec.DecodeError (ValidationError included)."""
    line = sys.stdin.buffer.readline(_CONFIG_MAX_BYTES)
    return msgspec.json.decode(line, type=LlamaConfig)


def find_file_problem(path: Path) -> str | None:
    """Why ``path`` can't be a GGUF file, as one line for the operator, or None."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_GGUF_MAGIC))
    except OSError as problem:
        return f"model file {path} can't be read: {problem.strerror}. Fetch it again or correct the source."
    if magic != _GGUF_MAGIC:
        return f"model file {path} is not a GGUF file (it begins with {magic!r}). Fetch it again or correct the source."
    return None


def make_parameters(xlc: Any, config: LlamaConfig) -> Any:
    """xllamacpp's ``CommonParams`` for ``config``."""
    parameters = xlc.CommonParams()
    parameters.model.path = config.model_path
    parameters.model_alias = {config.alias}
    # Every place keeps its own part of the cache: n_ctx is the sum. Beyond its part a request is refused, never cut.
    parameters.n_ctx = config.ctx * config.parallel
    parameters.n_parallel = config.parallel
    parameters.kv_unified = False
    parameters.ctx_shift = False
    parameters.fit_params = False
    parameters.cpuparams.n_threads = config.threads
    parameters.cpuparams_batch.n_threads = config.threads
    parameters.n_gpu_layers = config.gpu_layers
    parameters.cache_type_k = getattr(xlc.ggml_type, f"GGML_TYPE_{config.cache_type_k.upper()}")
    parameters.cache_type_v = getattr(xlc.ggml_type, f"GGML_TYPE_{config.cache_type_v.upper()}")
    parameters.cache_ram_mib = config.cache_ram_mib
    flash, mode = _FLASH[config.flash_attention], _LOAD_MODES.get(config.load_mode, config.load_mode.upper())
    parameters.flash_attn_type = getattr(xlc.llama_flash_attn_type, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    parameters.load_mode = getattr(xlc.llama_load_mode, f"LLAMA_LOAD_MODE_{mode}")
    if config.mmproj:
        parameters.mmproj.path = config.mmproj
        parameters.mmproj_use_gpu = not config.projector_on_cpu
    parameters.chat_template = config.chat_template
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = config.port
    parameters.api_keys = [config.token]
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    parameters.ui = False
    # Idle keep-alive connections hold a thread each in the engine's HTTP server.
    parameters.n_threads_http = 2 * config.parallel + 8
    _set_batches(xlc, parameters, config)
    return parameters


def _set_batches(xlc: Any, parameters: Any, config: LlamaConfig) -> None:
    pooled = config.type in ("embedding", "vision-embedding", "reranker")
    if pooled:
        parameters.embedding = True
        # The whole input must fit one physical batch, or the engine answers 500.
        parameters.n_batch = parameters.n_ubatch = config.ctx
    if config.pooling:
        parameters.pooling_type = getattr(xlc.llama_pooling_type, f"LLAMA_POOLING_TYPE_{config.pooling.upper()}")
    if config.batch is not None:
        parameters.n_batch = config.batch
    if config.ubatch is not None:
        parameters.n_ubatch = config.ubatch


def _end(status: int, line: str = "") -> None:
    if line:
        # llama.cpp's own log writes from a thread, in pieces: ours begins a line of its own, in one piece.
        sys.stderr.write(f"\n{line}\n" if status else f"{line}\n")
    sys.stderr.flush()
    os._exit(status)


def serve(config: LlamaConfig) -> None:
    """Load the model and serve until SIGTERM or SIGINT; ends the process."""
    files = [Path(config.model_path), *([Path(config.mmproj)] if config.mmproj else [])]
    problem = next(filter(None, map(find_file_problem, files)), None)
    if problem is not None:
        _end(EXIT_BAD_MODEL, f"error: {problem}")
    # Read when the model is loaded. The gateway knows it, who writes prompts doesn't.
    os.environ["LLAMA_MEDIA_MARKER"] = media_marker(config.token)
    xlc = load("xllamacpp")
    try:
        server = xlc.Server(make_parameters(xlc, config))
    except RuntimeError as failure:
        if _is_port_taken(config.port):
            _end(EXIT_UNAVAILABLE, f"error: port {config.port} is taken by another program")
        place, step = " with ".join(map(str, files)), "Fetch it again, or correct its source"
        _end(EXIT_BAD_MODEL, f"error: llama.cpp can't load {place}: {failure}. {step}; the lines above say why.")
    signalled = _catch_signals()
    sys.stderr.write(f"serving {config.alias} at {server.listening_address}\n")
    sys.stderr.flush()
    signalled.recv(1)
    # Whatever still streams was given its time by the supervisor; the destructor would wait half a minute for it.
    _end(0, "stopping")


def _is_port_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _catch_signals() -> socket.socket:
    """A socket on which a byte arrives with SIGTERM or SIGINT.

    Handlers are set only now: the constructor holds the interpreter lock, so until here the default action (end at
    once) is the only one that works. The wake-up socket is needed as any of llama.cpp's threads may get the signal.
    """

    def note(_number: int, _frame: FrameType | None) -> None:
        return None

    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno())
    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    # The writing end must live as long as the handlers.
    _KEPT.append(writer)
    return reader


def main() -> None:
    """Read the configuration and serve."""
    try:
        config = read_config()
    except msgspec.DecodeError as problem:
        _end(EXIT_USAGE, f"error: one JSON line of configuration is expected on stdin: {problem}")
        return
    serve(config)


if __name__ == "__main__":
    main()
