"""Fetching a model with a progress bar on stderr."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stentor.core.errors import StentorError
from stentor.core.lazy import load

if TYPE_CHECKING:
    from stentor.cli.backend import Backend
    from stentor.runtime.sources import Sources
    from stentor.settings import Settings


def fetch_model(settings: "Settings", source: str, name: str, before: Callable[[], None] = lambda: None) -> Path:
    """The file of a source, fetched if it is not there. Raises FetchError or SourceError; Ctrl-C ends it.

    ``before`` is called where something has to be fetched: what would make that in vain is said at once.
    """
    module = load("stentor.runtime.sources")
    sources = module.Sources(settings.model_cache, settings.environ, hub=settings.hub)
    found: Path | None = sources.find(source)
    if source.startswith("file:"):
        return module.check_file(Path(source.removeprefix("file:")))  # type: ignore[no-any-return]
    if found is not None:
        return found
    before()
    _make_private(settings.data_dir)
    return _fetch_with_bar(sources, source, name)


def _make_private(folder: Path) -> None:
    """The data folder, made for its owner alone: a model fetched into it may be the first thing there."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StentorError(
            f"The data folder {folder} can't be made: {error.strerror}. Make it for this user, or name another with "
            "--data-dir."
        ) from None


def _fetch_with_bar(sources: "Sources", source: str, name: str) -> Path:
    with progress_bar(name, source) as tell:
        return asyncio.run(_fetch(sources, source, tell))


@contextlib.contextmanager
def progress_bar(name: str, source: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, to be told of bytes done and in all; where that is no terminal one line and None."""
    console = load("rich.console").Console(stderr=True)
    if not console.is_terminal:
        click.echo(f"stentor: fetching {name} ({source})", err=True)
        yield None
        return
    bars = load("rich.progress")
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"Fetching {name}", total=None)

        def tell(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total or None)

        yield tell


def follow_download(backend: "Backend", job: dict[str, Any], name: str) -> dict[str, Any]:
    """Wait for a download of the server's; returns it when it is done. Raises StentorError; Ctrl-C cancels it."""
    with progress_bar(name, str(job["source"])) as tell:
        try:
            while job["state"] in ("queued", "running"):
                job = backend.wait_download(job["id"], job["version"])
                if tell is not None:
                    tell(job["done_bytes"], job["total_bytes"])
        except KeyboardInterrupt:
            backend.cancel_download(job["id"])
            raise
    if job["state"] != "done":
        raise StentorError(job["problem"] or f"The download was {job['state']}.")
    return job


async def _fetch(sources: "Sources", source: str, tell: Callable[[int, int], None] | None) -> Path:
    """Fetch, and end in good order on SIGTERM as on Ctrl-C: pip is ended and its folder removed."""
    task = asyncio.ensure_future(sources.fetch(source, tell))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise StentorError(
            "Fetching was stopped. Run the command again to go on; what came of a model on the hub is kept."
        ) from None
