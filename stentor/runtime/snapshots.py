"""Models from the hub on this disk: fetched by commit, recorded per source, several revisions beside each other.

``{cache}/hf/org--repo/`` holds a folder a commit, in it files as the repository names them, and one record a source.
Parts of files lie in ``parts``, named by what they are to become, so that whoever fetches the same content goes on
with them.
"""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import msgspec

from stentor.core.errors import UNREADABLE, StentorError
from stentor.core.files import write_whole
from stentor.runtime.downloads import FetchError, Progress, require_space
from stentor.runtime.hub import Hub, Part
from stentor.runtime.origins import HubSource
from stentor.runtime.quants import Choice, RepoFile, choose_files
from stentor.runtime.wheels import GGUF_MAGIC, explain_os_error, safe_member

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")


class SnapshotFile(msgspec.Struct, frozen=True):
    """A fetched file; ``mtime_ns`` and ``size_bytes`` tell without reading it that it is unchanged."""

    path: str
    size_bytes: int
    digest: str
    mtime_ns: int


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What a source meant when it was last fetched: the commit, its files, and which of them is what."""

    source: str
    repo: str
    commit: str
    quant: str
    main: str
    projector: str | None
    files: tuple[SnapshotFile, ...]
    is_folder: bool = False

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files)


class Plan(msgspec.Struct, frozen=True):
    """What is to be fetched of a repository at a commit."""

    source: HubSource
    commit: str
    choice: Choice


class Snapshots:
    """The hub's part of the model cache. One process at a time writes a file; a second one is told so."""

    def __init__(self, cache: Path, hub: Hub) -> None:
        self._root = cache / "hf"
        self._hub = hub

    def find(self, source: HubSource) -> Snapshot | None:
        """The snapshot of a source if all of it is there and unchanged since it was checked."""
        snapshot = self.find_record(source)
        if snapshot is None or not all(self._is_unchanged(snapshot, file) for file in snapshot.files):
            return None
        return snapshot

    def find_record(self, source: HubSource) -> Snapshot | None:
        """What was recorded of a source, whether or not its files are still there."""
        return _read(self._record_path(source))

    def path_of(self, snapshot: Snapshot) -> Path:
        """The model's first file; of one that is a folder, the one that holds all its files."""
        folder = self._folder(snapshot.repo, snapshot.commit)
        if not snapshot.is_folder:
            return folder / snapshot.main
        return folder / os.path.commonpath([PurePosixPath(file.path).parent for file in snapshot.files])

    def list_all(self) -> list[Snapshot]:
        """Every recorded snapshot, by source."""
        found = [_read(path) for path in sorted(self._root.glob("*/*.json"))]
        return sorted((each for each in found if each is not None), key=lambda each: each.source)

    async def plan(self, source: HubSource) -> Plan:
        """Ask the hub what a source means now. Raises HubTrouble and NoSuchFile."""
        view = await self._hub.look(source.repo, source.revision)
        choice = choose_files(source.repo, view.files, source.quant, source.filename)
        for file in choice.files:
            if not safe_member(file.path) or not _DIGEST.fullmatch(file.digest):
                what = f"the unsafe path {file.path[:80]!r}, or no checksum for it"
                raise FetchError(f"{source.repo} lists {what}. Nothing was fetched.")
        return Plan(source, view.commit, choice)

    async def fetch(self, plan: Plan, tell: Progress) -> Snapshot:
        """Fetch and check everything of a plan, and record it. Raises FetchError; what came so far is kept."""
        folder = self._folder(plan.source.repo, plan.commit)
        files = plan.choice.files
        parts = await asyncio.to_thread(self._prepare, plan, folder)
        try:
            done = dict.fromkeys(range(len(parts)), 0)
            total = plan.choice.variant.size_bytes + (plan.choice.projector.size_bytes if plan.choice.projector else 0)
            kept = total - sum(part.file.size_bytes for part in parts)

            def hear(number: int, size_bytes: int) -> None:
                # Files are fetched one after the other: those before are whole.
                done.update({earlier: parts[earlier].file.size_bytes for earlier in range(number)})
                done[number] = size_bytes
                tell(kept + sum(done.values()), total)

            tell(kept, total)
            if parts:
                await self._hub.fetch(plan.source.repo, plan.commit, parts, hear)
            return await asyncio.to_thread(self._keep, plan, folder, parts)
        except OSError as error:
            raise FetchError(explain_os_error(error, PurePosixPath(files[0].path).name, folder)) from None

    def remove(self, source: HubSource) -> int:
        """Forget a source and delete the files that no other source uses; returns the bytes freed."""
        snapshot = self.find_record(source)
        self._record_path(source).unlink(missing_ok=True)
        return self._clean(source.repo, snapshot.commit if snapshot else "none")

    def clean_old(self, old: Snapshot) -> int:
        """Delete what a source meant before and nothing means any more; returns the bytes freed."""
        return self._clean(old.repo, old.commit)

    # -- inside ----------------------------------------------------------------------------------------------------

    def _clean(self, repo: str, commit: str) -> int:
        folder = self._folder(repo, commit)
        used = {
            folder / file.path
            for each in self.list_all()
            if (each.repo, each.commit) == (repo, commit)
            for file in each.files
        }
        freed = 0
        for path in [path for path in folder.rglob("*") if path.is_file() and path not in used]:
            freed += path.stat().st_size if path.stat().st_nlink == 1 else 0
            path.unlink()
        if not used:
            shutil.rmtree(folder, ignore_errors=True)
        if not any(each.repo == repo for each in self.list_all()):
            shutil.rmtree(folder.parent, ignore_errors=True)
        return freed

    def _prepare(self, plan: Plan, folder: Path) -> list[Part]:
        """What is really missing: files of earlier commits are taken over, files without a record are checked again."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            known = self._known(plan.source.repo)
            missing = [file for file in plan.choice.files if not self._take_over(file, folder, known)]
            # Files of the same content are one part.
            once = {file.digest: file for file in reversed(missing)}
            parts = [Part(file, folder.parent / "parts" / file.digest.replace(":", "-")) for file in once.values()]
            (folder.parent / "parts").mkdir(exist_ok=True)
            for part in parts:
                whole = folder / part.file.path
                whole.parent.mkdir(parents=True, exist_ok=True)
                if whole.is_file() and not part.part.exists():
                    whole.replace(part.part)
            lacking = sum(part.file.size_bytes - _size(part.part) for part in parts)
        except OSError as error:
            raise FetchError(explain_os_error(error, plan.choice.variant.name, folder)) from None
        if lacking > 0:
            require_space(folder, lacking, plan.choice.variant.name)
        return parts

    def _known(self, repo: str) -> dict[str, tuple[Path, SnapshotFile]]:
        """Files of a repository that are there and checked, by digest."""
        return {
            file.digest: (self._folder(repo, each.commit) / file.path, file)
            for each in self.list_all()
            if each.repo == repo
            for file in each.files
            if self._is_unchanged(each, file)
        }

    def _take_over(self, file: RepoFile, folder: Path, known: dict[str, tuple[Path, SnapshotFile]]) -> bool:
        """Whether a file needn't be fetched, as it is here already, perhaps as part of another commit."""
        path, _ = known.get(file.digest, (None, None))
        target = folder / file.path
        if path is None or file.size_bytes != _size(path):
            return False
        if path != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(path, target)
            except OSError:
                return False
        return True

    def _keep(self, plan: Plan, folder: Path, parts: Iterable[Part]) -> Snapshot:
        """Give checked parts their names, and record the snapshot."""
        whole = {part.file.digest: folder / part.file.path for part in parts}
        for part in parts:
            part.part.replace(whole[part.file.digest])
        for file in plan.choice.files:
            if not (folder / file.path).is_file():
                _place(whole[file.digest], folder / file.path)
            if file.path.endswith(".gguf"):
                _check_magic(folder / file.path)
        choice, files = plan.choice, list(plan.choice.files)
        projector = None if choice.projector is None else _place_beside(folder, choice.variant.name, choice.projector)
        if projector is not None and projector != choice.projector:
            files.append(projector)
        snapshot = Snapshot(
            source=str(plan.source),
            repo=plan.source.repo,
            commit=plan.commit,
            quant=choice.variant.quant,
            main=choice.variant.name,
            projector=projector.path if projector else None,
            files=tuple(_describe(folder, file) for file in files),
            is_folder=choice.is_folder,
        )
        write_whole(self._record_path(plan.source), msgspec.json.format(msgspec.json.encode(snapshot)) + b"\n")
        return snapshot

    def _is_unchanged(self, snapshot: Snapshot, file: SnapshotFile) -> bool:
        try:
            found = (self._folder(snapshot.repo, snapshot.commit) / file.path).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (file.size_bytes, file.mtime_ns)

    def _folder(self, repo: str, commit: str) -> Path:
        return self._root / repo.replace("/", "--") / commit

    def _record_path(self, source: HubSource) -> Path:
        mark = hashlib.sha256(str(source).encode()).hexdigest()[:12]
        return self._root / source.repo.replace("/", "--") / f"{mark}.json"


def _read(path: Path) -> Snapshot | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Snapshot)
    except (OSError, *UNREADABLE):
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _describe(folder: Path, file: RepoFile) -> SnapshotFile:
    found = (folder / file.path).stat()
    return SnapshotFile(file.path, found.st_size, file.digest, found.st_mtime_ns)


def _place_beside(folder: Path, main: str, projector: RepoFile) -> RepoFile:
    """The projector in the folder of its model, where a model's projector is looked for."""
    path = PurePosixPath(main).parent / PurePosixPath(projector.path).name
    if str(path) == projector.path:
        return projector
    _place(folder / projector.path, folder / path)
    return RepoFile(str(path), projector.size_bytes, projector.digest)


def _place(path: Path, target: Path) -> None:
    """Have the file at ``path`` at ``target`` as well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(path)
    except OSError:
        # Not every file system has hard links; what there is twice is small.
        shutil.copyfile(path, target)


def _check_magic(path: Path) -> None:
    with path.open("rb") as file:
        first = file.read(len(GGUF_MAGIC))
    if first != GGUF_MAGIC:
        raise StentorError(f"{path.name} is not a GGUF file: it begins with {first!r} in place of {GGUF_MAGIC!r}.")
