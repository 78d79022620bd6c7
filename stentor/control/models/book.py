"""The catalogue as it is changed: models of the settings file and registered ones, one change at a time.

The store comes first, then the scheduler: what was answered as done survives a restart. A model of the settings file
can't be changed here, and a registered one of the same name waits until the file lets go of it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
from sqlalchemy import Connection

from stentor.audit.log import Actor, record_change
from stentor.core.clock import Clock
from stentor.core.errors import Refused
from stentor.core.files import write_whole
from stentor.core.ids import ModelId
from stentor.core.scheduler import InstanceCard
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.origins import HubSource, SourceError, parse_source
from stentor.runtime.registered import delete_registered, list_registered, put_registered, write_spec
from stentor.runtime.spec import InvalidModel, ModelSpec, explain_invalid, read_spec
from stentor.store.database import Database

OPERATORS_OWN = frozenset({"arguments", "binary", "chat_template", "command", "env", "health_path"})
"""Fields of a model that only the settings file may hold: they decide what program runs, and how."""

_UP = ("starting", "ready", "draining", "stopping")


class ModelKeeper(Protocol):
    """Whoever runs the models."""

    async def change_models(
        self, put: Sequence[ModelSpec], drop: Sequence[ModelId] = (), *, anew: bool = False
    ) -> None:
        """Take in new and changed models and let go of others."""
        ...

    async def list_instances(self) -> list[InstanceCard]:
        """All engine processes."""
        ...


class ModelBook:
    """Owns the catalogue's definitions. Make it with :meth:`open`."""

    def __init__(
        self,
        database: Database,
        keeper: ModelKeeper,
        from_file: Sequence[ModelSpec],
        registered: dict[ModelId, ModelSpec],
        config_dir: Path,
        clock: Clock,
    ) -> None:
        self._database = database
        self._keeper = keeper
        self._file = {ModelId(spec.id): spec for spec in from_file}
        self._registered = registered
        self._config_dir = config_dir
        self._clock = clock
        self._changing = asyncio.Lock()

    def find(self, model: ModelId) -> ModelSpec | None:
        """A model's definition as it is served now."""
        return self._file.get(model) or self._registered.get(model)

    def get(self, name: str) -> ModelSpec:
        """A model by its exact id or alias: what is changed is never guessed. Raises Refused."""
        specs = {**self._registered, **self._file}
        found = specs.get(ModelId(name)) or next((spec for spec in specs.values() if name in spec.aliases), None)
        if found is None:
            raise Refused("model_not_found", f"There is no model '{name[:128]}'; `stentor models list` shows all.")
        return found

    def is_registered(self, model: ModelId) -> bool:
        """Whether it may be changed here."""
        return model in self._registered and model not in self._file

    def sources(self) -> dict[str, list[ModelId]]:
        """The models by source."""
        found: dict[str, list[ModelId]] = {}
        for model, spec in {**self._registered, **self._file}.items():
            found.setdefault(spec.source, []).append(model)
        return found

    async def register(self, actor: Actor, spec: ModelSpec) -> ModelSpec:
        """Add a model. Raises Refused where the name is taken or the definition can't work."""
        async with self._changing:
            if self.find(ModelId(spec.id)) is not None or ModelId(spec.id) in self._registered:
                raise Refused("conflict", f"There is a model '{spec.id}' already; choose another id.", param="id")
            self._check({**self._registered, ModelId(spec.id): spec}, self._file)

            def work(connection: Connection) -> None:
                now_us = self._clock.now_us()
                put_registered(connection, spec, self._database.node_id, now_us, fresh=True)
                subject = ("model", spec.id)
                record_change(connection, now_us, actor, "model_register", subject, after=write_spec(spec))

            await self._database.write(work)
            self._registered[ModelId(spec.id)] = spec
            await self._keeper.change_models([spec])
            await asyncio.to_thread(self._write_config, spec)
            return spec

    async def change(self, actor: Actor, model: ModelId, fields: Mapping[str, Any]) -> ModelSpec:
        """Change a registered model; null sets a field back. What runs of it drains and comes back changed."""
        async with self._changing:
            old = self._get_registered(model)
            plain = {name: value for name, value in {**write_spec(old), **fields}.items() if value is not None}
            spec = make_spec({**plain, "id": old.id})
            if spec == old:
                return old
            self._check({**self._registered, model: spec}, self._file)

            def work(connection: Connection) -> None:
                now_us = self._clock.now_us()
                put_registered(connection, spec, self._database.node_id, now_us, fresh=False)
                before, after = write_spec(old), write_spec(spec)
                record_change(connection, now_us, actor, "model_change", ("model", model), before=before, after=after)

            await self._database.write(work)
            self._registered[model] = spec
            await self._keeper.change_models([spec])
            await asyncio.to_thread(self._write_config, spec)
            return spec

    async def remove(self, actor: Actor, model: ModelId) -> ModelSpec:
        """Take a registered model that doesn't run out of the catalogue. Raises Refused."""
        async with self._changing:
            spec = self._get_registered(model)
            running = [card for card in await self._keeper.list_instances() if card.model == model]
            if any(card.state in _UP for card in running):
                raise Refused("conflict", f"The model '{model}' is running; stop it first.")

            def work(connection: Connection) -> None:
                now_us = self._clock.now_us()
                delete_registered(connection, model, self._database.node_id)
                record_change(connection, now_us, actor, "model_remove", ("model", model), before=write_spec(spec))

            await self._database.write(work)
            del self._registered[model]
            await self._keeper.change_models([], [model])
            await asyncio.to_thread(self._config_path(spec).unlink, missing_ok=True)
            return spec

    async def renew(self, model: ModelId) -> None:
        """Have what runs of a model drain and come back, as its files are others now."""
        async with self._changing:
            spec = self.find(model)
            if spec is not None:
                await self._keeper.change_models([spec], anew=True)

    async def take_file(
        self, specs: Sequence[ModelSpec], before_put: Callable[[Sequence[ModelSpec]], Awaitable[None]]
    ) -> tuple[list[ModelId], list[ModelId]]:
        """Let the settings file's models be these from now on; returns those put and those dropped.

        ``before_put`` does, once they are known to be sound, what must be done before any of them is served. Raises
        InvalidModel, and then everything stays as it was.
        """
        async with self._changing:
            fresh = {ModelId(spec.id): spec for spec in specs}
            if len(fresh) != len(specs):
                names = [spec.id for spec in specs]
                raise InvalidModel(f"Two models have the id '{next(name for name in names if names.count(name) > 1)}'.")
            Catalogue({**self._registered, **fresh}.values())
            await before_put(specs)
            before, after = {**self._registered, **self._file}, {**self._registered, **fresh}
            put = [spec for model, spec in after.items() if before.get(model) != spec]
            drop = [model for model in before if model not in after]
            self._file = fresh
            if put or drop:
                await self._keeper.change_models(put, drop)
            return [ModelId(spec.id) for spec in put], drop

    async def follow(self, name: str) -> None:
        """Take on what another node changed of a registered model. Raises StoreUnavailable.

        One that can't be served beside this node's own models is left as it was.
        """
        model = ModelId(name)
        async with self._changing:
            found, _ = await self._database.read(lambda connection: list_registered(connection, self._database.node_id))
            spec = found.get(model)
            if spec == self._registered.get(model):
                return
            if spec is None:
                del self._registered[model]
            else:
                self._check({**self._registered, model: spec}, self._file)
                self._registered[model] = spec
            if model not in self._file:
                await self._keeper.change_models([] if spec is None else [spec], [model] if spec is None else [])

    # -- inside ----------------------------------------------------------------------------------------------------

    def _get_registered(self, model: ModelId) -> ModelSpec:
        if model in self._file:
            raise Refused("conflict", f"The model '{model}' stands in the settings; change it there.")
        spec = self._registered.get(model)
        if spec is None:
            raise Refused("model_not_found", f"There is no model '{model[:128]}'; `stentor models list` shows all.")
        return spec

    def _check(self, registered: Mapping[ModelId, ModelSpec], from_file: Mapping[ModelId, ModelSpec]) -> None:
        try:
            Catalogue({**registered, **from_file}.values())
        except InvalidModel as error:
            raise Refused("conflict", str(error)) from None

    def _config_path(self, spec: ModelSpec) -> Path:
        return self._config_dir / f"{spec.id}.json"

    def _write_config(self, spec: ModelSpec) -> None:
        # For other programs to read; what counts is the store, so a full disk is no reason to refuse the change.
        with contextlib.suppress(OSError):
            self._config_dir.mkdir(parents=True, exist_ok=True)
            write_whole(
                self._config_path(spec), msgspec.json.format(msgspec.json.encode(describe_config(spec))) + b"\n"
            )


async def open_registered(
    database: Database, from_file: Sequence[ModelSpec]
) -> tuple[dict[ModelId, ModelSpec], list[str]]:
    """The registered models that can be served beside those of the settings file, and why others can't."""
    registered, problems = await database.read(lambda connection: list_registered(connection, database.node_id))
    served: dict[ModelId, ModelSpec] = {}
    for model, spec in registered.items():
        try:
            Catalogue([*from_file, *served.values(), *([spec] if all(model != each.id for each in from_file) else [])])
            served[model] = spec
        except InvalidModel as error:
            problems.append(f"The registered model '{model}' is left out: {error}")
    return served, problems


def make_spec(fields: Mapping[str, Any]) -> ModelSpec:
    """A definition as an API caller says it. Raises Refused."""
    known = set(ModelSpec.__struct_fields__) - OPERATORS_OWN
    for name in fields:
        if name in OPERATORS_OWN:
            raise Refused("invalid_request", f"'{name}' can only be set in the settings file.", param=name)
        if name not in known:
            raise Refused("invalid_request", f"'{name[:60]}' is no field of a model.", param=name[:60])
    remote = fields.get("remote")
    if isinstance(remote, dict) and remote.get("trusted"):
        # It would lead requests past the guard that keeps them from this machine's own network.
        raise Refused("invalid_request", "Only the settings file makes an address trusted.", param="remote")
    if fields.get("engine") == "command":
        raise Refused("invalid_request", "An engine of your own can only be set in the settings file.", param="engine")
    try:
        return read_spec(dict(fields))
    except (msgspec.ValidationError, InvalidModel) as error:
        problem, path = explain_invalid(error)
        field = f"{path}: " if path else ""
        raise Refused("invalid_request", f"The model can't be used: {field}{problem.rstrip('.')}.") from None


def describe_config(spec: ModelSpec) -> dict[str, Any]:
    """The definition in the shape of ``assets/config/*.json``."""
    row: dict[str, Any] = {"model_repo": "", "model_name": spec.id, "model_type": spec.kind}
    try:
        source = parse_source(spec.source)
    except SourceError:
        return row
    if isinstance(source, HubSource):
        return {**row, "model_repo": source.repo, "model_name": source.filename or source.quant or spec.id}
    return {**row, "model_path": spec.source.removeprefix("file:")}
