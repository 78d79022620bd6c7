"""The program that speaks to the model hub: searches it, looks into a repository, fetches files.

Reads one JSON line of :class:`HubOrder` on stdin (the token never stands in argv or the environment) and writes events
to stdout, a JSON line each: ``progress``, ``checking`` and ``waiting`` while it works, at the end ``result`` or
``problem``. The hub's own library does headers and refusals; it reads its configuration from the environment when it is
imported, which is why it lives in a process whose environment is made for it.

A file is written into the part that is named for it, which a killed program leaves behind and a later one goes on with.
Whether the whole is what the repository lists is checked by its sum, over what lies on the disk.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.core.lazy import load
from stentor.engines.hub_attempts import Attempts, Problem, tell
from stentor.engines.hub_doors import Doors

_ORDER_MAX_BYTES = 1 << 22
_TELL_EVERY_S = 0.2
_HASH_BYTES = 1 << 20
_TRICKLE_BYTES_PER_S = 512
_PAGES_MAX = 200
_FILES_MAX = 100_000
_PATH_MAX = 4_096
_FILE_MAX_BYTES = 1 << 50
_ANSWER_MAX_BYTES = 1 << 24
_FRAMING = frozenset({"connection", "content-length", "transfer-encoding"})
_COMMIT = re.compile(r"[A-Za-z0-9]{1,64}")
_GGUF_MAGIC = b"GGUF"


class WantedFile(msgspec.Struct, frozen=True):
    """One file to fetch: its path in the repository, size, ``sha256:…`` or ``git:…`` of it, and its part on disk."""

    path: str
    size_bytes: int
    digest: str
    part: str


class HubOrder(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to do. ``tries`` without any progress end it, with growing pauses from ``backoff_first_s`` between them;
    ``allow`` is what an operator allows beyond public addresses."""

    task: Literal["search", "look", "fetch"]
    token: str = ""
    query: str = ""
    limit: int = 20
    cursor: str = ""
    repo: str = ""
    revision: str = ""
    files: tuple[WantedFile, ...] = ()
    stall_s: float = 30.0
    tries: int = 6
    backoff_first_s: float = 0.5
    allow: tuple[str, ...] = ()


class HubProgram:
    """Carries out one order."""

    def __init__(self, order: HubOrder) -> None:
        self._order = order
        self._errors = load("huggingface_hub.errors")
        self._attempts = Attempts(order.tries, order.backoff_first_s)
        self._http = load("huggingface_hub.utils")
        self._httpx = load("httpx2")
        self._endpoint: str = load("huggingface_hub.constants").ENDPOINT
        self._told_s = 0.0
        socket.getaddrinfo = Doors(self._endpoint, order.allow, os.environ).resolve

    def run(self) -> dict[str, Any]:
        """The order's result. Raises Problem."""
        if self._order.task == "search":
            return self.search()
        return self.look() if self._order.task == "look" else self.fetch()

    # -- the hub's API ---------------------------------------------------------------------------------------------

    def search(self) -> dict[str, Any]:
        """One page of the repositories with GGUF files that a query finds, most used first."""
        params = {
            "search": self._order.query,
            "filter": "gguf",
            "sort": "downloads",
            "direction": "-1",
            "limit": str(self._order.limit),
            "expand": ["downloads", "likes", "gated", "lastModified", "pipeline_tag"],
        }
        if self._order.cursor:
            params["cursor"] = self._order.cursor
        page, following = self._get(f"{self._endpoint}/api/models", params)
        rows = [_describe_found(row) for row in page if isinstance(row, dict)] if isinstance(page, list) else []
        cursor = parse_qs(urlsplit(following).query).get("cursor", [""])[0] if following else ""
        return {"repos": rows, "cursor": cursor}

    def look(self) -> dict[str, Any]:
        """The commit that a revision means now, and the files of it."""
        repo = quote(self._order.repo, safe="/")
        revision = quote(self._order.revision or "main", safe="")
        found, _ = self._get(f"{self._endpoint}/api/models/{repo}/revision/{revision}", {})
        commit = found.get("sha") if isinstance(found, dict) else None
        if not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise Problem("rubbish", "it names no commit")
        files: list[dict[str, Any]] = []
        following = f"{self._endpoint}/api/models/{repo}/tree/{commit}?recursive=true"
        for _ in range(_PAGES_MAX):
            page, following = self._get(following, {})
            rows = page if isinstance(page, list) else []
            files += [_describe_file(row) for row in rows if isinstance(row, dict) and row.get("type") == "file"]
            if len(files) > _FILES_MAX:
                raise Problem("rubbish", f"it lists over {_FILES_MAX} files")
            if not following:
                break
        return {"commit": commit, "gated": bool(found.get("gated")), "files": files}

    def _get(self, url: str, params: dict[str, Any]) -> tuple[Any, str]:
        """The JSON at an address of the hub, and the address of its next page."""
        for attempt in self._attempts:
            with attempt:
                with self._session() as session:
                    answer = self._ask(session, url, params)
                self._http.hf_raise_for_status(answer)
                following = answer.links.get("next", {}).get("url", "")
                if following and urlsplit(following)[:2] != urlsplit(self._endpoint)[:2]:
                    raise Problem("rubbish", f"its next page is on another host ({urlsplit(following).netloc})")
                return _decode(answer.content), following
        raise AssertionError("the last attempt raises")

    def _ask(self, session: Any, url: str, params: dict[str, Any]) -> Any:
        """An answer of the hub's API, whole, as far as one may reasonably go."""
        with session.stream(
            "GET", url, params=params or None, headers=self._headers(), timeout=self._order.stall_s
        ) as answer:
            return self._read_whole(answer)

    def _read_whole(self, answer: Any) -> Any:
        """The same answer with its body read. Raises Problem for one that is packed, or goes on and on."""
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise Problem("rubbish", "its answer came packed, though nobody asked for that")
        pace, parts, size = _Pace(self._order.stall_s), [], 0
        for chunk in answer.iter_raw():
            parts.append(chunk)
            size += len(chunk)
            if size > _ANSWER_MAX_BYTES:
                raise Problem("rubbish", f"its answer is over {_ANSWER_MAX_BYTES} bytes")
            pace.note(len(chunk))
        headers = [(name, text) for name, text in answer.headers.multi_items() if name not in _FRAMING]
        return self._httpx.Response(
            answer.status_code, headers=headers, content=b"".join(parts), request=answer.request
        )

    @contextlib.contextmanager
    def _session(self) -> Iterator[Any]:
        """The library's HTTP session, every failure of which becomes a Problem."""
        try:
            yield self._http.get_session()
        except self._httpx.RequestError as error:
            raise Problem("unreachable", str(error) or type(error).__name__, passing=True) from None
        except self._errors.OfflineModeIsEnabled:
            raise Problem("offline", "HF_HUB_OFFLINE is set") from None

    def _headers(self) -> dict[str, str]:
        token = self._order.token or False
        headers: dict[str, str] = self._http.build_hf_headers(token=token, library_name="stentor")
        return {**headers, "Accept-Encoding": "identity"}

    # -- files -----------------------------------------------------------------------------------------------------

    def fetch(self) -> dict[str, Any]:
        """Fetch every file into its part, and check its sum."""
        for number, file in enumerate(self._order.files):
            with _open_part(Path(file.part)) as part:
                self._fetch_one(number, file, part)
                if not self._is_whole(number, file, part):
                    # What an interrupted run left may be worth nothing after a loss of power: once more from the start.
                    part.truncate(0)
                    self._fetch_one(number, file, part)
                    if not self._is_whole(number, file, part):
                        part.truncate(0)
                        raise Problem("damaged", file.path)
        return {}

    def _fetch_one(self, number: int, file: WantedFile, part: BinaryIO) -> None:
        url = f"{self._endpoint}/{quote(self._order.repo)}/resolve/{quote(self._order.revision)}/{quote(file.path)}"
        if part.seek(0, os.SEEK_END) > file.size_bytes:
            part.truncate(0)
        have = 0
        for attempt in self._attempts:
            with attempt:
                have = part.seek(0, os.SEEK_END)
                self._tell_progress(number, have, part)
                if have < file.size_bytes:
                    with self._session() as session:
                        self._stream(session, url, number, file, part)
                if part.seek(0, os.SEEK_END) < file.size_bytes:
                    raise Problem("cut", f"{file.path} ended early", passing=True)
            attempt.progressed = part.seek(0, os.SEEK_END) > have
        part.flush()
        os.fsync(part.fileno())

    def _stream(self, session: Any, url: str, number: int, file: WantedFile, part: BinaryIO) -> None:
        """Append what is missing of a file to its part."""
        have = part.tell()
        headers = self._headers() | ({"Range": f"bytes={have}-"} if have else {})
        with session.stream("GET", url, headers=headers, timeout=self._order.stall_s) as answer:
            self._http.hf_raise_for_status(answer if answer.status_code < 400 else self._read_whole(answer))
            if _check_answer(answer.status_code, answer.headers, file, have):
                have = part.seek(0)
                part.truncate()
            pace = _Pace(self._order.stall_s)
            for chunk in answer.iter_raw():
                if have == 0 and file.path.endswith(".gguf") and not chunk.startswith(_GGUF_MAGIC[: len(chunk)]):
                    raise Problem("rubbish", f"{file.path} begins with {chunk[:16]!r}, which is no GGUF file")
                if have + len(chunk) > file.size_bytes:
                    raise Problem("rubbish", f"{file.path} is longer than the {file.size_bytes} bytes it should have")
                part.write(chunk)
                have += len(chunk)
                pace.note(len(chunk))
                self._tell_progress(number, have, part)

    def _tell_progress(self, number: int, done: int, part: BinaryIO) -> None:
        now_s = time.monotonic()
        if now_s - self._told_s >= _TELL_EVERY_S or done == 0:
            self._told_s = now_s
            # What was told of must be there after a kill.
            part.flush()
            tell("progress", file=number, done=done)

    def _is_whole(self, number: int, file: WantedFile, part: BinaryIO) -> bool:
        kind, _, expected = file.digest.partition(":")
        digest = hashlib.sha256()
        if kind == "git":
            digest = hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
        part.seek(0)
        while chunk := part.read(_HASH_BYTES):
            digest.update(chunk)
            if time.monotonic() - self._told_s >= _TELL_EVERY_S:
                self._told_s = time.monotonic()
                tell("checking", file=number, done=part.tell())
        return digest.hexdigest() == expected


class _Pace:
    """Notices a connection that only trickles."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._since_s = time.monotonic()
        self._received = 0

    def note(self, size: int) -> None:
        """Raises Problem where less came in a window than any line carries."""
        self._received += size
        spent_s = time.monotonic() - self._since_s
        if spent_s < self._window_s:
            return
        if self._received < spent_s * _TRICKLE_BYTES_PER_S:
            raise Problem("stalled", f"only {self._received} bytes in {spent_s:.0f} s", passing=True)
        self._since_s, self._received = time.monotonic(), 0


@contextlib.contextmanager
def _open_part(path: Path) -> Iterator[BinaryIO]:
    """The part of a file, ours alone while it is open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Problem("locked", str(path)) from None
        yield part


def _check_answer(status: int, headers: Any, file: WantedFile, have: int) -> bool:
    """Whether an answer begins anew (True) or goes on at ``have``. Raises Problem where it can't be the file."""
    kind = headers.get("content-type", "")
    if kind.startswith(("text/html", "application/xhtml")) or headers.get("content-encoding", "identity") != "identity":
        raise Problem("rubbish", f"{file.path} came as {kind or 'a packed answer'}, which is a page, not the file")
    size = headers.get("content-length", "")
    if status == 206:
        if headers.get("content-range", "") != f"bytes {have}-{file.size_bytes - 1}/{file.size_bytes}":
            raise Problem("rubbish", f"{file.path} came with the range '{headers.get('content-range', '')[:60]}'")
        return False
    if size and size != str(file.size_bytes):
        raise Problem("rubbish", f"{file.path} came with {size} bytes in place of {file.size_bytes}")
    return True


def _decode(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except UNREADABLE:
        raise Problem("rubbish", f"it answered {content[:40]!r} where JSON was asked for") from None


def _describe_found(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "repo": str(row.get("id") or row.get("modelId") or ""),
        "downloads": _integer(row.get("downloads")),
        "likes": _integer(row.get("likes")),
        "gated": bool(row.get("gated")),
        "updated": str(row.get("lastModified") or ""),
        "task": str(row.get("pipeline_tag") or ""),
    }


def _describe_file(row: dict[str, Any]) -> dict[str, Any]:
    lfs = row.get("lfs")
    if isinstance(lfs, dict):
        return {
            "path": _path(row),
            "size_bytes": _size(lfs.get("size")),
            "digest": f"sha256:{lfs.get('oid') or lfs.get('sha256')}",
        }
    return {
        "path": _path(row),
        "size_bytes": _size(row.get("size")),
        "digest": f"git:{row.get('oid')}",
    }


def _path(row: dict[str, Any]) -> str:
    path = str(row.get("path", ""))
    if len(path) > _PATH_MAX:
        raise Problem("rubbish", f"it lists a path of {len(path)} characters")
    return path


def _size(value: Any) -> int:
    size = _integer(value)
    if size > _FILE_MAX_BYTES:
        raise Problem("rubbish", f"it lists a file of over {_FILE_MAX_BYTES} bytes")
    return size


def _integer(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def main() -> None:
    """Read the order, carry it out, say how it went."""
    try:
        order = msgspec.json.decode(sys.stdin.buffer.readline(_ORDER_MAX_BYTES), type=HubOrder)
        tell("result", **HubProgram(order).run())
    except UNREADABLE as error:
        tell("problem", kind="order", text=str(error))
    except Problem as problem:
        tell("problem", kind=problem.kind, text=str(problem), file="")
    except OSError as error:
        tell("problem", kind="disk", text=error.strerror or str(error))


if __name__ == "__main__":
    main()
