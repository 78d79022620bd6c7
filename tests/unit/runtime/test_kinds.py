"""What a model file is, by its head: kinds, projectors, contradictions, and how much memory it takes."""

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from stentor.core.units import MIB
from stentor.runtime.estimate import estimate_bytes, estimate_memory
from stentor.runtime.gguf import CacheShape, GgufHeader, InvalidGguf, read_header, read_projector
from stentor.runtime.kinds import choose_abilities, choose_type, find_nature, list_projectors
from stentor.runtime.launchers.base import LaunchRefused
from stentor.runtime.spec import ModelSpec, guess_type
from tests.engine.bert_gguf import write_tiny_reranker
from tests.engine.projector_gguf import write_projector
from tests.engine.tiny_gguf import write_tiny_gguf


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec(**{"id": "m", "source": "file:/m.gguf", **fields})


def header(**fields: Any) -> GgufHeader:
    base = {"architecture": "llama", "name": "m", "trained_ctx": 4096, "file_bytes": 100 * MIB}
    return GgufHeader(**{**base, **fields})


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny-F32.gguf")


def test_a_plain_model_talks(tiny: Path) -> None:
    nature = find_nature(spec(), tiny)
    assert (nature.spec.kind, nature.abilities, nature.spec.mmproj) == ("text", ("text",), None)


def test_a_classifier_ranks(tmp_path: Path) -> None:
    nature = find_nature(spec(), write_tiny_reranker(tmp_path / "ranker.gguf"))
    assert (nature.spec.kind, nature.abilities) == ("reranker", ("rerank",))


@pytest.mark.parametrize(
    ("sees", "hears", "kind", "abilities"),
    [
        (True, False, "vision", ("text", "image")),
        (True, True, "omni", ("text", "image", "audio")),
        (False, True, "omni", ("text", "audio")),
    ],
)
def test_a_projector_beside_it_gives_eyes_and_ears(
    tiny: Path, sees: bool, hears: bool, kind: str, abilities: tuple[str, ...]
) -> None:
    path = write_projector(tiny.with_name("mmproj-tiny-F16.gguf"), sees=sees, hears=hears)
    nature = find_nature(spec(), tiny)
    assert (nature.spec.kind, nature.abilities, nature.spec.mmproj) == (kind, abilities, path)
    assert find_nature(spec(type="text"), tiny).spec.mmproj is None


def test_a_projector_for_another_width_is_not_its_own(tiny: Path) -> None:
    write_projector(tiny.with_name("mmproj.gguf"), projected=128)
    assert find_nature(spec(), tiny).spec.kind == "text"


def test_among_several_models_a_projector_must_bear_the_name(tmp_path: Path) -> None:
    for name in ("a-7b-Q4_K_M", "a-7b-Q8_0", "mmproj-a-7b-f16", "mmproj-a-7b-Q8_0", "mmproj-b-f16", "a-7b.mmproj-bf16"):
        (tmp_path / f"{name}.gguf").touch()
    names = [path.name for path in list_projectors(tmp_path / "a-7b-Q4_K_M.gguf")]
    assert names[0] == "mmproj-a-7b-f16.gguf"
    (tmp_path / "b-Q4_0.gguf").touch()
    names = [path.name for path in list_projectors(tmp_path / "a-7b-Q4_K_M.gguf")]
    assert names == ["mmproj-a-7b-f16.gguf", "a-7b.mmproj-bf16.gguf", "mmproj-a-7b-Q8_0.gguf"]
    assert [path.name for path in list_projectors(tmp_path / "b-Q4_0.gguf")] == ["mmproj-b-f16.gguf"]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("reranker", "no classifier"),
        ("vision", "no projector for images"),
        ("omni", "no projector for images"),
        ("audio", "no projector for sound"),
        ("vision-embedding", "no projector for images"),
        ("tts", "can't speak"),
    ],
)
def test_a_declared_type_that_the_file_cant_be_is_named(tiny: Path, declared: Any, words: str) -> None:
    with pytest.raises(LaunchRefused, match=words) as refusal:
        find_nature(spec(type=declared), tiny)
    assert f'type = "{declared}"' in str(refusal.value)
    assert "Found was 'text'" in str(refusal.value)


@pytest.mark.parametrize("declared", ["text", "vision", "embedding"])
def test_a_reranker_is_nothing_else(tmp_path: Path, declared: Any) -> None:
    with pytest.raises(LaunchRefused, match="Found was 'reranker'"):
        find_nature(spec(type=declared), write_tiny_reranker(tmp_path / "ranker.gguf"))


def test_a_model_that_talks_may_be_declared_to_embed(tiny: Path) -> None:
    nature = find_nature(spec(type="embedding"), tiny)
    assert nature.abilities == ("embedding",)
    assert find_nature(spec(type="embedding", matryoshka=True), tiny).abilities == ("embedding", "dimensions")


def test_a_projector_is_no_model(tmp_path: Path, tiny: Path) -> None:
    path = write_projector(tmp_path / "mmproj.gguf")
    with pytest.raises(LaunchRefused, match="is a projector"):
        find_nature(spec(), path)
    with pytest.raises(LaunchRefused, match=r"projector .* can't be used"):
        find_nature(spec(mmproj=tiny), tiny)
    with pytest.raises(LaunchRefused, match=r"projector .* can't be used"):
        find_nature(spec(mmproj=tmp_path / "nowhere.gguf"), tiny)


def test_architecture_and_pooling_decide() -> None:
    assert choose_type(header(encodes=True), None) == "embedding"
    assert choose_type(header(pools=True), None) == "embedding"
    assert choose_type(header(pools=True), header(sees=True)) == "vision-embedding"
    assert choose_type(header(ranks=True, encodes=True), None) == "reranker"


@pytest.mark.parametrize(
    ("fields", "head", "sees"),
    [
        ({"pooling": "last"}, {}, True),
        ({}, {"pools": True, "pools_last": True}, True),
        ({}, {"pools": True}, False),
        ({"pooling": "mean"}, {"pools": True, "pools_last": True}, False),
        ({"pooling": "last"}, {"encodes": True}, False),
        ({"pooling": "last", "engine": "llama-server"}, {}, False),
    ],
)
def test_pictures_are_embedded_where_the_last_token_counts(
    fields: dict[str, Any], head: dict[str, Any], sees: bool
) -> None:
    abilities = choose_abilities("vision-embedding", spec(**fields), header(**head), header(sees=True))
    assert abilities == (("embedding", "image") if sees else ("embedding",))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("hf:Qwen/Qwen3-Embedding-0.6B-GGUF:Q8_0", "embedding"),
        ("hf:org/bge-m3-GGUF", "embedding"),
        ("hf:org/bge-reranker-v2-m3-GGUF", "reranker"),
        ("file:/models/all-MiniLM-L6-v2.gguf", "embedding"),
        ("hf:org/Llama-3-8B-GGUF:Q4_K_M", "text"),
        ("file:/m/gemma-e5x.gguf", "text"),
    ],
)
def test_until_the_file_is_there_its_name_decides(name: str, kind: str) -> None:
    assert guess_type(name) == kind
    assert spec(source=name).kind == kind
    assert spec(source=name, type="vision").kind == "vision"


# -- heads that lie


def test_lists_are_counted_and_small_ones_kept(tiny: Path) -> None:
    found = read_header(tiny)
    assert (found.words, found.width, found.inner, found.heads) == (260, 64, 128, 2)
    assert found.cache == CacheShape(keys=64, values=64)
    assert (found.encodes, found.ranks, found.pools, found.sees) == (False, False, False, False)


@pytest.mark.parametrize("seed", range(300))
def test_a_damaged_head_is_refused_or_read_but_never_more(tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    make = choose.choice([write_tiny_gguf, write_tiny_reranker, write_projector])
    data = bytearray(make(tmp_path / "m.gguf").read_bytes()[:9000])
    for _ in range(choose.randint(1, 6)):
        at = choose.randrange(4, min(len(data), 3000))
        data[at : at + 8] = choose.choice([struct.pack("<Q", choose.getrandbits(64)), b"\xff" * 8, b"\0" * 8])
    path = tmp_path / "damaged.gguf"
    path.write_bytes(bytes(data))
    try:
        found = read_header(path)
    except InvalidGguf:
        return
    assert estimate_bytes(found, spec(), 8192, 4) > 0
    assert choose_type(found, None)


def test_a_head_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    key = struct.pack("<Q", 1) + b"k"
    for body in (
        struct.pack("<QQ", 0, 2**40),
        struct.pack("<QQ", 2**40, 0),
        struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2**60),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, 2**50),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 9, 4),
        struct.pack("<QQ", 0, 1) + key + struct.pack("<I", 77),
        struct.pack("<QQ", 1, 0) + key + struct.pack("<I", 2**31),
    ):
        path.write_bytes(b"GGUF" + struct.pack("<I", 3) + body)
        with pytest.raises(InvalidGguf):
            read_header(path)
    with pytest.raises(InvalidGguf):
        read_projector(write_tiny_gguf(tmp_path / "tiny.gguf"))


# -- memory (what was measured is compared with real engines in tests/real)


def test_windows_states_and_shards_are_counted(tmp_path: Path) -> None:
    whole = header(cache=CacheShape(keys=1024, values=1024))
    near = header(cache=CacheShape(keys=512, values=512, window_keys=512, window_values=512, window=1024))
    assert estimate_memory(whole, spec(), 32_768, 1).cache == 32_768 * 2048 * 2
    part = estimate_memory(near, spec(), 32_768, 1).cache
    assert 32_768 * 1024 * 2 < part < 32_768 * 1024 * 2 + 8 * 1536 * 1024 * 2
    half = estimate_memory(whole, spec(cache_type_k="q8_0", cache_type_v="q8_0"), 32_768, 1).cache
    assert half == 32_768 * 2048 * 34 // 32
    assert estimate_memory(header(cache=CacheShape(state=1000)), spec(), 1024, 3).cache >= 3 * 4000


def test_more_of_anything_never_takes_less() -> None:
    small = estimate_bytes(header(), spec(), 1024, 1)
    seeing = header(architecture="clip", sees=True, width=1024, inner=4096, patches=576, file_bytes=600 * MIB)
    assert estimate_bytes(header(), spec(), 1024, 1, seeing) > small + 600 * MIB
    assert estimate_bytes(header(), spec(cache_ram_mib=512), 1024, 1) == small + 512 * MIB
    large = header(width=4096, inner=14336, heads=32, words=128_000, cache=CacheShape(8192, 8192))
    for places in (1, 2, 4):
        steps = [estimate_bytes(large, spec(), ctx, places) for ctx in (1024, 4096, 16_384)]
        assert steps == sorted(steps)
        assert steps[0] < estimate_bytes(large, spec(), 1024, places + 1)
    assert estimate_bytes(large, spec(type="embedding"), 4096, 1) > estimate_bytes(large, spec(), 4096, 1)
