"""The operations on models and downloads, as JSON rows."""

import asyncio
from typing import Any

import msgspec

from stentor.control.management import Management
from stentor.control.models.book import OPERATORS_OWN, ModelBook, make_spec
from stentor.control.models.downloads import Download, Downloads
from stentor.control.models.remote import RemoteModels
from stentor.control.reading import Operation, Row, actor_of, number_of, page_of, read_body, text_of
from stentor.core.errors import Refused, StentorError
from stentor.core.ids import ModelId
from stentor.core.operator import Task
from stentor.runtime.folders import ModelFolders
from stentor.runtime.offers import OFFERS, fill_in
from stentor.runtime.origins import FileSource, HubSource, SourceError, id_from_source, parse_source
from stentor.runtime.registered import write_spec
from stentor.runtime.sources import Sources
from stentor.runtime.spec import ModelSpec

SEARCH_MAX = 100
WAIT_MAX_S = 30
_HIDDEN = OPERATORS_OWN | {"id"}


class _Fetch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to download: a source, or a repository and a file of it."""

    source: str = ""
    repo_id: str = ""
    filename: str = ""
    revision: str = ""
    quant: str = ""


class ModelOperations:
    """Models: what there is here and on the hub, and which of them are served."""

    def __init__(
        self,
        management: Management,
        book: ModelBook,
        downloads: Downloads,
        sources: Sources,
        folders: ModelFolders,
        remote: RemoteModels,
    ) -> None:
        self._management = management
        self._remote = remote
        self._book = book
        self._downloads = downloads
        self._sources = sources
        self._folders = folders

    def table(self) -> dict[str, Operation]:
        """The operations by name."""
        return {
            "search_models": self.search,
            "list_local_models": self.list_local,
            "register_model": self.register,
            "get_model_definition": self.get_definition,
            "change_model": self.change,
            "delete_model": self.delete,
            "update_model": self.update,
            "download_model": self.download,
            "list_downloads": self.list_downloads,
            "get_download_state": self.get_download,
            "cancel_download": self.cancel_download,
            "retry_download": self.retry_download,
        }

    # -- the catalogue ---------------------------------------------------------------------------------------------

    async def register(self, task: Task) -> Row:
        """A new model, from a source or from a file in the model folders."""
        fields = fill_in(_read_object(task.body))
        if "remote" in fields:
            return await self._register_remote(task, fields)
        path, mmproj = fields.pop("path", None), fields.pop("mmproj", None)
        if (path is None) == (fields.get("source") is None):
            raise Refused("invalid_request", "Name either a source or a path in the model folders.", param="source")
        if path is not None:
            fields["source"] = f"file:{await self._resolve(path, 'path')}"
        else:
            _check_source(fields["source"], task)
        if mmproj is not None:
            fields["mmproj"] = str(await self._resolve(mmproj, "mmproj"))
        fields.setdefault("id", id_from_source(fields["source"]))
        return self._describe(await self._book.register(actor_of(task), make_spec(fields)))

    async def _register_remote(self, task: Task, fields: dict[str, Any]) -> Row:
        remote = self._remote.read(fields)
        spec = make_spec(fields)
        if remote is not None:
            await self._remote.set_price(actor_of(task), spec.id, remote.price)
        return self._describe(await self._book.register(actor_of(task), spec))

    async def get_definition(self, task: Task) -> Row:
        """How a model is defined, and where."""
        return self._describe(self._book.get(task.params["id"]))

    async def change(self, task: Task) -> Row:
        """Change a registered model's fields; null sets one back."""
        fields = dict(_read_object(task.body))
        if "id" in fields:
            raise Refused("invalid_request", "A model's id can't change; give it an alias.", param="id")
        if fields.get("source") is not None:
            _check_source(fields["source"], task)
        if "path" in fields:
            fields["source"] = f"file:{await self._resolve(fields.pop('path'), 'path')}"
        if fields.get("mmproj") is not None:
            fields["mmproj"] = str(await self._resolve(fields["mmproj"], "mmproj"))
        model = ModelId(self._book.get(task.params["id"]).id)
        remote = self._remote.read(fields)
        if remote is not None and self._book.is_registered(model):
            await self._remote.set_price(actor_of(task), model, remote.price)
        return self._describe(await self._book.change(actor_of(task), model, fields))

    async def delete(self, task: Task) -> Row:
        """Take a registered model out of the catalogue; with ``files=true`` what was fetched for it goes, too."""
        with_files = (text_of(task.query, "files") or "false").lower() in ("1", "true", "yes")
        spec = await self._book.remove(actor_of(task), ModelId(self._book.get(task.params["id"]).id))
        freed = 0
        if with_files and spec.source and spec.source not in self._book.sources():
            freed = await asyncio.to_thread(self._sources.remove, spec.source)
        return {**self._describe(spec), "freed_bytes": freed}

    async def update(self, task: Task) -> Row:
        """Fetch what a model's source means now beside what is there; then what runs of it comes back with that."""
        spec = self._book.get(task.params["id"])
        source = _find_hub_source(spec.source)
        if source is None:
            raise Refused("invalid_request", f"'{spec.id}' isn't from the hub, so there is nothing newer to fetch.")
        before = self._sources.snapshots.find_record(source)

        async def swap() -> None:
            now = self._sources.snapshots.find_record(source)
            if before is None or now is None or before.commit == now.commit:
                return
            for model in self._book.sources().get(spec.source, []):
                await self._book.renew(model)
            await asyncio.to_thread(self._sources.snapshots.clean_old, before)

        await self._management.record(actor_of(task), "model_update", ("model", spec.id), {"source": spec.source})
        return _describe_job(self._downloads.start(spec.source, anew=True, then=swap))

    # -- what there is ---------------------------------------------------------------------------------------------

    async def search(self, task: Task) -> Row:
        """Repositories with GGUF files on the hub."""
        limit = number_of(task.query, "limit") or 20
        if not 1 <= limit <= SEARCH_MAX:
            raise Refused("invalid_request", f"'limit' is {limit}; it must be 1 to {SEARCH_MAX}.", param="limit")
        query, cursor = text_of(task.query, "q") or "", text_of(task.query, "after") or ""
        try:
            page = await self._sources.hub.search(query[:200], limit, cursor[:2000])
        except StentorError as error:
            raise Refused("hub_unavailable", str(error)) from None
        return page_of([msgspec.to_builtins(repo) for repo in page.repos], page.cursor or None)

    async def list_local(self, task: Task) -> Row:
        """Model files in the model folders, and which models of the catalogue they serve."""
        rows, served = await asyncio.to_thread(lambda: (self._folders.list_models(), self._find_served()))
        return page_of(
            [{**msgspec.to_builtins(row), "models": served.get(f"{row.folder}/{row.path}", [])} for row in rows], None
        )

    def _find_served(self) -> dict[str, list[ModelId]]:
        found: dict[str, list[ModelId]] = {}
        for source, models in self._book.sources().items():
            path = self._sources.find(source) if source else None
            if path is not None:
                found.setdefault(str(path), []).extend(models)
        return found

    # -- downloads -------------------------------------------------------------------------------------------------

    async def download(self, task: Task) -> Row:
        """Begin a download, or find the one that is under way."""
        ask = read_body(task.body, _Fetch)
        if bool(ask.source) == bool(ask.repo_id):
            raise Refused("invalid_request", "Name either a source or a repo_id.", param="source")
        offer = OFFERS.get(ask.source)
        source = offer.source if offer is not None else ask.source
        source = source or str(HubSource(ask.repo_id, ask.revision, ask.quant, ask.filename))
        _check_source(source, task)
        await self._management.record(actor_of(task), "model_download", ("source", source), {})
        return _describe_job(self._downloads.start(source))

    async def list_downloads(self, task: Task) -> Row:
        """All downloads of this server, newest first."""
        return page_of([_describe_job(job) for job in self._downloads.list_all()], None)

    async def get_download(self, task: Task) -> Row:
        """One download; with ``wait_s`` as soon as it is another than ``after``."""
        seen, wait_s = number_of(task.query, "after"), number_of(task.query, "wait_s") or 0
        if not 0 <= wait_s <= WAIT_MAX_S:
            raise Refused("invalid_request", f"'wait_s' is {wait_s}; use 0 to {WAIT_MAX_S}.", param="wait_s")
        return _describe_job(await self._downloads.wait(task.params["id"], -1 if seen is None else seen, wait_s))

    async def cancel_download(self, task: Task) -> Row:
        """End a download; what came is kept."""
        job = await self._downloads.cancel(task.params["id"])
        await self._management.record(actor_of(task), "download_cancel", ("source", job.source), {})
        return _describe_job(job)

    async def retry_download(self, task: Task) -> Row:
        """Go on with a download that ended without success."""
        job = self._downloads.retry(task.params["id"])
        await self._management.record(actor_of(task), "download_retry", ("source", job.source), {})
        return _describe_job(job)

    # -- inside ----------------------------------------------------------------------------------------------------

    async def _resolve(self, path: Any, param: str) -> str:
        if not isinstance(path, str):
            raise Refused("invalid_request", f"'{param}' must be a text.", param=param)
        return str(await asyncio.to_thread(self._folders.resolve, path, param))

    def _describe(self, spec: ModelSpec) -> Row:
        registered = self._book.is_registered(ModelId(spec.id))
        shown = {name: value for name, value in write_spec(spec).items() if name not in _HIDDEN}
        return {"id": spec.id, "defined_in": "registered" if registered else "settings", "definition": shown}


def _describe_job(job: Download) -> Row:
    row: Row = msgspec.to_builtins(job)
    return row


def _read_object(body: Any) -> dict[str, Any]:
    return read_body(body, dict[str, Any])


def _check_source(source: Any, task: Task) -> None:
    """Only the operator, on the server's own socket, names files by ``file:``. Raises Refused."""
    if not isinstance(source, str):
        raise Refused("invalid_request", "'source' must be a text.", param="source")
    try:
        parsed = parse_source(source)
    except SourceError as error:
        raise Refused("invalid_request", str(error), param="source") from None
    if isinstance(parsed, FileSource) and task.origin != "cli":
        raise Refused(
            "invalid_request",
            "file: sources are the operator's; name a file of the model folders by its path.",
            param="source",
        )


def _find_hub_source(text: str) -> HubSource | None:
    try:
        parsed = parse_source(text)
    except SourceError:
        return None
    return parsed if isinstance(parsed, HubSource) else None
