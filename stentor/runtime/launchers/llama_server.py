"""An external ``llama-server``: what we want is put into the flags that this very build knows.

Builds differ: defaults moved, flags were removed and now stop the program. So each binary is asked once for its
``--help``, and what it doesn't know is said before anything is spawned.
"""

import asyncio
import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from stentor.runtime.launchers.base import (
    LOOPBACK,
    Launch,
    LaunchOrder,
    LaunchRefused,
    choose_environment,
    new_token,
)
from stentor.runtime.spec import LoadMode, ModelSpec

_PROBE_TIMEOUT_S = 20.0
_FLAG_LINE = re.compile(r"^ {0,2}(-[A-Za-z0-9]|--[a-z])")
_FLAG = re.compile(r"(?<![\w<-])(--?[A-Za-z][A-Za-z0-9-]*)")
_NVIDIA_LINE = re.compile(r"^\s*(?:CUDA|Vulkan)\d+:.*NVIDIA", re.MULTILINE)
_OURS = frozenset(
    {
        "--host", "--port", "--api-key", "--api-key-file", "-m", "--model", "-np", "--parallel", "-c", "--ctx-size",
        "-a", "--alias", "--path", "--api-prefix", "--ssl-key-file", "--ssl-cert-file", "--log-file", "--log-disable",
        "-hf", "-hfr", "--hf-repo", "-mu", "--model-url", "--models-dir", "--models-preset", "--reuse-port",
    }
)  # fmt: skip
_OLD_LOAD_SWITCHES = {
    "none": ("--no-mmap",),
    "mmap": (),
    "mlock": ("--mlock", "--no-mmap"),
    "mmap+mlock": ("--mlock",),
    "dio": ("--direct-io",),
}
Wish = tuple[tuple[str, ...], str | None]


class ServerAbilities(msgspec.Struct, frozen=True):
    """What one binary said of itself: all flags it accepts, those it only still names, and its version line."""

    flags: frozenset[str]
    removed: frozenset[str]
    version: str


def parse_help(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """Accepted and removed flags of a ``--help`` text, whose option lines begin with the flags."""
    accepted: set[str] = set()
    removed: set[str] = set()
    for names, note in _option_blocks(text.splitlines()):
        (removed if "argument has been removed" in note else accepted).update(names)
    return frozenset(accepted), frozenset(removed)


def _option_blocks(lines: Sequence[str]) -> Iterator[tuple[list[str], str]]:
    names: list[str] = []
    note = ""
    for line in lines:
        if _FLAG_LINE.match(line):
            if names:
                yield names, note
            # Names and description are set apart by at least two spaces, or the description has its own line.
            head = re.split(r"\s{2,}", re.sub(r",\s+", ", ", line.strip()), maxsplit=1)
            names, note = _FLAG.findall(head[0]), " ".join(head[1:])
        else:
            note += " " + line.strip()
    if names:
        yield names, note


def find_unknown_argument(arguments: Sequence[str], abilities: ServerAbilities) -> str | None:
    """What is wrong with an operator's extra arguments, in words, or None."""
    for argument in arguments:
        if not argument.startswith("-") or re.match(r"^-\d", argument):
            continue
        name = argument.partition("=")[0]
        if name in _OURS:
            return f"'{name}' is set by the server itself and can't be an extra argument."
        if name != argument:
            return f"write '{name}' and its value as two arguments; llama-server does not read '{argument}'."
        if name in abilities.removed:
            return (
                f"'{name}' was removed from this llama-server ({abilities.version}); its --help says what came instead."
            )
        if name not in abilities.flags:
            return f"this llama-server ({abilities.version}) does not know '{name}'."
    return None


def choose_wishes(order: LaunchOrder, key_file: Path) -> list[Wish]:
    """What we want of the server as (names to try in order, value); the first known name is used."""
    spec = order.spec
    wishes: list[Wish] = [
        (("--model",), str(order.weights)),
        (("--alias",), spec.upstream_model or spec.id),
        (("--host",), LOOPBACK),
        (("--port",), str(order.port)),
        (("--api-key-file",), str(key_file)),
        (("--ctx-size",), str(order.ctx * order.places)),
        (("--parallel",), str(order.places)),
        (("--threads",), str(order.threads)),
        (("--cache-type-k",), spec.cache_type_k),
        (("--cache-type-v",), spec.cache_type_v),
    ]
    if spec.gpu_layers >= 0:
        wishes.append((("--n-gpu-layers", "--gpu-layers"), str(spec.gpu_layers)))
    if order.gpu is not None:
        wishes.append((("--n-gpu-layers", "--gpu-layers"), str(order.gpu.layers)))
        if len(order.gpu.split) > 1:
            wishes.append((("--tensor-split",), ",".join(map(str, order.gpu.split))))
    if order.pooling:
        wishes.append((("--pooling",), order.pooling))
    if spec.flash_attention != "auto":
        wishes.append((("--flash-attn",), spec.flash_attention))
    if spec.mmproj is not None:
        wishes.append((("--mmproj",), str(spec.mmproj)))
        if order.projector_on_cpu:
            wishes.append((("--no-mmproj-offload",), None))
    return wishes + _choose_batches(spec, order.ctx)


def _choose_batches(spec: ModelSpec, ctx: int) -> list[Wish]:
    pooled = spec.kind in ("embedding", "vision-embedding", "reranker")
    batch = spec.batch or (ctx if pooled else None)
    ubatch = spec.ubatch or (ctx if pooled else None)
    wishes: list[Wish] = []
    if batch is not None:
        wishes.append((("--batch-size",), str(batch)))
    if ubatch is not None:
        wishes.append((("--ubatch-size",), str(ubatch)))
    if spec.kind in ("embedding", "vision-embedding"):
        wishes.append((("--embedding", "--embeddings"), None))
    if spec.kind == "reranker":
        wishes.append((("--reranking", "--rerank"), None))
    if spec.chat_template:
        wishes.append((("--chat-template",), spec.chat_template))
    return wishes


def choose_load_wishes(mode: LoadMode, abilities: ServerAbilities) -> list[Wish]:
    """How weights get into memory, in the words of this build: one option in new builds, switches in old ones."""
    if mode == "auto":
        return []
    if "--load-mode" in abilities.flags:
        return [(("--load-mode",), mode)]
    return [((name,), None) for name in _OLD_LOAD_SWITCHES[mode]]


def choose_optional_wishes(order: LaunchOrder) -> list[Wish]:
    """Wishes that an older or newer build may not know, and that it also does without."""
    spec = order.spec
    return [
        (("--no-ui", "--no-webui"), None),
        (("--metrics",), None),
        (("--slots",), None),
        (("--jinja",), None),
        (("--no-context-shift",), None),
        (("--no-kv-unified", "-no-kvu"), None),
        (("--cache-ram",), str(spec.cache_ram_mib)),
        (("--fit",), "off") if spec.gpu_layers >= 0 or order.gpu is not None else ((), None),
    ]


def write_arguments(wishes: Sequence[Wish], optional: Sequence[Wish], abilities: ServerAbilities) -> list[str]:
    """The argument list in the words of this build. Raises LaunchRefused where it lacks what we can't do without."""
    arguments: list[str] = []
    for index, (names, value) in enumerate([*wishes, *optional]):
        known = next((name for name in names if name in abilities.flags), None)
        if known is not None:
            arguments += [known] if value is None else [known, value]
        elif index < len(wishes):
            raise LaunchRefused(
                f"This llama-server ({abilities.version}) has no {' or '.join(names)}, which Stentor needs. "
                'Use a newer build, or the embedded engine (engine = "llama").'
            )
    return arguments


class LlamaServerLauncher:
    """Launcher of ``engine = "llama-server"``. Key files lie in ``run_dir``, mode 600, and go with their child."""

    def __init__(self, environment: Mapping[str, str], default_binary: Path | None, run_dir: Path) -> None:
        self._environment = environment
        self._default_binary = default_binary
        self._run_dir = run_dir
        self._known: dict[tuple[str, int, int], ServerAbilities] = {}
        self._asking = asyncio.Lock()

    async def prepare(self, order: LaunchOrder) -> Launch:
        """The child for ``order``. Raises LaunchRefused."""
        spec = order.spec
        binary = self._find_binary(spec)
        environment = choose_environment(self._environment, spec.env)
        abilities = await self._ask(binary, environment)
        problem = find_unknown_argument(spec.arguments, abilities)
        if problem is not None:
            raise LaunchRefused(f"Model '{spec.id}', arguments: {problem}")
        key_file = self._run_dir / f"{spec.id}-{order.port}.key"
        wishes = [*choose_wishes(order, key_file), *choose_load_wishes(spec.load_mode, abilities)]
        arguments = write_arguments(wishes, choose_optional_wishes(order), abilities)
        token = new_token()
        _write_secret(key_file, token)
        return Launch(
            argv=(str(binary), *arguments, *spec.arguments),
            environment=environment,
            token=token,
            key_file=key_file,
            places=order.places,
            context_size=order.ctx,
        )

    async def count_cards(self, spec: ModelSpec) -> int:
        """How many NVIDIA cards this build of the program uses; 0 where it doesn't say. Raises LaunchRefused."""
        binary = self._find_binary(spec)
        environment = choose_environment(self._environment, spec.env)
        abilities = await self._ask(binary, environment)
        if "--list-devices" not in abilities.flags:
            return 0
        return len(_NVIDIA_LINE.findall(await _output_of(binary, "--list-devices", environment)))

    def _find_binary(self, spec: ModelSpec) -> Path:
        wanted = spec.binary or self._default_binary or Path("llama-server")
        found = shutil.which(wanted, path=self._environment.get("PATH"))
        if found is None:
            raise LaunchRefused(
                f"Model '{spec.id}': the program {wanted} is not there or not executable. Set 'binary' or ENGINE_BIN "
                'to a llama-server, or use the embedded engine (engine = "llama").',
                public="the program that serves it is not installed",
            )
        return Path(found).resolve()

    async def _ask(self, binary: Path, environment: dict[str, str]) -> ServerAbilities:
        identity = _identify(binary)
        async with self._asking:
            if identity not in self._known:
                flags, removed = parse_help(await _output_of(binary, "--help", environment))
                version = (await _output_of(binary, "--version", environment)).strip().partition("\n")[0]
                if "--api-key-file" not in flags:
                    raise LaunchRefused(f"{binary} is no llama-server: its --help has no --api-key-file.")
                self._known[identity] = ServerAbilities(flags, removed, version or "version unknown")
            return self._known[identity]


def _identify(binary: Path) -> tuple[str, int, int]:
    stat = binary.stat()
    return str(binary), stat.st_mtime_ns, stat.st_size


async def _output_of(binary: Path, flag: str, environment: dict[str, str]) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            binary,
            flag,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError as problem:
        raise LaunchRefused(f"{binary} can't be run: {problem.strerror}.") from problem
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            output, _none = await process.communicate()
    except TimeoutError as problem:
        raise LaunchRefused(f"{binary} {flag} did not end within {_PROBE_TIMEOUT_S:g} s.") from problem
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return output.decode(errors="replace")


def _write_secret(path: Path, secret: str) -> None:
    """Write a fresh file that only we may read, under its name at once whole."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
    fresh.replace(path)
