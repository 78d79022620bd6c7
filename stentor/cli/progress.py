"""Fetching a model with a progress bar on stderr."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stentor.core.errors import StentorError
from stentor.core.lazy import load

if TYPE_CHECKING:
    from stentor.settings import Settings


def fetch_model(settings: "Settings", source: str, name: str) -> Path:
    """The file of a source, fetched if it is not there. Raises FetchError or SourceError; Ctrl-C leaves nothing."""
    _make_private(settings.data_dir)
    sources = load("stentor.runtime.sources").Sources(settings.model_cache, settings.environ)
    present: Path | None = sources.find(source)
    if present is not None or source.startswith("file:"):
        return asyncio.run(sources.fetch(source))  # type: ignore[no-any-return]
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


def _fetch_with_bar(sources, source: str, name: str) -> Path:  # type: ignore[no-untyped-def]
    console = load("rich.console").Console(stderr=True)
    if not console.is_terminal:
        click.echo(f"stentor: fetching {name} ({source})", err=True)
        return asyncio.run(sources.fetch(source))  # type: ignore[no-any-return]
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

        return asyncio.run(sources.fetch(source, tell))  # type: ignore[no-any-return]
