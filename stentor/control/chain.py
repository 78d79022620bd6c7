"""Which model of a chain answers (the one asked for, then its fallbacks), and which of them is the dearest."""

from typing import NamedTuple

from stentor.accounting.allowance import Demand
from stentor.accounting.price import Bounds, Price, price_bounds
from stentor.accounting.prices import PriceList
from stentor.control.places import Places
from stentor.core.books import Open
from stentor.core.errors import Refused
from stentor.runtime.spec import ServedModel


class Member(NamedTuple):
    """The model that is to answer, at ``step`` of ``steps``; ``rest`` are those that may follow."""

    model: ServedModel
    step: int
    steps: int
    rest: tuple[ServedModel, ...]


def choose_member(
    first: ServedModel, ask: Open, places: Places, prices: PriceList, allowed: frozenset[str], now_us: int
) -> Member:
    """The first model from ``ask.step`` on that can answer and is worth asking, else the first that can.

    A fallback that this key may not use, that lacks an ability or has no price is passed over. Raises Refused.
    """
    chain = [first, *(_find(name, places, allowed) for name in first.fallbacks)]
    usable = [
        (step, model)
        for step, model in enumerate(chain)
        if step >= ask.step and model is not None and _may_answer(model, step, ask, prices, now_us)
    ]
    if not usable:
        raise Refused("model_unavailable", f"No model that stands in for '{first.id}' could answer.", retry_after_s=5.0)
    at = next((index for index, (_, model) in enumerate(usable) if places.is_available(model.id)), 0)
    step, model = usable[at]
    return Member(model, step, len(chain), tuple(each for _, each in usable[at + 1 :]))


def _find(name: str, places: Places, allowed: frozenset[str]) -> ServedModel | None:
    try:
        return places.resolve(name, allowed)
    except Refused:
        return None


def _may_answer(model: ServedModel, step: int, ask: Open, prices: PriceList, now_us: int) -> bool:
    if step == 0:
        return True  # what it lacks is told to whoever named it
    priced = model.remote is None or prices.find_own_price(model.id, now_us) is not None
    return priced and all(model.can(ability) for ability in ask.needs)


def get_member_price(model: ServedModel, prices: PriceList, now_us: int) -> Price:
    """What ``model`` costs. Raises Refused for a remote one without a price of its own: unknown is never free."""
    if model.remote is None or model.remote.ours:
        return prices.get_price(model.id, now_us)
    price = prices.find_own_price(model.id, now_us)
    if price is None:
        raise Refused("model_unavailable", f"The model '{model.id}' has no price yet, so it can't be used.")
    return price


def choose_dearest(member: Member, own: Price, demand: Demand, prices: PriceList, now_us: int) -> Price:
    """The price of the member that this request could cost most with, of those that may still answer."""
    asked = demand.default if demand.asked is None else demand.asked
    dearest, most = own, -1
    for model in (member.model, *member.rest):
        price = get_member_price(model, prices, now_us)
        output = min(asked, model.context_size - 1)
        context = model.context_size if asked else demand.context  # without output, many inputs exceed it together
        prompt = min(demand.prompt, context)
        bounds = Bounds(prompt, output, demand.answers, context, demand.audio_ms, demand.characters)
        cost = price_bounds(price, bounds)
        if cost > most:
            dearest, most = price, cost
    return dearest


def is_stuck(error: BaseException) -> bool:
    """Whether a place wasn't to be had for reasons that another model needn't share."""
    return isinstance(error, Refused) and error.code in ("model_unavailable", "overloaded")


def missing_ability(model: ServedModel, needed: str) -> Refused:
    """The refusal of a request that the model named isn't made for."""
    return Refused(
        "missing_ability",
        f"The model '{model.id}' can't do '{needed}'; it can do {', '.join(model.abilities)}.",
        param="model",
    )


def key_ended() -> Refused:
    """The refusal of a key that was good once."""
    return Refused("invalid_api_key", "This API key was revoked, has expired, or its account is closed.")
