"""Which models there are, and which one a name means."""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.spec import (
    InvalidModel,
    Learned,
    ModelSpec,
    ServedModel,
    describe_served,
    id_from_name,
    validate_spec,
)

AUTOMATIC_NAMES = frozenset({"", "auto", "default"})
_NEAREST = 3
# As other servers write names: owner, model and tag. Nothing else is taken for an id.
_FOREIGN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@ +-]{0,254}[A-Za-z0-9]")


class Catalogue:
    """The models of one server, checked as a whole.

    Raises InvalidModel when a definition can't work or two models share a name. Whether a file is there or sound is
    not looked at: one broken model must not keep the others from being served.
    """

    def __init__(self, specs: Iterable[ModelSpec], default_ctx: int = 8192, *, lenient: bool = False) -> None:
        """``lenient``: a name that no model has means whichever can do what the request needs."""
        self.lenient = lenient
        self._default_ctx = default_ctx
        self.specs: dict[ModelId, ModelSpec] = {}
        self._served: dict[str, ServedModel] = {}
        self._names: dict[str, ModelId] = {}
        self._learned: dict[ModelId, Learned] = {}
        for spec in specs:
            validate_spec(spec)
            self._add(spec, default_ctx)

    def _add(self, spec: ModelSpec, default_ctx: int) -> None:
        model = ModelId(spec.id)
        for name in (spec.id, *spec.aliases):
            if name in self._names:
                raise InvalidModel(
                    f"Model '{spec.id}': the name '{name}' is already taken by '{self._names[name]}'. Give one of them "
                    "another id or alias."
                )
            self._names[name] = model
        self.specs[model] = spec
        self._served[spec.id] = describe_served(spec, spec.ctx or default_ctx)

    def change(self, put: Iterable[ModelSpec], drop: Iterable[ModelId] = ()) -> None:
        """Take in new and changed models and let go of others, in one step.

        Raises InvalidModel, and then nothing has changed. What was learned of models that stay as they are is kept.
        """
        gone, fresh = frozenset(drop), {ModelId(spec.id): spec for spec in put}
        kept = {model: spec for model, spec in self.specs.items() if model not in gone}
        after = Catalogue({**kept, **fresh}.values(), self._default_ctx)
        same = {model for model, spec in after.specs.items() if self.specs.get(model) == spec}
        after._served.update({model: self._served[model] for model in same})
        self._learned = {model: learned for model, learned in self._learned.items() if model in same}
        self.specs, self._served, self._names = after.specs, after._served, after._names

    def served(self, model: ModelId) -> ServedModel:
        """The request's view of a model that is known to exist. Raises KeyError."""
        return self._served[model]

    def correct_context(self, model: ModelId, context_size: int) -> None:
        """Replace the declared context by what the weights or the memory really allow, in tokens per request."""
        if self._served[model].context_size != context_size:
            self._served[model] = describe_served(self.specs[model], context_size, self._learned.get(model))

    def learn(self, model: ModelId, learned: Learned) -> None:
        """Say what a model turned out to be; one that is gone meanwhile is ignored."""
        spec = self.specs.get(model)
        if spec is not None and self._learned.get(model) != learned:
            self._learned[model] = learned
            self._served[model] = describe_served(spec, self._served[model].context_size, learned)

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        """The model that ``name`` means among ``allowed`` ids (empty: all). Raises Refused ``model_not_found``."""
        served = self._served.get(name)
        if served is not None and (not allowed or name in allowed):
            return served
        found = choose_model(name, self._visible(allowed))
        if found is None:
            raise self._unknown(name, allowed)
        return self._served[found]

    def find_able(
        self, name: str, needs: tuple[str, ...], allowed: frozenset[str], cost_of: Callable[[ModelId], int]
    ) -> ServedModel | None:
        """The model of that name; else the local one that can do what is needed, where ``name`` leaves that open.

        See ``Places``.
        """
        named = self._names.get(name)
        if named is not None and (not allowed or named in allowed):
            return self._served[named]
        if name not in AUTOMATIC_NAMES and not self.lenient:
            return None
        visible = self._visible(allowed)
        able = [
            served
            for served in (self._served[model] for model, spec in visible.items() if spec.remote is None)
            if all(served.can(ability) for ability in needs)
        ]
        return choose_able(able, cost_of, lenient=self.lenient)

    def find(self, name: str, allowed: frozenset[str] = frozenset()) -> ServedModel | None:
        """The model that ``name`` means among ``allowed`` ids (empty: all), or None."""
        found = choose_model(name, self._visible(allowed))
        return None if found is None else self._served[found]

    def _visible(self, allowed: frozenset[str]) -> dict[ModelId, ModelSpec]:
        return {model: spec for model, spec in self.specs.items() if not allowed or model in allowed}

    def _unknown(self, name: str, allowed: frozenset[str]) -> Refused:
        visible = self._visible(allowed)
        names = {candidate: model for model, spec in visible.items() for candidate in _names_of(spec)}
        close = difflib.get_close_matches(name[:200], names, n=_NEAREST, cutoff=0.4)
        nearest = list(dict.fromkeys(names[hit] for hit in close)) or sorted(visible)[:_NEAREST]
        if not visible:
            hint = "No model is available to this key."
        elif name in AUTOMATIC_NAMES:
            hint = f"More than one model could answer; name one of: {', '.join(sorted(visible)[:8])}."
        else:
            found = "Nearest" if close else "There is"
            hint = f"{found}: {', '.join(nearest)}. GET /v1/models lists what this key may use."
        return Refused(
            "model_not_found",
            f"The model '{name[:200]}' does not exist or is not available to this key. {hint}",
            param="model",
            details={"nearest": nearest},
        )


def choose_able(able: Sequence[ServedModel], cost_of: Callable[[ModelId], int], *, lenient: bool) -> ServedModel | None:
    """The only one, or the only one that can do no more than was asked for; leniently the cheapest, the first of them.

    A model that could do more (see, hear) is not chosen for those who don't need it, and a dearer one never.
    """
    if not able:
        return None
    fewest = min(len(model.abilities) for model in able)
    plain = [model for model in able if len(model.abilities) == fewest]
    if len(plain) == 1 and (len(able) == 1 or cost_of(plain[0].id) <= min(cost_of(model.id) for model in able)):
        return plain[0]
    return min(able, key=lambda model: cost_of(model.id)) if lenient else None


def choose_model(name: str, specs: Mapping[ModelId, ModelSpec]) -> ModelId | None:
    """Exact id, alias, ``repo:quant``, the single text model for an empty name, then a *unique* substring.

    ``llama3.2:1b`` and ``org/model`` also mean the models whose id or alias has ``-`` where an id can hold no more.
    """
    for names in (lambda spec: (spec.id,), lambda spec: spec.aliases, _repository_names):
        hits = [model for model, spec in specs.items() if name in names(spec)]
        if len(hits) == 1:
            return hits[0]
    if name in AUTOMATIC_NAMES:
        hits = [model for model, spec in specs.items() if spec.kind == "text" and spec.remote is None]
        return hits[0] if len(hits) == 1 else None
    written = id_from_name(name) if _FOREIGN_NAME.fullmatch(name) else name
    hits = [model for model, spec in specs.items() if written in (spec.id, *spec.aliases)]
    if len(hits) == 1:
        return hits[0]
    wanted = name.lower()
    # A remote model has to be meant: nobody's words leave the machine by a guess.
    local = {model: spec for model, spec in specs.items() if spec.remote is None}
    hits = [model for model, spec in local.items() if any(wanted in text.lower() for text in _names_of(spec))]
    return hits[0] if len(hits) == 1 else None


def _names_of(spec: ModelSpec) -> tuple[str, ...]:
    return (spec.id, *spec.aliases, *_repository_names(spec))


def _repository_names(spec: ModelSpec) -> tuple[str, ...]:
    """``hf:org/repo@rev:quant`` is also known as ``org/repo:quant`` and ``repo:quant``."""
    scheme, _, rest = spec.source.partition(":")
    if scheme != "hf" or not rest:
        return ()
    place, _, quant = rest.partition(":")
    repository = place.partition("@")[0]
    tail = f":{quant}" if quant else ""
    return (f"{repository}{tail}", f"{repository.rpartition('/')[2]}{tail}")
