"""Which model a name means, and which definitions are refused."""

import time
from typing import Any

import msgspec
import pytest

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.catalogue import Catalogue, choose_able
from stentor.runtime.spec import InvalidModel, Learned, ModelSpec, ServedModel

ALL: frozenset[str] = frozenset()


def model(name: str, **fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": name, "source": f"file:/models/{name}.gguf", **fields})


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(
        [
            model("qwen3-8b", aliases=("fast", "Q"), ctx=4096),
            model("qwen3-32b", source="hf:Qwen/Qwen3-32B-GGUF@main:Q4_K_M"),
            model("minilm", type="embedding", upstream_model="all-minilm"),
        ]
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("qwen3-8b", "qwen3-8b"),
        ("fast", "qwen3-8b"),
        ("Q", "qwen3-8b"),
        ("Qwen/Qwen3-32B-GGUF:Q4_K_M", "qwen3-32b"),
        ("Qwen3-32B-GGUF:Q4_K_M", "qwen3-32b"),
        ("32B", "qwen3-32b"),
        ("MINI", "minilm"),
        ("qwen3:8b", "qwen3-8b"),
        ("qwen3/32b", "qwen3-32b"),
    ],
)
def test_names_resolve(catalogue: Catalogue, name: str, expected: str) -> None:
    assert catalogue.resolve(name, ALL).id == expected


@pytest.mark.parametrize(
    "name", ["qwen3", "nothing-like-it", "", "auto", "default", "x" * 5000, "fast:", "qwen3-8b\0", "qwen3\n8b"]
)
def test_ambiguous_and_unknown_names_are_refused(catalogue: Catalogue, name: str) -> None:
    with pytest.raises(Refused) as refusal:
        catalogue.resolve(name, ALL)
    assert refusal.value.code == "model_not_found"
    assert refusal.value.param == "model"
    assert len(refusal.value.message) < 600


def test_a_refusal_names_the_nearest_models(catalogue: Catalogue) -> None:
    with pytest.raises(Refused, match="qwen3-8b"):
        catalogue.resolve("qwen3-9b", ALL)


@pytest.mark.parametrize("name", ["", "auto", "default"])
def test_no_name_means_the_only_text_model(name: str) -> None:
    catalogue = Catalogue([model("chat"), model("vectors", type="embedding")])
    assert catalogue.resolve(name, ALL).id == "chat"


def test_an_alias_called_default_wins_over_ambiguity() -> None:
    catalogue = Catalogue([model("one"), model("two", aliases=("default",))])
    assert catalogue.resolve("default", ALL).id == "two"


def test_what_a_key_may_not_use_does_not_exist_for_it(catalogue: Catalogue) -> None:
    allowed = frozenset({"qwen3-8b"})
    for name in ("qwen3-32b", "minilm", "Qwen3-32B-GGUF:Q4_K_M"):
        with pytest.raises(Refused) as refusal:
            catalogue.resolve(name, allowed)
        assert "32b" not in refusal.value.message.replace(name, "")
    assert catalogue.resolve("qwen3", allowed).id == "qwen3-8b"
    assert catalogue.resolve("auto", allowed).id == "qwen3-8b"


def test_a_card_is_found_as_a_request_finds_its_model(catalogue: Catalogue) -> None:
    assert catalogue.find("qwen") is None
    found = catalogue.find("qwen", frozenset({"qwen3-32b"}))
    assert found is not None
    assert found.id == "qwen3-32b"
    assert catalogue.find("fast", frozenset({"qwen3-32b"})) is None


def test_a_key_without_models_is_told_so(catalogue: Catalogue) -> None:
    with pytest.raises(Refused, match="No model is available to this key"):
        catalogue.resolve("fast", frozenset({"gone"}))


def test_served_models_say_what_a_request_needs(catalogue: Catalogue) -> None:
    served = catalogue.resolve("fast", ALL)
    assert (served.context_size, served.abilities, served.upstream_model) == (4096, ("text",), "qwen3-8b")
    assert catalogue.resolve("qwen3-32b", ALL).context_size == 8192
    assert catalogue.resolve("minilm", ALL).upstream_model == "all-minilm"
    assert served.media_bound == 0


def test_media_are_bounded_by_the_context_unless_told(catalogue: Catalogue) -> None:
    seeing = Catalogue([model("eyes", type="vision", ctx=2048), model("ears", type="omni", media_bound=600)])
    assert seeing.resolve("eyes", ALL).media_bound == 2048
    assert seeing.resolve("ears", ALL).media_bound == 600


def test_a_measured_context_replaces_the_declared_one(catalogue: Catalogue) -> None:
    served = catalogue.resolve("fast", ALL)
    catalogue.correct_context(served.id, 2048)
    assert catalogue.resolve("qwen3-8b", ALL).context_size == 2048


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"source": ""}, "source is missing"),
        ({"engine": "command"}, "needs a command"),
        ({"engine": "command", "command": ("serve",)}, r"contains \$\{PORT\}"),
        ({"engine": "command", "command": ("serve", "${PORT}"), "arguments": ("-v",)}, "write them into command"),
        ({"command": ("serve", "${PORT}")}, "only for engine"),
        ({"arguments": ("-v",)}, "only for engine"),
        ({"type": "tts"}, 'For type = "tts" there are "piper", "kokoro", "tone", "remote", "command"'),
        ({"type": "tts", "engine": "llama-server"}, "can't speak"),
        (
            {"type": "audio", "engine": "command", "command": ("hear", "${PORT}")},
            'For type = "audio" there are "whisper", "sense_voice", "remote"',
        ),
        ({"env": {"LLAMA_ARG_PORT": "1"}}, "configure the engine unseen"),
        ({"health_path": "health"}, "must begin with '/'"),
        ({"id": "../etc/passwd"}, "the id may hold"),
    ],
)
def test_definitions_that_cannot_work_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidModel, match=words):
        Catalogue([model(fields.pop("id", "m"), **fields)])


def test_the_port_may_come_by_environment() -> None:
    spec = ModelSpec(id="m", engine="command", command=("serve",), env={"PORT": "${PORT}"})
    assert Catalogue([spec]).resolve("m", ALL).engine == "command"


def test_two_models_cannot_share_a_name() -> None:
    with pytest.raises(InvalidModel, match="'a' is already taken by 'a'"):
        Catalogue([model("a"), model("b", aliases=("a",))])


@pytest.mark.parametrize(
    "data",
    [
        {"id": "a", "unknown": 1},
        {"id": "-a"},
        {"id": "a" * 129},
        {"id": "a/b"},
        {"id": "a", "parallel": 0},
        {"id": "a", "ctx": 4},
        {"id": "a", "engine": "vllm"},
        {"id": "a", "aliases": ["b c"]},
    ],
)
def test_settings_of_a_model_are_checked_field_by_field(data: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(data, ModelSpec)


def test_a_name_of_megabytes_costs_no_search() -> None:
    began = time.process_time()
    with pytest.raises(Refused):
        Catalogue([model("one"), model("two")]).resolve("s" * 20_000_000, ALL)
    assert time.process_time() - began < 0.5


def served(name: str, *abilities: str) -> ServedModel:
    return ServedModel(ModelId(name), (), abilities, 8192, "llama", name, 0)


TEXT, SEES, VECTORS = served("words", "text"), served("eyes", "text", "image"), served("vectors", "embedding")


@pytest.mark.parametrize(
    ("able", "costs", "strict", "lenient"),
    [
        ([], {}, None, None),
        ([TEXT], {"words": 5}, "words", "words"),
        ([TEXT, SEES], {"words": 5, "eyes": 5}, "words", "words"),
        ([SEES, TEXT], {"words": 5, "eyes": 4}, None, "eyes"),
        ([TEXT, served("more", "text")], {"words": 5, "more": 5}, None, "words"),
        ([TEXT, served("more", "text")], {"words": 5, "more": 4}, None, "more"),
    ],
)
def test_by_ability_alone_the_only_one_and_never_a_dearer_one(
    able: list[ServedModel], costs: dict[str, int], strict: str | None, lenient: str | None
) -> None:
    for expected, is_lenient in ((strict, False), (lenient, True)):
        found = choose_able(able, costs.__getitem__, lenient=is_lenient)
        assert (found.id if found else None) == expected


def test_an_open_name_means_what_can_do_it_among_the_keys_local_models() -> None:
    specs = [
        ModelSpec(id="words", source="file:/words.gguf", type="text"),
        ModelSpec(id="vectors", source="file:/v.gguf", type="embedding"),
    ]
    strict, lenient = Catalogue(specs), Catalogue(specs, lenient=True)

    def find(catalogue: Catalogue, name: str, need: str, *allowed: str) -> str | None:
        found = catalogue.find_able(name, (need,), frozenset(map(ModelId, allowed)), lambda _: 0)
        return found.id if found else None

    for name in ("", "auto", "default"):
        assert find(strict, name, "embedding") == "vectors"
        assert find(strict, name, "text") == "words"
        assert find(strict, name, "text", "vectors") is None
        assert find(strict, name, "image") is None
    assert find(strict, "gpt-4o", "text") is None
    assert find(lenient, "gpt-4o", "text") == "words"
    assert find(lenient, "gpt-4o", "text", "vectors") is None
    with pytest.raises(Refused, match="does not exist"):
        strict.resolve("gpt-4o", frozenset())


@pytest.mark.parametrize("called", [{"id": "default"}, {"aliases": ("auto", "default")}])
def test_a_model_that_is_called_default_is_meant_by_that(called: dict[str, Any]) -> None:
    meant = ModelSpec(**{"id": "seeing", "source": "file:/s.gguf", "type": "vision", **called})
    catalogue = Catalogue([ModelSpec(id="words", source="file:/words.gguf", type="text"), meant])

    def find(needs: tuple[str, ...], *allowed: str) -> str | None:
        found = catalogue.find_able("default", needs, frozenset(map(ModelId, allowed)), lambda _: 0)
        return found.id if found else None

    assert find(("text",)) == find(("embedding",)) == find(("text",), meant.id, "words") == meant.id
    assert find(("text",), "words") == "words"
    open_name = catalogue.find_able("", ("text",), ALL, lambda _: 0)
    assert open_name is not None
    assert open_name.id == "words"


def test_what_was_learned_of_a_file_holds_until_its_definition_changes() -> None:
    spec = ModelSpec(id="m", source="file:/m.gguf")
    catalogue = Catalogue([spec])
    assert catalogue.served(ModelId("m")).abilities == ("text",)
    catalogue.learn(ModelId("m"), Learned("vision", ("text", "image")))
    catalogue.correct_context(ModelId("m"), 512)
    found = catalogue.served(ModelId("m"))
    assert (found.type, found.abilities) == ("vision", ("text", "image"))
    assert (found.context_size, found.media_bound) == (512, 512)
    catalogue.change([ModelSpec(id="other", source="file:/o.gguf")])
    assert catalogue.served(ModelId("m")).type == "vision"
    catalogue.change([ModelSpec(id="m", source="file:/m2.gguf")])
    assert catalogue.served(ModelId("m")).type == "text"
    catalogue.learn(ModelId("gone"), Learned("vision", ("text",)))
