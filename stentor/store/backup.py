"""A backup of the database: one consistent moment of it, made while a server runs, without the master key."""

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

import msgspec

from stentor.core.errors import StentorError
from stentor.store import driver
from stentor.store.lock import LOCK_NAME, DataLock
from stentor.store.schema import HEAD, PRODUCT
from stentor.store.settings import StoreSettings

DATABASE_NAME = "stentor.db"
MANIFEST_NAME = "manifest.json"
_BUSY_S = 30.0


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds. ``master_key_ids`` name the keys that it needs and doesn't hold."""

    product: str
    version: str
    revision: str
    made_us: int
    size_bytes: int
    master_key_ids: list[str]


def make_backup(settings: StoreSettings, target: Path, version: str) -> Manifest:
    """Write a backup to ``target``, which must not exist. Raises StentorError."""
    _refuse_postgres(settings)
    source = driver.database_path(settings)
    if not source.exists():
        raise StentorError(f"There is no database at {source} yet, so there is nothing to back up.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".stentor-backup-", dir=target.parent) as folder:
            copy = Path(folder) / DATABASE_NAME
            _copy(source, copy)
            manifest = _describe(copy, version)
            whole = Path(folder) / "backup.tar.gz"
            with tarfile.open(whole, "w:gz", compresslevel=6) as archive:
                _add_text(archive, MANIFEST_NAME, msgspec.json.format(msgspec.json.encode(manifest)))
                archive.add(copy, DATABASE_NAME, filter=_plain)
            os.chmod(whole, 0o600)
            os.link(whole, target)  # never over a file that is there
    except FileExistsError:
        raise StentorError(f"{target} exists already; give the backup another name.") from None
    except OSError as error:
        raise StentorError(f"The backup {target} can't be written: {error.strerror or error}.") from None
    return manifest


def restore_backup(settings: StoreSettings, source: Path, *, replace: bool) -> tuple[Manifest, Path | None]:
    """Put a backup's database in place while no server runs; the old one is kept beside it.

    Returns what was restored, and where the old database lies now. Raises StentorError, and then nothing has changed.
    """
    _refuse_postgres(settings)
    path = driver.database_path(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = DataLock.acquire(settings.data_dir / LOCK_NAME, settings.data_dir)
    try:
        if path.exists() and path.stat().st_size and not replace:
            raise StentorError(f"There is a database at {path}. Add --replace to keep it aside and restore.")
        with tempfile.TemporaryDirectory(prefix=".stentor-restore-", dir=path.parent) as folder:
            copy = Path(folder) / DATABASE_NAME
            manifest = _unpack(source, copy)
            _check(copy)
            kept = _set_aside(path)
            os.chmod(copy, 0o600)
            copy.replace(path)
        return manifest, kept
    except OSError as error:
        raise StentorError(f"The backup {source} can't be restored: {error.strerror or error}.") from None
    finally:
        lock.release()


def _refuse_postgres(settings: StoreSettings) -> None:
    if settings.is_postgres:
        raise StentorError("The database is PostgreSQL: back it up and restore it with pg_dump and pg_restore.")


def _copy(source: Path, target: Path) -> None:
    """One moment of the database as a file of its own; a reader like any other, so a running server isn't held up."""
    raw = driver.connect(source, "ro", _BUSY_S)
    try:
        raw.execute("VACUUM INTO ?", (str(target),))
    except driver.module.Error as error:
        raise StentorError(f"The database {source} can't be read: {error}.") from None
    finally:
        raw.close()


def _describe(copy: Path, version: str) -> Manifest:
    raw = driver.connect(copy, "ro", _BUSY_S)
    try:
        revision = raw.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        keys = [row[0] for row in raw.execute("SELECT DISTINCT master_key_id FROM data_keys ORDER BY master_key_id")]
    finally:
        raw.close()
    return Manifest(PRODUCT, version, str(revision), time.time_ns() // 1000, copy.stat().st_size, keys)


def _add_text(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o600
    return entry


def _unpack(source: Path, target: Path) -> Manifest:
    """The database of a backup as a file. Nothing else in it is touched, and no name in it decides a path."""
    try:
        with tarfile.open(source, "r:gz") as archive:
            manifest = _read_manifest(archive)
            member = archive.extractfile(DATABASE_NAME)
            if member is None:
                raise KeyError(DATABASE_NAME)
            with target.open("wb") as file:
                while data := member.read(1 << 20):
                    file.write(data)
                    if file.tell() > manifest.size_bytes:
                        raise StentorError(f"{source} holds more than its manifest says, so it is no backup of ours.")
                file.flush()
                os.fsync(file.fileno())
    except (tarfile.TarError, KeyError, EOFError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise StentorError(f"{source} isn't a backup that `stentor backup` made ({type(error).__name__}).") from None
    if manifest.product != PRODUCT or manifest.revision > HEAD:
        raise StentorError(
            f"{source} is of schema {manifest.revision} of {manifest.product}, newer than this version knows ({HEAD})."
        )
    return manifest


def _read_manifest(archive: tarfile.TarFile) -> Manifest:
    member = archive.extractfile(MANIFEST_NAME)
    if member is None:
        raise KeyError(MANIFEST_NAME)
    return msgspec.json.decode(member.read(64 * 1024), type=Manifest)


def _check(copy: Path) -> None:
    raw = driver.connect(copy, "ro", _BUSY_S)
    try:
        found = raw.execute("PRAGMA integrity_check(1)").fetchone()
    except driver.module.Error as error:
        raise StentorError(f"The backup's database is damaged: {error}.") from None
    finally:
        raw.close()
    if found is None or found[0] != "ok":
        raise StentorError(f"The backup's database is damaged: {found[0] if found else 'nothing to read'}.")


def _set_aside(path: Path) -> Path | None:
    """Move a database with its log out of the way; where it lies now."""
    if not path.exists():
        return None
    kept = path.with_name(f"{path.name}.before-restore-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("-wal", "-shm"):
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(kept.with_name(kept.name + suffix))
    path.replace(kept)
    return kept
