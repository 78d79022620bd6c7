"""Models of other nodes beside this machine's own: which there are, under which names, and who is asked."""

import pytest

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.neighbours import PREFIX, Neighbour, Neighbours, SharedModel
from stentor.runtime.remotes import Remotes
from stentor.runtime.spec import ModelSpec

OWN = ModelSpec(id="own", source="file:/m.gguf", type="text", aliases=("mine",), parallel=2, instances=3)


def shared(name: str, *aliases: str, context: int = 4096, places: int = 4) -> SharedModel:
    return SharedModel(name, aliases, "vision", ("text", "image"), context, 700, places)


def node(name: str, *models: SharedModel, up: bool = True) -> Neighbour:
    return Neighbour(name, f"http://{name}", f"token-of-{name}", up, models)


class Beside:
    """Neighbours beside one model of this machine's own."""

    def __init__(self) -> None:
        self.catalogue = Catalogue([OWN])
        self.remotes = Remotes(4)
        self.neighbours = Neighbours(self.catalogue, self.remotes)
        self.remotes.connect(self.neighbours.find_provider, None)  # type: ignore[arg-type]

    def names(self) -> set[str]:
        return set(map(str, self.catalogue.specs))

    def ask(self, model: str) -> str:
        """Where a request goes."""
        place = self.remotes.try_acquire(ModelId(model))
        assert place is not None
        self.remotes.release(place.instance, place.generation)
        return f"{place.url} {place.token}"


@pytest.fixture
def beside() -> Beside:
    return Beside()


def test_a_neighbours_model_is_known_as_its_owner_knows_it(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("far", "distant"))])
    served = beside.catalogue.resolve("distant", frozenset())
    assert (served.id, served.abilities, served.context_size, served.media_bound) == (
        "far",
        ("text", "image"),
        4096,
        700,
    )
    assert served.remote is not None
    assert served.remote.ours
    assert beside.ask("far") == "http://b token-of-b"


def test_owners_take_turns_and_who_is_down_is_not_asked(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("far")), node("c", shared("far", context=2048))])
    assert beside.catalogue.specs[ModelId("far")].parallel == 8
    assert beside.catalogue.resolve("far", frozenset()).context_size == 2048
    first, second, third = (beside.ask("far") for _ in range(3))
    assert first == third != second
    beside.neighbours.update([node("b", shared("far"), up=False), node("c", shared("far"))])
    assert {beside.ask("far") for _ in range(4)} == {"http://c token-of-c"}


def test_looking_takes_no_turn_and_turns_outlast_what_the_others_say(beside: Beside) -> None:
    said = [node("b", shared("far")), node("c", shared("far"))]
    beside.neighbours.update(said)
    asked = []
    for _ in range(4):
        assert beside.remotes.is_available(ModelId("far"))  # as whoever chooses a model asks first
        asked.append(beside.ask("far"))
        beside.neighbours.update(said)
    assert asked[0] == asked[2] != asked[1] == asked[3]


async def test_a_model_whose_owners_are_down_is_unavailable_and_not_unknown(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("far"), up=False)])
    served = beside.catalogue.resolve("far", frozenset())
    with pytest.raises(Refused) as refused:
        await beside.remotes.acquire(served, "key", 1.0)  # type: ignore[arg-type]
    assert refused.value.code == "model_unavailable"
    assert refused.value.retry_after_s
    beside.neighbours.update([node("b", shared("far"))])
    assert beside.ask("far")


def test_a_model_that_its_owner_gives_up_is_unknown(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("far"), shared("further"))])
    beside.neighbours.update([node("b", shared("further"))])
    assert beside.names() == {"own", "further"}
    beside.neighbours.update([])
    assert beside.names() == {"own"}
    assert beside.remotes.models() == []


def test_own_names_come_first(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("own"), shared("mine"), shared("far", "own", "mine", "good"))])
    assert beside.names() == {"own", "far"}
    assert beside.catalogue.specs[ModelId("far")].aliases == ("good",)
    assert beside.catalogue.resolve("own", frozenset()).remote is None


def test_two_neighbours_names_do_not_collide(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("x", "y")), node("c", shared("y", "x"))])
    assert beside.names() >= {"own", "x"}
    # An alias that becomes a model's id elsewhere changes sides.
    beside.neighbours.update([node("b", shared("x")), node("c", shared("y", "z"))])
    assert beside.names() == {"own", "x", "y"}
    assert beside.catalogue.resolve("z", frozenset()).id == "y"


def test_a_name_that_becomes_this_machines_own_is_given_up(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("far"), shared("further"))])
    mine = ModelSpec(id="far", source="file:/f.gguf", aliases=("further",))
    beside.neighbours.give_way([mine])
    beside.remotes.remove(ModelId("far"))
    beside.catalogue.change([mine])
    beside.neighbours.update([node("b", shared("far"), shared("further"))])
    assert beside.names() == {"own", "far"}
    assert beside.catalogue.resolve("far", frozenset()).remote is None


def test_what_this_machine_runs_is_told_and_what_it_relays_is_not(beside: Beside) -> None:
    beside.neighbours.update([node("b", shared("far"))])
    (told,) = beside.neighbours.list_shared()
    assert (told.id, told.aliases, told.places) == ("own", ("mine",), 6)


def test_nothing_changes_where_nothing_changed(beside: Beside) -> None:
    said = [node("b", shared("far", "distant"))]
    beside.neighbours.update(said)
    before = beside.catalogue.specs[ModelId("far")]
    beside.neighbours.update(said)
    assert beside.catalogue.specs[ModelId("far")] is before
    assert beside.neighbours.find_provider(PREFIX + "unknown") is None


def test_a_token_is_in_no_repr() -> None:
    assert "token-of-b" not in repr(node("b"))
