"""Models that other nodes of this server run: known here under their own names, asked through the node that has them.

To the scheduler each is a remote model whose places are those of all its owners. Which owner a request goes to is
decided when it gets its place: they take turns, so that a second try goes to another one.
"""

from collections.abc import Iterable, Sequence

import msgspec

from stentor.core.ids import ModelId
from stentor.core.remote import RemoteTerms
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.remote_spec import RemotePrice, RemoteSpec
from stentor.runtime.remotes import Provider, Remotes
from stentor.runtime.spec import Learned, ModelSpec, ModelType

PREFIX = "node:"
PLACES_MAX = 1024
FIRST_BYTE_S = 300.0  # the owner may have to load the model first
SHARED_TYPES: frozenset[ModelType] = frozenset({"text", "vision", "omni", "embedding", "vision-embedding", "reranker"})


class SharedModel(msgspec.Struct, frozen=True):
    """What a node tells the others of one of its models. ``places`` over all its instances."""

    id: str
    aliases: tuple[str, ...]
    type: ModelType
    abilities: tuple[str, ...]
    context_size: int
    media_bound: int
    places: int


class Neighbour(msgspec.Struct, frozen=True):
    """Another node: where it is, what lets this one in there, and its models. ``is_up``: it was heard of lately."""

    node_id: str
    url: str
    token: str
    is_up: bool
    models: tuple[SharedModel, ...]

    def __repr__(self) -> str:
        return f"Neighbour(node_id={self.node_id!r}, url={self.url!r}, is_up={self.is_up})"


class NodeSpec(RemoteSpec, frozen=True, kw_only=True):
    """Where a model of another node is; nobody can write this into a settings file."""

    def terms(self) -> RemoteTerms:
        """See :class:`RemoteSpec`."""
        return RemoteTerms(self.kind, True, self.first_byte_s, self.stall_s, self.cap_field, ours=True)


class Neighbours:
    """The models of other nodes, beside those of this one, which come first where names are the same."""

    def __init__(self, catalogue: Catalogue, remotes: Remotes) -> None:
        self._catalogue = catalogue
        self._remotes = remotes
        self._owners: dict[ModelId, list[Provider]] = {}
        self._known: dict[ModelId, ModelSpec] = {}
        self._turns: dict[ModelId, int] = {}
        remotes.on_taken = self._end_turn

    def find_provider(self, name: str) -> Provider | None:
        """The owner of a model (its name after :data:`PREFIX`) whose turn it is; None while none is up.

        Asking changes nothing: the next one's turn comes once a place was taken.
        """
        model = ModelId(name.removeprefix(PREFIX))
        owners = self._owners.get(model)
        return owners[self._turns.get(model, 0) % len(owners)] if owners else None

    def _end_turn(self, name: str) -> None:
        model = ModelId(name.removeprefix(PREFIX))
        if name.startswith(PREFIX) and model in self._owners:
            self._turns[model] = self._turns.get(model, 0) + 1

    def list_shared(self) -> list[SharedModel]:
        """This machine's own models, as the others are to know them."""
        return [
            SharedModel(
                served.id,
                served.aliases,
                served.type,
                served.abilities,
                served.context_size,
                served.media_bound,
                min(spec.parallel * spec.instances, PLACES_MAX),
            )
            for model, spec in sorted(self._catalogue.specs.items())
            if spec.remote is None and (served := self._catalogue.served(model)).type in SHARED_TYPES
        ]

    def update(self, neighbours: Sequence[Neighbour]) -> None:
        """Take on what the other nodes say now. A model whose owners are all down stays known, and is unavailable."""
        by_model: dict[ModelId, list[tuple[Neighbour, SharedModel]]] = {}
        for neighbour in neighbours:
            for shared in neighbour.models:
                by_model.setdefault(ModelId(shared.id), []).append((neighbour, shared))
        self._owners = {
            model: [Provider("openai", each.url, each.token) for each, _ in owners if each.is_up]
            for model, owners in by_model.items()
        }
        self._turns = {model: turn for model, turn in self._turns.items() if model in self._owners}
        self.give_way(())
        wanted: dict[ModelId, tuple[ModelSpec, Learned]] = {}
        own = [spec for model, spec in self._catalogue.specs.items() if model not in self._known]
        taken = {name for spec in own for name in _names(spec)}
        for model, owners in sorted(by_model.items()):
            if model not in taken:
                spec, learned = _make_spec(owners, taken)
                wanted[model] = (spec, learned)
                taken |= {*_names(spec)}
        self._drop([model for model in self._known if model not in wanted])
        self._put({model: pair for model, pair in wanted.items() if self._known.get(model) != pair[0]})

    def give_way(self, specs: Iterable[ModelSpec]) -> None:
        """Forget what has become one of this machine's own models, or has a name that ``specs`` are to have."""
        names = {name for spec in specs for name in _names(spec)}
        for model, spec in list(self._known.items()):
            if self._catalogue.specs.get(model) is not spec:
                del self._known[model]
            elif names & {*_names(spec)}:
                self._drop([model])

    def _put(self, fresh: dict[ModelId, tuple[ModelSpec, Learned]]) -> None:
        specs = [spec for spec, _ in fresh.values()]
        # Those that change go first: an alias may have moved from one to another.
        self._drop([model for model in fresh if model in self._known])
        self._catalogue.change(specs)
        for model, (spec, learned) in fresh.items():
            self._catalogue.learn(model, learned)
            self._known[model] = spec
        self._remotes.add(specs)

    def _drop(self, models: list[ModelId]) -> None:
        if models:
            self._catalogue.change((), models)
        for model in models:
            self._remotes.remove(model)
            del self._known[model]


def _names(spec: ModelSpec) -> tuple[str, ...]:
    return (spec.id, *spec.aliases)


def _make_spec(owners: list[tuple[Neighbour, SharedModel]], taken: set[str]) -> tuple[ModelSpec, Learned]:
    """One definition of a model with several owners: as the first says, with the least context and all their places."""
    up = [model for neighbour, model in owners if neighbour.is_up] or [model for _, model in owners]
    first = up[0]
    spec = ModelSpec(
        id=first.id,
        engine="remote",
        type=first.type,
        aliases=tuple(alias for alias in first.aliases if alias not in taken and alias != first.id),
        ctx=min(model.context_size for model in up),
        parallel=min(sum(model.places for model in up), PLACES_MAX),
        media_bound=max(model.media_bound for model in up),
        remote=NodeSpec(
            price=RemotePrice(request=0), provider=PREFIX + first.id, first_byte_s=FIRST_BYTE_S, health_s=0
        ),
    )
    return spec, Learned(first.type, first.abilities)
