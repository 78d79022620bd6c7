"""What ``stentor doctor`` looks at on this machine. Each look returns what it found and, where needed, what to do."""

import os
import platform
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.store.lock import find_holder

if TYPE_CHECKING:
    from stentor.runtime.spec import ModelSpec
    from stentor.settings import Settings

Status = Literal["ok", "warning", "problem"]
GIB = 1 << 30
_LEAST_FREE_BYTES = 256 << 20
_LEAST_MEMORY_MIB = 1024
_EASY_FREE_BYTES = 2 * GIB
_PUBLIC_BITS = 0o077


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at: ``step`` is what to do, empty where all is well."""

    name: str
    status: Status
    text: str
    step: str = ""


def examine_machine(settings: "Settings") -> Iterator[Finding]:
    """Everything that can be looked at without opening the books."""
    yield _python()
    yield _sqlite()
    yield from _hardware(settings)
    yield from _ports(settings)
    yield from _tls(settings)
    yield _disk(settings)
    yield _data_folder(settings)
    yield from _models(settings)
    yield from _database(settings)


def _python() -> Finding:
    return Finding("python", "ok", f"{platform.python_implementation()} {platform.python_version()}, {sys.executable}")


def _sqlite() -> Finding:
    driver = load("stentor.store.driver")
    build = f"SQLite {driver.version} ({driver.module.__name__.partition('.')[0]})"
    if driver.is_wal_safe():
        return Finding("sqlite", "ok", build)
    return Finding(
        "sqlite",
        "warning",
        f"{build} has a known fault in its write-ahead log; Stentor avoids it by writing through one connection only.",
        "Install the package pysqlite3, or a Python with SQLite 3.51.3 or newer.",
    )


def _hardware(settings: "Settings") -> Iterator[Finding]:
    hardware = load("stentor.runtime.hardware")
    found = hardware.find_hardware()
    memory = f"{found.available_mib} of {found.memory_mib} MiB free"
    if found.available_mib < _LEAST_MEMORY_MIB:
        step = "End other programs, or serve a smaller model with a smaller DEFAULT_CTX."
        yield Finding("memory", "warning", f"Only {memory}.", step)
    else:
        yield Finding("memory", "ok", memory)
    cpu = f"{found.cpu}, {found.cores} cores, {' '.join(found.flags) or 'no vector extensions known'}"
    slow = found.machine in ("x86_64", "AMD64") and "avx2" not in found.flags
    step = "Expect slow answers, or run on a processor with AVX2." if slow else ""
    yield Finding("cpu", "warning" if slow else "ok", cpu, step)
    yield Finding("gpu", "ok", hardware.choose_gpu_step(found.gpus, settings.runtime.engine_bin))


def _ports(settings: "Settings") -> Iterator[Finding]:
    holder = find_holder(settings.data_dir)
    if holder is not None:
        yield Finding("server", "ok", f"A server is running on {settings.data_dir} (process {holder}).")
        return
    yield Finding("server", "ok", f"No server is running on {settings.data_dir}.")
    problem = find_port_problem(settings.host, settings.port)
    place = f"{settings.host}:{settings.port}"
    if problem is None:
        yield Finding("port", "ok", f"{place} is free.")
    else:
        yield Finding("port", "problem", f"{place}: {problem}.", "Choose another with --port or STENTOR_PORT.")
    yield _slot_ports(settings)


def _slot_ports(settings: "Settings") -> Finding:
    first, count = settings.runtime.slot_first_port, settings.runtime.slot_count
    taken = [port for port in range(first, first + count) if find_port_problem("127.0.0.1", port) is not None]
    if not taken:
        return Finding("engine ports", "ok", f"{first}–{first + count - 1} are free.")
    step = "End what listens there, or choose others with STENTOR_SLOT_FIRST_PORT."
    status: Status = "problem" if len(taken) == count else "warning"
    return Finding("engine ports", status, f"Taken: {', '.join(map(str, taken))}.", step)


def find_port_problem(host: str, port: int) -> str | None:
    """Why an address can't be listened on, or None."""
    if port == 0:
        return None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


def _tls(settings: "Settings") -> Iterator[Finding]:
    if settings.tls_cert is None or settings.tls_key is None:
        return
    try:
        load("stentor.http.server").tls_context((str(settings.tls_cert), str(settings.tls_key)))
    except StentorError as error:
        yield Finding("tls", "problem", str(error), "Name files that are there and that this user may read.")
    else:
        yield Finding("tls", "ok", f"{settings.tls_cert} and its key can be served.")


def _nearest_folder(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _disk(settings: "Settings") -> Finding:
    folder = _nearest_folder(settings.data_dir)
    free = shutil.disk_usage(folder).free
    text = f"{free // (1 << 20)} MiB free in {folder}"
    if free < _LEAST_FREE_BYTES:
        return Finding("disk", "problem", text, "Free some space; the books can't be written on a full disk.")
    if free < _EASY_FREE_BYTES:
        return Finding("disk", "warning", text, "Free some space before fetching models.")
    return Finding("disk", "ok", text)


def _data_folder(settings: "Settings") -> Finding:
    folder = settings.data_dir
    if not folder.exists():
        near = _nearest_folder(folder)
        if os.access(near, os.W_OK):
            return Finding("data folder", "ok", f"{folder} is made at the first start.")
        step = f"Make it for this user, or name another with --data-dir: {near} can't be written."
        return Finding("data folder", "problem", f"{folder} can't be made.", step)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("data folder", "problem", f"{folder} can't be written.", "Give this user the right to write it.")
    if folder.stat().st_mode & _PUBLIC_BITS:
        return Finding("data folder", "warning", f"Other users can read {folder}.", f"Run chmod 700 {folder}.")
    return Finding("data folder", "ok", str(folder))


def _models(settings: "Settings") -> Iterator[Finding]:
    sources = load("stentor.runtime.sources")
    cache = sources.Sources(settings.model_cache, settings.environ)
    for spec in settings.runtime.models:
        name = f"model {spec.id}"
        gaps = list(_find_gaps(settings, name, spec))
        yield from gaps
        library = load("stentor.runtime.spec").SPEECH_LIBRARIES.get(spec.engine, "")
        if library and find_spec(library) is None:
            extra = f"pip install 'stentor[{spec.engine}]'"
            yield Finding(name, "problem", f"its engine '{spec.engine}' is not installed.", f"Run: {extra}")
        if not spec.source:
            served = f"the command {spec.command[0]}" if spec.command else f"the engine {spec.engine}"
            if not gaps:
                yield Finding(name, "ok", f"served by {served}")
            continue
        try:
            yield _model_file(name, cache, sources, spec)
        except StentorError as error:
            yield Finding(name, "problem", str(error), "Correct its source in the settings.")


def _find_gaps(settings: "Settings", name: str, spec: "ModelSpec") -> Iterator[Finding]:
    """What a model names and isn't there: its program, and models to fall back to."""
    program: str | Path = ""
    if spec.engine == "command":
        program = spec.command[0]
    elif spec.engine == "llama-server":
        program = spec.binary or settings.runtime.engine_bin or "llama-server"
    if program and shutil.which(program, path=settings.environ.get("PATH")) is None:
        text = f"The program {program} is not there or not executable."
        step = "Correct 'command' at the model." if spec.command else "Set 'binary' at the model, or ENGINE_BIN."
        yield Finding(name, "problem", text, step)
    known = {word for other in settings.runtime.models for word in (other.id, *other.aliases)}
    unknown = [word for word in spec.fallbacks if word not in known]
    if unknown:
        text = f"No model of the settings is called {', '.join(unknown)}, which it falls back to."
        yield Finding(name, "warning", text, "Correct 'fallbacks', or add that model with `stentor models add`.")


def _model_file(name: str, cache: Any, sources: Any, spec: "ModelSpec") -> Finding:
    source = spec.source
    found = cache.find(source)
    if found is None and not source.startswith("file:"):
        return Finding(name, "warning", "not fetched yet", f"`stentor models pull '{source}'` fetches it.")
    path = sources.check_file(found if found is not None else Path(source.removeprefix("file:")))
    sources.check_fits(spec.engine, path)
    return Finding(name, "ok", f"{path} ({sources.find_size(path) >> 20} MiB)")


def _database(settings: "Settings") -> Iterator[Finding]:
    inspection = load("stentor.store.inspection")
    status = _guarded("database", lambda: inspection.inspect_store(settings.store))
    if isinstance(status, Finding):
        yield status
        return
    if status.revision is None:
        yield Finding("database", "ok", f"{status.place} is made at the first start.")
        return
    size = f"{status.place} ({status.system}), schema {status.revision}, {status.size_bytes >> 10} KiB"
    complaints = _guarded("database", lambda: inspection.check_integrity(settings.store))
    if isinstance(complaints, Finding):
        yield complaints
    elif complaints:
        step = "Stop the server, keep a copy of the file, and restore a backup."
        yield Finding("database", "problem", f"{size}: {'; '.join(complaints[:3])}", step)
    else:
        yield Finding("database", "ok", size)


def _guarded(name: str, look: Callable[[], Any]) -> Any:
    try:
        return look()
    except StentorError as error:
        return Finding(name, "problem", str(error), "Check the file and its rights, or restore a backup.")
