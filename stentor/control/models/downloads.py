"""Downloads as jobs: started, followed, cancelled, begun again; two at a time, the others wait."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, Protocol

import msgspec

from stentor.core.clock import Clock
from stentor.core.errors import UNREADABLE, Refused, StentorError
from stentor.core.files import write_whole
from stentor.core.ids import new_uuid7
from stentor.runtime.downloads import FetchCancelled, FetchError, Progress
from stentor.telemetry.logs import Log

AT_ONCE = 2
KEPT = 200
WAIT_S = 60.0
RETRY_PATH = "/admin/api/downloads/{}/retry"
State = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
_UNFINISHED = ("queued", "running")


class Fetcher(Protocol):
    """Whoever fetches models."""

    def find(self, source: str) -> Path | None:
        """The local file of a source if it is there."""
        ...

    async def fetch(self, source: str, progress: Progress | None = None) -> Path:
        """The local file of a source."""
        ...

    async def update(self, source: str, progress: Progress | None = None) -> Path:
        """The same, asked anew."""
        ...


class Download(msgspec.Struct, kw_only=True):
    """One job. ``done_bytes`` of ``total_bytes`` are there (0: not known yet); ``path`` is set once it is ``done``.

    ``interrupted``: the server ended meanwhile; ``retry`` goes on where it was. ``version`` grows with every change.
    """

    id: str
    source: str
    state: State = "queued"
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_s: int = 0
    path: str | None = None
    problem: str = ""
    created_us: int = 0
    ended_us: int | None = None
    version: int = 0


class Downloads:
    """The jobs of this server. Make it on the loop; end it with :meth:`close`.

    What isn't finished is noted in ``file``, so that the next server lists it as interrupted.
    """

    def __init__(self, fetcher: Fetcher, file: Path, clock: Clock, log: Log) -> None:
        self._fetcher = fetcher
        self._file = file
        self._clock = clock
        self._log = log
        self._jobs: dict[str, Download] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._changed = asyncio.Event()
        self._closed = False
        for job in _read_jobs(file):
            self._jobs[job.id] = msgspec.structs.replace(job, state="interrupted", bytes_per_s=0)

    def start(self, source: str, *, anew: bool = False, then: Callable[[], Awaitable[None]] | None = None) -> Download:
        """Begin to fetch a source; one that is being fetched is not begun twice.

        ``anew``: ask what it means now. ``then`` is done before the job is.
        """
        if self._closed:
            raise Refused("server_shutdown", "The server is shutting down.")
        for job in self._jobs.values():
            if job.source == source and job.state in _UNFINISHED:
                return job
        job = Download(id=new_uuid7(), source=source, created_us=self._clock.now_us())
        self._jobs[job.id] = job
        self._forget_old()
        self._run(job, anew, then)
        return job

    def get(self, job_id: str) -> Download:
        """One job. Raises Refused."""
        job = self._jobs.get(job_id)
        if job is None:
            raise Refused("not_found", f"There is no download '{job_id[:60]}'; GET /admin/api/downloads lists all.")
        return job

    def list_all(self) -> list[Download]:
        """All jobs, newest first."""
        return sorted(self._jobs.values(), key=lambda job: job.id, reverse=True)

    async def cancel(self, job_id: str) -> Download:
        """End a job; what came so far is kept for the next one. Raises Refused where it has ended already."""
        job = self.get(job_id)
        if job.state == "interrupted":
            self._end(job, "cancelled")
            return job
        task = self._tasks.get(job_id)
        if task is None:
            raise Refused("conflict", f"The download is {job.state} already.")
        task.cancel()
        await asyncio.wait([task])
        return job

    def retry(self, job_id: str) -> Download:
        """Begin a job again that failed, was cancelled or interrupted; it goes on with what is there."""
        job = self.get(job_id)
        if job.state in (*_UNFINISHED, "done"):
            raise Refused("conflict", f"The download is {job.state}; only one that ended without success is retried.")
        others = (each for each in self._jobs.values() if each.source == job.source and each.state in _UNFINISHED)
        other = next(others, None)
        if other is not None:
            return other
        job.state, job.problem, job.ended_us = "queued", "", None
        self._run(job, False, None)
        return job

    async def wait(self, job_id: str, seen: int, wait_s: float) -> Download:
        """One job, as soon as its version isn't ``seen``, at most after ``wait_s``. Raises Refused."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while self.get(job_id).version == seen and not self._closed:
                    await self._changed.wait()
        return self.get(job_id)

    def demand(self, source: str) -> Download:
        """The job that fetches what a model needs to start: the one under way, the last one gone on with, or a new."""
        last = next((job for job in self.list_all() if job.source == source), None)
        if last is None or last.state == "done":
            return self.start(source)
        return last if last.state in _UNFINISHED else self.retry(last.id)

    async def finish(self, job: Download) -> Download:
        """Wait until a job has ended, however that was."""
        task = self._tasks.get(job.id)
        if task is not None:
            await asyncio.wait([task])
        return job

    async def close(self) -> None:
        """End all jobs; those that weren't finished are listed as interrupted by the next server."""
        self._closed = True
        self._save()
        self._tell()
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    # -- inside ----------------------------------------------------------------------------------------------------

    def _run(self, job: Download, anew: bool, then: Callable[[], Awaitable[None]] | None) -> None:
        job.version += 1
        task = asyncio.create_task(self._fetch(job, anew, then), name=f"download {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))
        self._save()
        self._tell()

    async def _fetch(self, job: Download, anew: bool, then: Callable[[], Awaitable[None]] | None) -> None:
        fetch = self._fetcher.update if anew else self._fetcher.fetch
        try:
            async with self._places:
                job.state = "running"
                job.path = str(await fetch(job.source, self._listen(job)))
            if then is not None:
                await then()
        except asyncio.CancelledError:
            # Asked for, by an operator or as the server ends: there is nobody left to tell but those who look.
            self._end(job, "interrupted" if self._closed else "cancelled")
        except StentorError as error:
            job.problem = str(error)
            self._end(job, "failed")
        except Exception as error:
            job.problem = "The download failed by a defect of the server; its log has more."
            self._log.event("download_failed", level="error", job=job.id, source=job.source, cause=error)
            self._end(job, "failed")
            raise
        else:
            job.done_bytes = job.total_bytes
            self._end(job, "done")

    def _listen(self, job: Download) -> Progress:
        since_s, before = self._clock.monotonic_s(), -1

        def hear(done: int, total: int) -> None:
            nonlocal since_s, before
            now_s = self._clock.monotonic_s()
            if before < 0:
                since_s, before = now_s, done
            elif now_s - since_s >= 1.0:
                job.bytes_per_s = int(max(0, done - before) / (now_s - since_s))
                since_s, before = now_s, done
            job.done_bytes, job.total_bytes = done, total
            job.version += 1
            self._tell()

        return hear

    def _end(self, job: Download, state: State) -> None:
        job.state, job.ended_us, job.bytes_per_s = state, self._clock.now_us(), 0
        job.version += 1
        self._log.event("download_ended", job=job.id, source=job.source, state=state, message=job.problem or None)
        if not self._closed:
            self._save()
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _forget_old(self) -> None:
        ended = sorted(job.id for job in self._jobs.values() if job.state not in _UNFINISHED)
        for job_id in ended[: max(0, len(self._jobs) - KEPT)]:
            del self._jobs[job_id]

    def _save(self) -> None:
        unfinished = [job for job in self._jobs.values() if job.state in (*_UNFINISHED, "interrupted")]
        # A convenience of the next server; a full disk is told of by the download itself.
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._file, msgspec.json.encode(unfinished))


class DemandedModels:
    """Where the scheduler gets models from: what isn't there becomes a download like those that operators begin.

    It goes on when nobody waits for it any more, until it ends or is cancelled.
    """

    def __init__(self, sources: Fetcher, downloads: Downloads) -> None:
        self._sources = sources
        self._downloads = downloads

    def find(self, source: str) -> Path | None:
        """The file of ``source`` if it is there and unchanged. Raises StentorError."""
        return self._sources.find(source)

    async def fetch(self, source: str, progress: Progress | None = None) -> Path:
        """The file of ``source``, after its download where it isn't there. Raises StentorError.

        FetchCancelled, where somebody ended that.
        """
        if source.startswith("file:") or self.find(source) is not None:
            return await self._sources.fetch(source)
        job = self._downloads.demand(source)
        while job.state in _UNFINISHED:
            if progress is not None:
                progress(job.done_bytes, job.total_bytes)
            job = await self._downloads.wait(job.id, job.version, WAIT_S)
        if job.state == "done" and job.path is not None:
            return Path(job.path)
        if job.state == "failed":
            raise FetchError(job.problem)
        raise FetchCancelled(f"The download of {source} was {job.state}; POST {RETRY_PATH.format(job.id)} goes on.")


def _read_jobs(file: Path) -> list[Download]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Download])
    except (OSError, *UNREADABLE):
        return []
