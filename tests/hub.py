"""A model hub on loopback that speaks the hub's API, as far as Stentor uses it, and can be as bad as a real one.

Search with pages and Link headers, revisions, trees in pages, files behind a redirect to a second address (the CDN),
ranges, LFS checksums, gated and private repositories, and a list of mishaps to happen to the next requests.
"""

import contextlib
import hashlib
import http.server
import json
import re
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.answering import Answering

TREE_PAGE = 4


class Repo:
    """A repository: commits of files, the last of which is main."""

    def __init__(self, name: str, *, gated: bool = False, private: bool = False, downloads: int = 0) -> None:
        self.name = name
        self.gated = gated
        self.private = private
        self.downloads = downloads
        self.commits: list[tuple[str, dict[str, bytes]]] = []
        self.plain: set[str] = set()

    def commit(self, files: dict[str, bytes], *, plain: tuple[str, ...] = ()) -> str:
        """Add a commit with exactly these files; ``plain`` ones aren't LFS. Returns its name."""
        self.plain |= set(plain)
        text = f"{self.name}{len(self.commits)}{sorted((path, len(data)) for path, data in files.items())}"
        name = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self.commits.append((name, files))
        return name

    def find(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit by name, or the last as main."""
        if revision == "main":
            return self.commits[-1] if self.commits else None
        return next((each for each in self.commits if each[0] == revision), None)


class Hub:
    """The hub. ``mishaps`` are taken one a file request: dictionaries with one of ``status`` (and ``headers``), ``cut``
    (bytes after which the connection is closed), ``stall`` (bytes after which nothing comes for ``seconds``), ``html``,
    ``ignore_range``, ``corrupt``, ``to`` (a redirect), ``json``, ``endless`` (a piece to repeat); for
    API requests ``api_mishaps`` in the same way. ``slow`` bytes a second, 0 none. What of a file is beyond ``most``
    bytes only trickles until that is raised; beyond ``most_in_all`` bytes of files, however often, nothing comes.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.token = "hf_right"
        self.mishaps: list[dict[str, Any]] = []
        self.api_mishaps: list[dict[str, Any]] = []
        self.slow = 0
        self.most: int | None = None
        self.most_in_all: int | None = None
        self.calls: list[tuple[str, str, dict[str, str]]] = []
        self.served: dict[str, int] = {}
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            owner = hub

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that left is no error."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The hub's address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def cdn(self) -> str:
        """The address that files are redirected to: another host by name, as with a real hub."""
        return f"http://localhost:{self._server.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes], **options: Any) -> Repo:
        """A repository with one commit."""
        repo = self.repos[name] = Repo(name, **options)
        repo.commit(files)
        return repo

    def ranges(self) -> list[str]:
        """The Range headers of requests for files, empty where there was none."""
        return [headers.get("range", "") for _, path, headers in self.calls if path.startswith("/cdn/")]

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextlib.contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub for the time of a test."""
    hub = Hub()
    try:
        yield hub
    finally:
        hub.close()


class _Handler(Answering):
    owner: Hub
    _routes = (
        (re.compile(r"/api/models"), "_search"),
        (re.compile(r"/api/models/(?P<repo>.+)/revision/(?P<revision>[^/]+)"), "_revision"),
        (re.compile(r"/api/models/(?P<repo>.+)/tree/(?P<revision>[^/]+)"), "_tree"),
        (re.compile(r"/cdn/(?P<repo>.+)/(?P<revision>[0-9a-f]{40})/(?P<path>.+)"), "_cdn"),
        (re.compile(r"/(?P<repo>.+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"), "_resolve"),
    )

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        split = urlsplit(self.path)
        with self.owner.lock:
            self.owner.calls.append((self.command, split.path, headers))
        for pattern, name in self._routes:
            found = pattern.fullmatch(split.path)
            if found is not None:
                with contextlib.suppress(ConnectionError):
                    getattr(self, name)(parse_qs(split.query), *map(unquote, found.groups()))
                return
        self._fail(404, "EntryNotFound")

    do_HEAD = do_GET

    # -- the API -----------------------------------------------------------------------------------------------------

    def _search(self, query: dict[str, list[str]]) -> None:
        if self._mishap(self.owner.api_mishaps):
            return
        wanted = query.get("search", [""])[0].lower()
        hits = sorted(
            (repo for repo in self.owner.repos.values() if wanted in repo.name.lower() and not repo.private),
            key=lambda repo: (-repo.downloads, repo.name),
        )
        limit, start = int(query.get("limit", ["20"])[0]), int(query.get("cursor", ["0"])[0] or 0)
        rows = [
            {
                "id": repo.name,
                "downloads": repo.downloads,
                "likes": 1,
                "gated": "auto" if repo.gated else False,
                "lastModified": "2026-11-01T00:00:00.000Z",
                "pipeline_tag": "text-generation",
            }
            for repo in hits[start : start + limit]
        ]
        more = start + limit < len(hits)
        link = f'<{self.owner.url}/api/models?search={quote(wanted)}&limit={limit}&cursor={start + limit}>; rel="next"'
        self._json(rows, {"Link": link} if more else {})

    def _revision(self, _query: dict[str, list[str]], name: str, revision: str) -> None:
        if self._mishap(self.owner.api_mishaps):
            return
        found = self._find(name, revision)
        if found is not None:
            repo, commit, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            self._json({"id": repo.name, "sha": commit, "gated": "auto" if repo.gated else False, "siblings": siblings})

    def _tree(self, query: dict[str, list[str]], name: str, revision: str) -> None:
        if self._mishap(self.owner.api_mishaps):
            return
        found = self._find(name, revision)
        if found is None:
            return
        repo, commit, files = found
        start = int(query.get("cursor", ["0"])[0])
        paths = sorted(files)
        rows: list[dict[str, Any]] = [{"type": "directory", "oid": "d" * 40, "size": 0, "path": "folder"}]
        for path in paths[start : start + TREE_PAGE]:
            data = files[path]
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
            row: dict[str, Any] = {"type": "file", "oid": blob, "size": len(data), "path": path}
            if path not in repo.plain:
                sha = hashlib.sha256(data).hexdigest()
                row |= {"oid": "e" * 40, "lfs": {"oid": sha, "size": len(data), "pointerSize": 134}}
            rows.append(row)
        link = f"{self.owner.url}/api/models/{name}/tree/{commit}?recursive=true&cursor={start + TREE_PAGE}"
        self._json(rows, {"Link": f'<{link}>; rel="next"'} if start + TREE_PAGE < len(paths) else {})

    # -- files -------------------------------------------------------------------------------------------------------

    def _resolve(self, _query: dict[str, list[str]], name: str, revision: str, path: str) -> None:
        found = self._find(name, revision, files_too=True)
        if found is None:
            return
        repo, commit, files = found
        if path not in files:
            self._fail(404, "EntryNotFound")
            return
        sha = hashlib.sha256(files[path]).hexdigest()
        self.send_response(302)
        self.send_header("Location", f"{self.owner.cdn}/cdn/{repo.name}/{commit}/{quote(path)}")
        self.send_header("x-repo-commit", commit)
        self.send_header("x-linked-etag", f'"{sha}"')
        self.send_header("x-linked-size", str(len(files[path])))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _cdn(self, _query: dict[str, list[str]], name: str, revision: str, path: str) -> None:
        repo = self.owner.repos[name]
        found = repo.find(revision)
        assert found is not None
        data = found[1][path]
        with self.owner.lock:
            mishap = self.owner.mishaps.pop(0) if self.owner.mishaps else {}
        if self._refuse(mishap):
            return
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and not mishap.get("ignore_range"):
            start = int(asked[1])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        if mishap.get("corrupt"):
            data = data[:-1] + bytes([data[-1] ^ 1])
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/octet-stream")
        self.end_headers()
        self._send(name, body, mishap)

    def _send(self, name: str, body: bytes, mishap: dict[str, Any]) -> None:
        end = mishap.get("cut", mishap.get("stall", len(body)))
        piece = self.owner.slow // 50 if self.owner.slow else 64 if self.owner.most is not None else 1 << 16
        for at in range(0, min(end, len(body)), piece):
            part = body[at : min(at + piece, end)]
            self.hold_back(at + len(part))
            self._await_leave(len(part))
            self.wfile.write(part)
            with self.owner.lock:
                self.owner.served[name] = self.owner.served.get(name, 0) + len(part)
            if self.owner.slow:
                time.sleep(0.02)
        if "stall" in mishap:
            time.sleep(mishap.get("seconds", 1.0))
        if end < len(body):
            self.wfile.flush()
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def hold_back(self, size: int) -> None:
        """Wait a moment if so many bytes are more than what may go out; a taker who has left gets no more."""
        if self.owner.most is not None and size > self.owner.most:
            self.wfile.flush()
            if select.select([self.connection], [], [], 0.05)[0]:
                raise ConnectionAbortedError

    def _await_leave(self, size: int) -> None:
        """Raises ConnectionResetError once the client is gone: what nobody gets isn't served."""
        while True:
            if select.select([self.connection], [], [], 0)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
            with self.owner.lock:
                most = self.owner.most_in_all
                if most is None or sum(self.owner.served.values()) + size <= most:
                    return
            time.sleep(0.005)

    # -- what both share ---------------------------------------------------------------------------------------------

    def _find(self, name: str, revision: str, *, files_too: bool = False) -> tuple[Repo, str, dict[str, bytes]] | None:
        repo = self.owner.repos.get(name)
        known = self.headers.get("Authorization") == f"Bearer {self.owner.token}"
        if repo is None or (repo.private and not known):
            self._fail(404 if known else 401, "RepoNotFound")
            return None
        if repo.gated and files_too and not known:
            self._fail(403 if self.headers.get("Authorization") else 401, "GatedRepo")
            return None
        found = repo.find(revision)
        if found is None:
            self._fail(404, "RevisionNotFound")
            return None
        return repo, *found

    def _mishap(self, mishaps: list[dict[str, Any]]) -> bool:
        with self.owner.lock:
            mishap = mishaps.pop(0) if mishaps else {}
        return self._refuse(mishap)

    def _refuse(self, mishap: dict[str, Any]) -> bool:
        if "endless" in mishap:
            self._say_endlessly(mishap["endless"])
        elif "to" in mishap:
            self.answer(302, b"", {"Location": mishap["to"]})
        elif "json" in mishap:
            self._json(mishap["json"], mishap.get("headers"))
        elif "html" in mishap:
            self.answer(200, mishap["html"].encode(), {"Content-Type": mishap.get("type", "text/html; charset=utf-8")})
        elif "status" in mishap:
            self.answer(mishap["status"], b"no", mishap.get("headers", {}))
        else:
            return False
        return True

    def _say_endlessly(self, piece: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.close_connection = True
        while True:
            self.wfile.write(piece * 65536)

    def _fail(self, status: int, code: str) -> None:
        self.answer(status, b'{"error":"no"}', {"X-Error-Code": code, "Content-Type": "application/json"})

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})
