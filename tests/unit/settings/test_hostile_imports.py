"""Files of other programs that were written, or spoiled, to do harm: nothing is read without end, or from elsewhere."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from stentor.settings.import_gateway import read_gateway_config, read_model_configs
from stentor.settings.import_llama_swap import read_llama_swap
from stentor.settings.import_ollama import read_ollama_store
from stentor.settings.imported import ImportFailed

GGUF = b"GGUF" + bytes(60)
_KIND = "application/vnd.ollama.image."


def levels(line: str, count: int) -> str:
    """YAML in which every level names the one before ten times."""
    return "".join(line.format(n=number, m=number - 1) for number in range(1, count))


BOMBS = {
    "lists": 'l0: &l0 [x,x]\n' + levels("l{n}: &l{n} [" + ",".join(["*l{m}"] * 10) + "]\n", 7)
    + "models: {a: {cmd: *l6}}\n",
    "merges": "l0: &l0 {a: 1}\n" + levels("l{n}: &l{n} {{<<: [" + ",".join(["*l{m}"] * 10) + "]}}\n", 7)
    + "models: {a: {cmd: x}}\n",
    "itself": "models: &m {a: {cmd: *m}}\n",
    "a list that holds itself": "x: &x [*x]\nmodels: {a: {cmd: x}}\n",
}  # fmt: skip


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_aliases_that_grow_without_end_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ImportFailed, match=r"x\.yaml.*aliases"):
        read_llama_swap(tmp_path / "x.yaml")


def test_a_few_aliases_are_fine(tmp_path: Path) -> None:
    text = "x: &x {ttl: 60}\nmodels:\n  a: {<<: *x, cmd: 'serve ${PORT}'}\n  b: {<<: *x, cmd: 'run ${PORT}'}\n"
    (tmp_path / "x.yaml").write_text(text)
    assert [model["idle_unload_s"] for model in read_llama_swap(tmp_path / "x.yaml").models] == [60, 60]


def test_macros_that_grow_without_end_are_skipped(tmp_path: Path) -> None:
    macros = {f"m{number}": f"${{m{number + 1}}}" * 10 for number in range(6)} | {"m6": "x"}
    config = {"macros": macros, "models": {"a": {"cmd": "run ${PORT} ${m0}"}, "b": {"cmd": "run ${PORT}"}}}
    (tmp_path / "x.yaml").write_text(json.dumps(config))
    found = read_llama_swap(tmp_path / "x.yaml")
    assert [model["id"] for model in found.models] == ["b"]
    assert [(skip.name, "macros" in skip.detail) for skip in found.skipped] == [("a", True)]


ODD: dict[str, Any] = {
    "aliases": {"aliases": 7}, "env": {"env": 5}, "ttl": {"ttl": True}, "proxy": {"proxy": ["x"]},
    "context": {"cmd": "llama-server -m a.gguf -c ²"}, "layers": {"cmd": "llama-server -m a.gguf -ngl ²"},
    "a long number": {"cmd": "llama-server -m a.gguf -c " + "9" * 5000}, "a list": {"cmd": ["a", "b"]},
    "a zero byte": {"cmd": "llama-server -m a\0b.gguf"},
}  # fmt: skip


@pytest.mark.parametrize("fields", ODD.values(), ids=ODD)
def test_odd_values_are_no_faults(tmp_path: Path, fields: dict[str, Any]) -> None:
    config = {"models": {"a": {"cmd": "run ${PORT}", **fields}}, "groups": {"g": {"persistent": True, "members": 5}}}
    (tmp_path / "x.yaml").write_text(json.dumps(config))
    found = read_llama_swap(tmp_path / "x.yaml")
    assert len(found.models) + sum(skip.kind == "model" for skip in found.skipped) == 1
    assert all(model.get("idle_unload_s") is not True for model in found.models)


@pytest.mark.parametrize("config", [
    {"slots": {"²": "x"}}, {"slots": {"04801": "x.gguf"}}, {"slots": {"9" * 5000: "x"}}, {"slots": {"4801": 7}},
    {"pricing": {"input_per_1k": "nan", "output_per_1k": 1}}, {"default_threads": True},
])  # fmt: skip
def test_odd_slots_and_prices_are_no_faults(tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    try:
        found = read_gateway_config(tmp_path / "config.json")
    except ImportFailed:
        return
    assert found.settings.get("DEFAULT_THREADS") is not True


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "ollama"
    (store / "blobs").mkdir(parents=True)
    (store / "manifests" / "host" / "library").mkdir(parents=True)
    return store


def add(store: Path, name: str, **layers: str) -> None:
    """A manifest whose layers have these digests, whatever they are."""
    folder = store / "manifests" / "host" / "library" / name
    folder.mkdir()
    rows = [{"mediaType": _KIND + kind, "digest": digest} for kind, digest in layers.items()]
    (folder / "latest").write_text(json.dumps({"layers": rows}))


@pytest.mark.parametrize(
    "digest", ["sha256:../../outside", "../../outside", "/outside", "..", ".", "", "sha256:a/../../../outside", "a\0b"]
)
def test_manifests_lead_nowhere_but_into_the_store(store: Path, digest: str) -> None:
    for place in (store.parent, store, store / "manifests"):
        (place / "outside").write_bytes(GGUF)
    add(store, "m", model=digest)
    found = read_ollama_store(store)
    assert found.models == []
    assert {skip.name for skip in found.skipped} >= {"m:latest"}


def test_a_link_out_of_the_store_is_no_blob(store: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(GGUF)
    (store / "blobs" / "sha256-a").symlink_to(tmp_path / "secret")
    (store / "blobs" / "sha256-b").write_bytes(GGUF)
    (store / "blobs" / "sha256-c").symlink_to("sha256-b")
    add(store, "out", model="sha256:a")
    add(store, "beside", model="sha256:b", projector="sha256:a")
    add(store, "within", model="sha256:c")
    found = read_ollama_store(store)
    assert {model["id"]: "mmproj" in model for model in found.models} == {"beside": False, "within": False}


def test_pipes_large_files_and_nested_ones_are_neither_waited_for_nor_read(store: Path) -> None:
    blobs = store / "blobs"
    os.mkfifo(blobs / "sha256-pipe")
    (blobs / "sha256-w").write_bytes(GGUF)
    with (blobs / "sha256-large").open("wb") as file:
        file.write(b'{"num_ctx":4096}')
        file.truncate(1 << 40)
    (blobs / "sha256-deep").write_bytes(b"[" * 100_000)
    (blobs / "sha256-text").write_bytes(b'{"num_ctx": "\xff"}')
    add(store, "pipe", model="sha256:pipe")
    for name in ("large", "deep", "text", "pipe"):
        add(store, f"with-{name}", model="sha256:w", params=f"sha256:{name}")
    (store / "manifests" / "stray").write_text("{}")
    with (store / "manifests" / "host" / "library" / "huge").open("wb") as file:
        file.truncate(1 << 40)
    found = read_ollama_store(store)
    assert {model["id"]: "ctx" in model for model in found.models} == {
        "with-large": False, "with-deep": False, "with-text": False, "with-pipe": False
    }  # fmt: skip
    assert {skip.name for skip in found.skipped} >= {"pipe:latest", "stray"}


@pytest.mark.parametrize("read", [read_llama_swap, read_gateway_config, lambda path: read_model_configs([path])])
def test_what_is_no_file_or_too_large_is_named(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "x")
    with (tmp_path / "y").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "z").write_bytes(b'{"a": "\xff"}')
    for name in "xyz":
        with pytest.raises(ImportFailed, match=str(tmp_path / name)):
            read(tmp_path / name)
