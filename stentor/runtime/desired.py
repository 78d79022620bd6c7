"""Which models operators want to run on this machine, in the order in which they asked, over restarts of the server.

A file beside the list of engines, not a table: it is a fact about one machine, and several may share a database.
"""

import asyncio
from pathlib import Path

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.core.files import write_whole
from stentor.core.ids import ModelId


class DesiredModel(msgspec.Struct, frozen=True):
    """A model that shall run with at least ``instances`` instances."""

    model: ModelId
    instances: int = 1


class Desired:
    """The file ``run/desired.json``; one server owns it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._saving = asyncio.Lock()
        try:
            entries = msgspec.json.decode(path.read_bytes(), type=list[DesiredModel])
        except (OSError, *UNREADABLE):
            # A lost list must not keep the server down: models come up on demand.
            entries = []
        self._models: dict[ModelId, DesiredModel] = {entry.model: entry for entry in entries}

    def list_models(self) -> list[DesiredModel]:
        """Everything that shall run, in order."""
        return list(self._models.values())

    async def put(self, model: ModelId, instances: int) -> None:
        """Want a model; the file is safe on disk on return. Raises OSError."""
        entry = DesiredModel(model, instances)
        if self._models.get(model) != entry:
            self._models[model] = entry
            await self._save()

    async def drop(self, model: ModelId) -> None:
        """Want a model no more. Raises OSError."""
        if self._models.pop(model, None) is not None:
            await self._save()

    async def _save(self) -> None:
        # In a thread, as disks take their time; one at a time, and each writes what is wanted by then.
        async with self._saving:
            await asyncio.to_thread(self._write, msgspec.json.format(msgspec.json.encode(self.list_models())))

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self._path, data)
