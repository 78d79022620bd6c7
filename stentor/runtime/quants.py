"""Which files of a repository make a model: its quantization, all of its shards, and its projector. Pure decisions."""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import msgspec

from stentor.core.errors import StentorError

PREFERRED = "Q4_K_M"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_QUANT = re.compile(
    r"(?<![A-Za-z0-9])((?:UD-)?(?:I?Q|TQ)\d(?:_(?:\d|K|S|M|L|XS|XXS|XL|XXL|NL))*|MXFP4(?:_MOE)?|NVFP4|BF16|F16|F32|FP16|FP32)"
    r"(?![A-Za-z0-9])",
    re.IGNORECASE,
)
_PROJECTOR = re.compile(r"(^|[-._])mm-?proj([-._]|$)", re.IGNORECASE)
_NO_MODEL = re.compile(r"(^|[-._])(imatrix|vocab-only)([-._]|$)", re.IGNORECASE)
# Bits a weight, for nearness; what isn't listed counts by its first digit.
_BITS = {
    "Q4_K_M": 4.85, "Q4_K_S": 4.6, "Q4_K_L": 5.0, "Q4_K_XL": 4.95, "Q4_K": 4.85, "Q4_0": 4.55, "Q4_1": 5.05,
    "IQ4_NL": 4.5, "IQ4_XS": 4.3, "MXFP4": 4.3, "MXFP4_MOE": 4.3, "NVFP4": 4.3, "Q5_K_M": 5.7, "Q5_K_S": 5.5,
    "Q5_0": 5.55, "Q5_1": 6.05, "Q6_K": 6.6, "Q8_0": 8.5, "BF16": 16.0, "F16": 16.1, "FP16": 16.1, "F32": 32.0,
    "FP32": 32.0,
}  # fmt: skip
_PROJECTOR_ORDER = ("F16", "FP16", "BF16", "Q8_0", "F32", "FP32")


class NoSuchFile(StentorError):
    """A repository doesn't hold what was asked for; the text lists what it holds."""


class RepoFile(msgspec.Struct, frozen=True):
    """A file of a repository: relative path, size, and ``sha256:…`` or ``git:…`` of its content."""

    path: str
    size_bytes: int
    digest: str


class Variant(msgspec.Struct, frozen=True):
    """One model among a repository's files: its quantization in capitals (empty: unnamed), its shards in order."""

    quant: str
    files: tuple[RepoFile, ...]
    shards: int = 1

    @property
    def name(self) -> str:
        """Its first file."""
        return self.files[0].path

    @property
    def size_bytes(self) -> int:
        """All shards together."""
        return sum(file.size_bytes for file in self.files)


class Choice(msgspec.Struct, frozen=True):
    """What to fetch: the model, and its projector where the repository has one. ``is_folder``: all files are it."""

    variant: Variant
    projector: RepoFile | None
    is_folder: bool = False

    @property
    def files(self) -> tuple[RepoFile, ...]:
        """Everything to fetch, the model's first file first."""
        return (*self.variant.files, *([self.projector] if self.projector else []))


def read_quant(path: str) -> str:
    """The quantization that a file's name tells, in capitals; else its folder's; empty where neither does."""
    for part in reversed(PurePosixPath(path).parts):
        found = _QUANT.findall(part)
        if found:
            return str(found[-1]).upper()
    return ""


def is_projector(path: str) -> bool:
    """Whether a file's name says that it is a projector, not a model."""
    return bool(_PROJECTOR.search(PurePosixPath(path).name))


def list_variants(files: Iterable[RepoFile]) -> list[Variant]:
    """The models among ``files``, shards joined, by name."""
    whole: list[Variant] = []
    shards: dict[tuple[str, int], list[RepoFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        name = PurePosixPath(file.path).name
        if not name.lower().endswith(".gguf") or is_projector(name) or _NO_MODEL.search(name):
            continue
        shard = _SHARD.fullmatch(file.path)
        if shard is None:
            whole.append(Variant(read_quant(file.path.removesuffix(".gguf")), (file,)))
        else:
            shards.setdefault((shard[1], int(shard[3])), []).append(file)
    joined = [Variant(read_quant(stem), tuple(parts), count) for (stem, count), parts in shards.items()]
    return sorted([*whole, *joined], key=lambda variant: variant.name)


def choose_files(repo: str, files: Sequence[RepoFile], quant: str = "", filename: str = "") -> Choice:
    """The files of the model that is meant: by exact file name, by exact quantization, else Q4_K_M or the nearest.

    A name with commas or ``*``, or one of another kind of file, means all files that match, as a folder.
    Raises NoSuchFile with what there is.
    """
    if filename and (re.search(r"[,*]", filename) or not filename.lower().endswith(".gguf")):
        return Choice(Variant("", _choose_plain(repo, files, filename)), None, is_folder=True)
    variants = list_variants(files)
    if not variants:
        others = ", ".join(sorted({PurePosixPath(file.path).suffix or file.path for file in files})[:8])
        raise NoSuchFile(
            f"{repo} holds no GGUF model (its files: {others or 'none'}). Look for a repository with GGUF, or name the "
            f"files of another kind of model, such as hf:{repo}#config.json,model.bin (#* takes all)."
        )
    if filename:
        hits = [variant for variant in variants if any(file.path == filename for file in variant.files)]
    elif quant:
        hits = _by_quant(variants, quant)
    else:
        hits = _nearest(variants)
    if not hits:
        raise NoSuchFile(f"{repo} has no '{filename or quant}'. It has: {_say(variants)}.")
    if len(hits) > 1:
        names = ", ".join(variant.name for variant in hits[:8])
        raise NoSuchFile(f"{repo} has more than one such model: {names}. Name one as hf:{repo}#{hits[0].name}.")
    (chosen,) = hits
    if len(chosen.files) != chosen.shards:
        raise NoSuchFile(f"{repo} lists {len(chosen.files)} of the {chosen.shards} parts of {chosen.name}.")
    return Choice(chosen, _choose_projector(chosen, files))


def _choose_plain(repo: str, files: Sequence[RepoFile], names: str) -> tuple[RepoFile, ...]:
    """The files that a list of names and patterns means, each at least one, in the repository's order."""
    chosen: set[str] = set()
    for name in names.split(","):
        hits = {file.path for file in files if fnmatchcase(file.path, name)}
        if not hits:
            held = ", ".join(sorted(file.path for file in files)[:16])
            raise NoSuchFile(f"{repo} has no '{name}'. It has: {held or 'nothing'}.")
        chosen |= hits
    return tuple(file for file in files if file.path in chosen)


def _by_quant(variants: Sequence[Variant], quant: str) -> list[Variant]:
    wanted = quant.upper()
    exact = [variant for variant in variants if variant.quant == wanted]
    return exact or [variant for variant in variants if variant.quant == f"UD-{wanted}"]


def _nearest(variants: Sequence[Variant]) -> list[Variant]:
    """The variants of the quantization nearest to the preferred one; of two as near, the finer."""
    best = min(variants, key=lambda variant: (abs(_bits(variant.quant) - _BITS[PREFERRED]), -_bits(variant.quant)))
    return [variant for variant in variants if variant.quant == best.quant]


def _bits(quant: str) -> float:
    plain = quant.removeprefix("UD-")
    digits = re.search(r"\d", plain)
    return _BITS.get(plain, float(digits[0]) + 0.5 if digits else 64.0)


def _choose_projector(chosen: Variant, files: Iterable[RepoFile]) -> RepoFile | None:
    folder = PurePosixPath(chosen.name).parent
    near = [
        file
        for file in files
        if file.path.lower().endswith(".gguf")
        and is_projector(file.path)
        and PurePosixPath(file.path).parent in (folder, PurePosixPath("."))
    ]

    def rank(file: RepoFile) -> tuple[bool, int, str]:
        quant = read_quant(file.path.removesuffix(".gguf"))
        order = _PROJECTOR_ORDER.index(quant) if quant in _PROJECTOR_ORDER else len(_PROJECTOR_ORDER)
        return PurePosixPath(file.path).parent != folder, order, file.path

    return min(near, key=rank, default=None)


def _say(variants: Sequence[Variant]) -> str:
    named = sorted({variant.quant for variant in variants if variant.quant}, key=_bits)
    return ", ".join(named) if named else ", ".join(variant.name for variant in variants[:12])
