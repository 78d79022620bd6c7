"""Which model of a chain answers, and what is reserved for it."""

import msgspec
import pytest

from stentor.accounting.allowance import Demand
from stentor.accounting.price import Price
from stentor.accounting.prices import PriceList
from stentor.control.chain import choose_dearest, choose_member, get_member_price, is_stuck
from stentor.core.books import Open
from stentor.core.errors import Refused
from stentor.core.ids import KeyId, ModelId, RequestId
from stentor.core.remote import RemoteTerms
from stentor.runtime.spec import ServedModel

M = 1_000_000
ASK = Open(RequestId("r"), 1, KeyId("k"), "/v1/chat/completions", "a", 100, 10)


def model(name: str, *, remote: bool = True, abilities: tuple[str, ...] = ("text",), ctx: int = 1000) -> ServedModel:
    terms = RemoteTerms("openai") if remote else None
    return ServedModel(ModelId(name), (), abilities, ctx, "openai", name, 0, terms)


class Fleet:
    """Models by name; those in ``down`` aren't worth asking."""

    def __init__(self, *models: ServedModel, down: tuple[str, ...] = ()) -> None:
        self._models = {each.id: each for each in models}
        self._down = down

    def resolve(self, name: str, allowed: frozenset[str]) -> ServedModel:
        if name not in self._models or (allowed and name not in allowed):
            raise Refused("model_not_found", name)
        return self._models[ModelId(name)]

    def is_available(self, name: ModelId) -> bool:
        return name not in self._down


def prices(**usd: int) -> PriceList:
    rows = [(name, 0, Price(number, amount * M, amount * M)) for number, (name, amount) in enumerate(usd.items(), 1)]
    return PriceList([*rows, ("*", 0, Price(99, 1, 1))])


def choose(fleet: Fleet, *fallbacks: str, step: int = 0, needs: tuple[str, ...] = ("text",), **more: object):  # type: ignore[no-untyped-def]
    first = msgspec.structs.replace(fleet.resolve("a", frozenset()), fallbacks=fallbacks)
    ask = msgspec.structs.replace(ASK, step=step, needs=needs)
    known = more.get("prices", prices(a=1, b=2, c=3))
    return choose_member(first, ask, fleet, known, more.get("allowed", frozenset()), 1)  # type: ignore[arg-type]


def test_the_model_that_was_asked_for_answers_while_it_can() -> None:
    fleet = Fleet(model("a"), model("b"), model("c"))
    member = choose(fleet, "b", "c")
    assert (member.model.id, member.step, member.steps) == ("a", 0, 3)
    assert [each.id for each in member.rest] == ["b", "c"]


def test_a_model_that_is_not_worth_asking_is_passed_over_at_once() -> None:
    fleet = Fleet(model("a"), model("b"), model("c", remote=False), down=("a", "b"))
    member = choose(fleet, "b", "c")
    assert (member.model.id, member.step, member.rest) == ("c", 2, ())
    nobody = Fleet(model("a"), model("b"), down=("a", "b"))
    assert choose(nobody, "b").model.id == "a", "which says why, and when to come back"


def test_what_cannot_stand_in_does_not() -> None:
    fleet = Fleet(model("a", abilities=("text", "image")), model("b"), model("c", abilities=("text", "image")))
    assert choose(fleet, "b", "c", step=1, needs=("text", "image")).model.id == "c"
    assert choose(fleet, "b", "c", step=1, allowed=frozenset({"a", "c"})).model.id == "c"
    assert choose(fleet, "b", "c", step=1, prices=prices(a=1, c=1)).model.id == "c", "unknown is never free"
    assert choose(fleet, "nobody", "c", step=1).step == 2
    with pytest.raises(Refused, match="stands in for 'a'"):
        choose(fleet, "b", step=2)


def test_a_remote_model_has_a_price_of_its_own_or_is_refused() -> None:
    assert get_member_price(model("b", remote=False), prices(), 1).version == 99
    with pytest.raises(Refused, match="no price yet"):
        get_member_price(model("b"), prices(), 1)


def test_the_dearest_of_those_that_may_answer_is_reserved() -> None:
    demand = Demand(100, 10, 2048, 1, 1000)
    fleet = Fleet(model("a"), model("b"), model("c"))
    known = prices(a=5, b=9, c=2)
    assert choose_dearest(choose(fleet, "b", "c"), Price(1, 5 * M, 5 * M), demand, known, 1).version == 2
    assert choose_dearest(choose(fleet, "b", "c", step=2), Price(3, 2 * M, 2 * M), demand, known, 1).version == 3
    # Dear words are no matter where few of them are asked for, and the other way round.
    wordy = [("a", 0, Price(1, M, 1000 * M)), ("b", 0, Price(2, 500 * M, M))]
    two = choose(fleet, "b")
    few, many = Demand(100, 1, 2048, 1, 1000), Demand(1, 900, 2048, 1, 1000)
    assert choose_dearest(two, Price(1, M, 1000 * M), few, PriceList(wordy), 1).version == 2
    assert choose_dearest(two, Price(1, M, 1000 * M), many, PriceList(wordy), 1).version == 1


def test_only_a_place_that_is_not_to_be_had_moves_a_request_on() -> None:
    assert is_stuck(Refused("overloaded", ""))
    assert is_stuck(Refused("model_unavailable", ""))
    assert not is_stuck(Refused("insufficient_balance", ""))
    assert not is_stuck(KeyError())
