"""The model hub, asked through a program of its own that dies with this process and can be ended at any moment."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.runtime.downloads import FetchError
from stentor.runtime.quants import RepoFile

_PASSED_ON = frozenset(
    {
        "ALL_PROXY", "HF_HUB_OFFLINE", "HTTPS_PROXY", "HTTP_PROXY", "LANG", "NO_PROXY", "PATH",
        "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "VIRTUAL_ENV",
    }
)  # fmt: skip
_LINE_MAX_BYTES = 1 << 26
_KILL_WAIT_S = 5.0
_TRIES_OF_QUESTIONS = 3
_TAIL_LINES = 20
T = TypeVar("T")


class HubSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the hub. ``endpoint`` None is the hub library's own; ``token`` opens gated and private repositories;
    ``inference_url`` is where it runs models for others; ``allow`` is where it may send us beyond public addresses.

    ``stall_s`` without a byte ends a connection, which is then made again; ``tries`` in a row without progress, with
    growing pauses from ``backoff_first_s``, are the last.
    """

    endpoint: str | None = None
    token: str | None = None
    inference_url: str | None = None
    allow: tuple[str, ...] = ()
    stall_s: float = 30.0
    tries: int = 6
    backoff_first_s: float = 0.5

    def __repr__(self) -> str:
        return f"HubSettings(endpoint={self.endpoint!r})"


class FoundRepo(msgspec.Struct, frozen=True):
    """A repository that a search found. ``updated`` is the hub's own timestamp, ``task`` its word for what it does."""

    repo: str
    downloads: int
    likes: int
    gated: bool
    updated: str
    task: str


class SearchPage(msgspec.Struct, frozen=True):
    """A page of a search; ``cursor`` asks for the next one, empty on the last."""

    repos: tuple[FoundRepo, ...]
    cursor: str


class RepoView(msgspec.Struct, frozen=True):
    """A repository at one commit."""

    commit: str
    gated: bool
    files: tuple[RepoFile, ...]


class Part(msgspec.Struct, frozen=True):
    """A file to fetch into ``part``, where an interrupted run goes on."""

    file: RepoFile
    part: Path


class HubTrouble(FetchError):
    """The hub can't be asked, or refuses; ``kind`` is the program's word for it."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class Hub:
    """Asks the hub. ``home`` is a folder for what the hub's library keeps.

    ``find_token`` is asked for a token each time where the settings have none; it may be set at any time.
    """

    def __init__(self, settings: HubSettings, environ: Mapping[str, str], home: Path) -> None:
        self._settings = settings
        self._environ = choose_environment(settings, environ, home)
        self.find_token: Callable[[], Awaitable[str | None]] | None = None

    async def search(self, query: str, limit: int, cursor: str = "") -> SearchPage:
        """Repositories with GGUF files, most downloaded first. Raises HubTrouble."""
        order = {"task": "search", "query": query, "limit": limit, "cursor": cursor}
        return _convert(await self._run(order, "the hub's search", None), SearchPage)

    async def look(self, repo: str, revision: str) -> RepoView:
        """What a revision (empty: main) of a repository holds now. Raises HubTrouble."""
        return _convert(await self._run({"task": "look", "repo": repo, "revision": revision}, repo, None), RepoView)

    async def fetch(self, repo: str, commit: str, parts: Sequence[Part], tell: Callable[[int, int], None]) -> None:
        """Fetch files into their parts and check their sums; ``tell`` hears a file's number and its bytes so far.

        Raises HubTrouble; a part is left where going on makes sense. A cancelled wait ends the program.
        """
        files = [{**msgspec.to_builtins(each.file), "part": str(each.part)} for each in parts]
        await self._run({"task": "fetch", "repo": repo, "revision": commit, "files": files}, repo, tell)

    async def _run(
        self, order: dict[str, Any], subject: str, tell: Callable[[int, int], None] | None
    ) -> dict[str, Any]:
        settings = self._settings
        # Whoever searches or begins waits in front of a screen; what is under way has time.
        tries = settings.tries if order["task"] == "fetch" else min(settings.tries, _TRIES_OF_QUESTIONS)
        token = settings.token or (await self.find_token() if self.find_token is not None else None) or ""
        order |= {"token": token, "stall_s": settings.stall_s, "tries": tries}
        order |= {"backoff_first_s": settings.backoff_first_s, "allow": settings.allow}
        command = (sys.executable, "-P", "-m", "stentor.engines.exec", str(os.getpid()), "--")
        child = await asyncio.create_subprocess_exec(
            *(*command, sys.executable, "-P", "-m", "stentor.engines.hub"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
            limit=_LINE_MAX_BYTES,
            start_new_session=True,
        )
        assert child.stdin is not None
        try:
            with contextlib.suppress(ConnectionError):
                child.stdin.write(msgspec.json.encode(order) + b"\n")
                await child.stdin.drain()
            answer = await self._follow(child, tell)
        finally:
            await _end(child)
        if answer.get("event") == "result":
            return answer
        raise explain(str(answer.get("kind", "crashed")), str(answer.get("text", "")), subject, bool(token))

    async def _follow(
        self, child: asyncio.subprocess.Process, tell: Callable[[int, int], None] | None
    ) -> dict[str, Any]:
        """Read events to the last one. Silence longer than everything the program may wait for is its death."""
        assert child.stdout is not None
        silence_s = 2 * self._settings.stall_s + 150.0
        tail: list[str] = []
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    line = await child.stdout.readline()
            except (TimeoutError, ValueError):
                return {"kind": "silent", "text": f"no sign of life for {silence_s:.0f} s"}
            if not line:
                return {"kind": "crashed", "text": " ".join(tail[-3:])}
            event = _read_event(line)
            if event is None:
                tail = [*tail, line.decode(errors="replace").strip()][-_TAIL_LINES:]
            elif event["event"] in ("result", "problem"):
                return event
            elif event["event"] == "progress" and tell is not None:
                tell(int(event["file"]), int(event["done"]))


def choose_environment(settings: HubSettings, environ: Mapping[str, str], home: Path) -> dict[str, str]:
    """The whole environment of the program: the machine's network configuration, and the library kept to itself.

    No usage reports, no update checks, no second way of transfer, and no token that lies about in the user's home.
    """
    kept = {name: text for name, text in environ.items() if name.upper() in _PASSED_ON or name.startswith("LC_")}
    ours = {
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONUNBUFFERED": "1",
    }
    return {**kept, **ours, **({"HF_ENDPOINT": settings.endpoint.rstrip("/")} if settings.endpoint else {})}


_TEXTS = {
    "no_repo": "The hub has no repository {subject}, or it is private. Check the name{token}.",
    "no_revision": "{subject} has no such revision. Check what follows the @ in its source.",
    "no_file": "{subject} no longer holds a file that it listed. Look again with `stentor models pull`.",
    "gated": "{subject} is gated: its owner must let you in. Accept its terms on the hub's page of it{token}.",
    "unauthorized": "The hub lets nobody into {subject} without a token, or not with this one ({text}){token}.",
    "forbidden": "The hub refuses {subject} to this token ({text}). Its terms may have to be accepted on its page.",
    "disabled": "The hub has disabled {subject}.",
    "busy": "The hub asks to slow down ({text}). What was fetched is kept; try again in a few minutes.",
    "unavailable": "The hub doesn't answer properly ({text}). What was fetched is kept; try again later.",
    "unreachable": "The hub can't be reached ({subject}): {text}. Check the network, the proxy variables and "
    "HF_ENDPOINT; what was fetched is kept.",
    "stalled": "The hub delivers {subject} too slowly: {text}. What was fetched is kept; try again later.",
    "cut": "The connection to the hub keeps breaking: {text}. What was fetched is kept; try again later.",
    "rubbish": "What answers as the hub isn't the hub: {text}. A proxy or a sign-in page may stand between; check "
    "HF_ENDPOINT.",
    "elsewhere": "The hub sends {subject} to a machine that isn't public: {text}. An administrator can allow it with "
    "EGRESS_ALLOW.",
    "damaged": "{text} of {subject} has another checksum than the hub lists, twice. Nothing of it was kept.",
    "locked": "{text} is being fetched by another process. Wait for it, or end it.",
    "disk": "Writing {subject} failed: {text}. Free some space, or set MODEL_CACHE to a folder on a larger disk.",
    "offline": "The hub isn't asked, as {text}.",
}


def explain(kind: str, text: str, subject: str, has_token: bool) -> HubTrouble:
    """A problem of the program in words: what happened, and what to do."""
    advice = "" if has_token else ", and give the server a token of an account that may read it (HF_TOKEN)"
    form = _TEXTS.get(kind, "The program that asks the hub failed on {subject}: {text}.")
    return HubTrouble(kind, form.format(subject=subject, text=text or kind, token=advice))


def _read_event(line: bytes) -> dict[str, Any] | None:
    if not line.startswith(b'{"event"'):
        return None
    try:
        event = msgspec.json.decode(line)
    except UNREADABLE:
        return None
    return event if isinstance(event, dict) else None


def _convert(answer: dict[str, Any], kind: type[T]) -> T:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise explain("rubbish", str(error), "", False) from None


async def _end(child: asyncio.subprocess.Process) -> None:
    """End the program, whatever it does."""
    if child.stdin is not None:
        child.stdin.close()
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), _KILL_WAIT_S)
