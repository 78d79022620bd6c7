"""The settings file's models, read again when the file changes or SIGHUP comes."""

import asyncio
from pathlib import Path

from stentor.control.models.book import ModelBook
from stentor.control.models.remote import RemoteModels
from stentor.core.errors import StentorError
from stentor.settings import Settings, reload_models
from stentor.telemetry.logs import Log

LOOK_S = 1.0
SETTLE_S = 0.2
_Mark = tuple[int, int, int] | None


class ModelReload:
    """Watches the settings file. What is wrong with a new one is said in the log, and the old models stay."""

    def __init__(self, settings: Settings, book: ModelBook, remote: RemoteModels, log: Log) -> None:
        self._remote = remote
        self._settings = settings
        self._book = book
        self._log = log
        self._asked = asyncio.Event()
        self._mark = _mark(settings.config_file)

    def ask(self) -> None:
        """Read the file again now, changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Look at the file every second, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._asked.wait()
            except TimeoutError:
                if _mark(self._settings.config_file) == self._mark:
                    continue
            self._mark = await self._settled()
            self._asked.clear()  # whoever asked until now gets what is read now
            await self.reload()

    async def _settled(self) -> _Mark:
        """The file's mark once nobody writes any more."""
        seen = _mark(self._settings.config_file)
        while True:
            await asyncio.sleep(SETTLE_S)
            now = _mark(self._settings.config_file)
            if now == seen:
                return now
            seen = now

    async def reload(self) -> None:
        """Take over the file's models, or say why not."""
        file = str(self._settings.config_file)
        try:
            specs = await asyncio.to_thread(reload_models, self._settings)
            put, dropped = await self._book.take_file(specs, self._remote.set_file_prices)
        except StentorError as error:
            self._log.event("models_kept", level="error", file=file, message=f"{error} The models stay as they were.")
            return
        names = ", ".join([*put, *(f"-{model}" for model in dropped)])
        self._log.event("models_reloaded", file=file, count=len(put) + len(dropped), name=names or None)


def _mark(path: Path | None) -> _Mark:
    """What tells one state of the file from another, None where it isn't there."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
