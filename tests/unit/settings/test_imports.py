"""What other programs were told, taken over: LLM Gateway, llama-swap, Ollama."""

import hashlib
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from stentor.cli.root import run
from stentor.runtime.catalogue import Catalogue
from stentor.runtime.spec import read_spec
from stentor.settings.import_gateway import read_gateway_config, read_model_configs
from stentor.settings.import_llama_swap import read_llama_swap, split_command
from stentor.settings.import_ollama import read_ollama_store
from stentor.settings.imported import ImportFailed, plan_file, toml_value
from stentor.settings.layers import SettingsError
from tests.engine.tiny_gguf import write_tiny_gguf

GGUF = b"GGUF" + bytes(200)

GATEWAY: dict[str, Any] = {
    "slots": {
        "4801": "Qwen2.5-7B-Instruct-Q4_K_M.gguf",
        "4802": {
            "model_path": "vl.gguf",
            "model_type": "vision",
            "ctx_size": 4096,
            "threads": 6,
            "mmproj_path": "mmproj-vl.gguf",
        },
        "4803": "missing.gguf",
        "4804": None,
        "4807": None,
    },
    "hf_token": "hf_secret",
    "admin_key": "sk-admin-xxx",
    "default_threads": 10,
    "default_ctx_size": 8192,
    "pricing": {"input_per_1k": 0.0001, "output_per_1k": 0.0002},
    "rate_limits": {"payg": 25, "sub": 100, "gold": 7},
    "performance": {"flash_attention": True, "mlock": True, "kv_cache_quantization": "q8_0", "batch_size": 512},
    "theme": "dark",
}


@pytest.fixture
def gateway(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "models").mkdir(parents=True)
    for name in ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "vl.gguf", "mmproj-vl.gguf"):
        (folder / "models" / name).write_bytes(GGUF)
    (folder / "config.json").write_text(json.dumps(GATEWAY))
    return folder / "config.json"


def test_a_gateways_slots_become_models_that_are_started(gateway: Path):
    found = read_gateway_config(gateway)
    folder = gateway.parent / "models"
    tuned = {
        "flash_attention": "on",
        "load_mode": "mmap+mlock",
        "cache_type_k": "q8_0",
        "cache_type_v": "q8_0",
        "batch": 512,
        "preload": True,
    }
    assert found.models == [
        {
            "id": "Qwen2.5-7B-Instruct-Q4_K_M",
            "source": f"file:{folder}/Qwen2.5-7B-Instruct-Q4_K_M.gguf",
            **tuned,
        },
        {
            "id": "vl",
            "source": f"file:{folder}/vl.gguf",
            "type": "vision",
            "ctx": 4096,
            "threads": 6,
            "mmproj": f"{folder}/mmproj-vl.gguf",
            **tuned,
        },
    ]
    wanted = {"DEFAULT_THREADS": 10, "DEFAULT_CTX": 8192, "SLOT_FIRST_PORT": 4801, "SLOT_COUNT": 7}
    assert wanted.items() <= found.settings.items()
    assert found.settings["MODEL_DIRS"] == [str(folder)]
    assert [(call.method, call.path, call.body) for call in found.calls] == [
        ("POST", "/pricing", {"model": "*", "input_nano": 100_000_000, "output_nano": 200_000_000}),
        ("PATCH", "/tiers/payg", {"requests_per_minute": 25}),
        ("PATCH", "/tiers/sub", {"requests_per_minute": 100}),
        ("POST", "/hf-tokens", {"token": "hf_secret", "name": "default"}),
    ]
    assert {(skip.kind, skip.name) for skip in found.skipped} == {
        ("field", "theme"),
        ("slot", "4803"),
        ("key", "admin_key"),
        ("tier", "gold"),
    }


def test_model_configs_name_files_or_repositories(tmp_path: Path):
    (tmp_path / "here.gguf").write_bytes(GGUF)
    configs = {
        "a": {"model_repo": "org/A-GGUF", "model_name": "A-Q4_K_M.gguf", "model_type": "text", "think": True},
        "b": {"model_repo": "org/B", "model_name": "b", "model_type": "embedding", "model_path": "here.gguf"},
        "c": {"model_repo": "org/C", "model_name": "C", "model_type": "text", "cache_path": "nowhere"},
        "d": {"model_name": "D", "model_type": "text"},
        "e": {"model_repo": "org/E", "model_name": "E", "model_type": "smell"},
    }
    for name, config in configs.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    found = read_model_configs([tmp_path / f"{name}.json" for name in configs])
    assert found.models == [
        {"id": "a", "source": "hf:org/A-GGUF#A-Q4_K_M.gguf", "aliases": ["A-Q4_K_M"]},
        {"id": "b", "source": f"file:{tmp_path}/here.gguf", "type": "embedding"},
        {"id": "c", "source": "hf:org/C", "aliases": ["C"]},
    ]
    assert [skip.name for skip in found.skipped] == ["a: think", "d", "e"]


SWAP = r"""
healthCheckTimeout: 500
startPort: 5800
globalTTL: 900
macros:
  server: /opt/llama-server --port ${PORT} --host 127.0.0.1 ${tuned}
  tuned: --no-webui -fa on
models:
  "qwen2.5:7b":
    cmd: |
      # the daily one
      ${server} --model /m/qwen.gguf \
      --ctx-size 16384 -np 4 -ngl all --top-k 20 --jinja --slot-save-path "/tmp/with space"
    aliases: [gpt-4o, "bad name"]
    ttl: 300
    useModelName: qwen
    env: ["CUDA_VISIBLE_DEVICES=0"]
    filters: {stripParams: "temperature"}
  embed:
    cmd: ${server} -hf org/Embed-GGUF:Q8_0 --embedding --pooling mean -c 2048
  vllm:
    macros: {image: vllm:1}
    cmd: docker run -p 9999:8000 ${image} --name ${MODEL_ID}
    proxy: http://127.0.0.1:9999
    checkEndpoint: /v1/models
  lost: {cmd: "python serve.py"}
  loop: {cmd: "${loop}", macros: {loop: "${loop}x"}}
  empty: {}
groups:
  always: {persistent: true, swap: false, members: [embed]}
hooks: {on_startup: {preload: ["embed"]}}
"""


def test_llama_swaps_commands_become_models(tmp_path: Path):
    (tmp_path / "config.yaml").write_text(SWAP)
    found = read_llama_swap(tmp_path / "config.yaml")
    qwen, embed, vllm = found.models
    assert qwen == {
        "id": "qwen2.5-7b",
        "engine": "llama-server",
        "binary": "/opt/llama-server",
        "flash_attention": "on",
        "source": "file:/m/qwen.gguf",
        "gpu_layers": 999,
        "parallel": 4,
        "ctx": 4096,
        "arguments": ["--top-k", "20", "--slot-save-path", "/tmp/with space"],
        "aliases": ["gpt-4o", "bad-name"],
        "env": {"CUDA_VISIBLE_DEVICES": "0"},
        "idle_unload_s": 300,
        "upstream_model": "qwen",
    }
    assert (embed["source"], embed["type"], embed["pooling"]) == ("hf:org/Embed-GGUF:Q8_0", "embedding", "mean")
    assert (embed["preload"], embed["pinned"], embed["ctx"], embed["parallel"]) == (True, True, 2048, 1)
    assert vllm["command"] == ["docker", "run", "-p", "${PORT}:8000", "vllm:1", "--name", "vllm"]
    assert (vllm["engine"], vllm["health_path"]) == ("command", "/v1/models")
    why = {skip.name: skip.detail for skip in found.skipped}
    assert set(why) == {"healthCheckTimeout", "lost", "loop", "empty", "qwen2.5:7b: filters"}
    assert found.settings == {"IDLE_UNLOAD_S": 900}
    catalogue = Catalogue(map(read_spec, found.models))
    assert {catalogue.resolve(name, frozenset()).id for name in ("qwen2.5:7b", "bad name")} == {"qwen2.5-7b"}
    assert "name each other" in why["loop"]
    assert plan_file(tmp_path / "stentor.toml", found).text


def test_commands_are_split_as_a_shell_does():
    assert split_command("a \\\n -b 'c d'\n# no\n e") == ["a", "-b", "c d", "e"]


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "models: {}\n", "models: 7\n"])
def test_a_file_that_is_no_llama_swap_configuration_is_named(tmp_path: Path, text: str):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ImportFailed, match=r"x\.yaml"):
        read_llama_swap(tmp_path / "x.yaml")


def blob(store: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(content)
    return f"sha256:{digest}"


def manifest(store: Path, name: str, **layers: bytes) -> None:
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": blob(store, content), "size": len(content)}
        for kind, content in layers.items()
    ]
    path.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": rows}))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    store = tmp_path / "ollama"
    tiny = write_tiny_gguf(tmp_path / "t.gguf").read_bytes()
    params = json.dumps({"num_ctx": 4096, "stop": ["x"], "temperature": 1}).encode()
    manifest(
        store, "registry.example/library/llama3.2/latest", model=tiny, params=params, template=b"{{ . }}", system=b"be"
    )
    manifest(store, "registry.example/library/llama3.2/1b", model=tiny)
    manifest(store, "registry.example/me/llava/7b", model=tiny + b"\0", projector=GGUF)
    manifest(store, "registry.example/library/broken/latest", model=b"not gguf")
    manifest(store, "registry.example/library/cloud/latest", license=b"free")
    (store / "manifests" / "registry.example" / "library" / "bad").mkdir()
    (store / "manifests" / "registry.example" / "library" / "bad" / "latest").write_text("{")
    return store


def test_ollamas_blobs_are_models(store: Path):
    found = read_ollama_store(store)
    models = {model["id"]: model for model in found.models}
    assert set(models) == {"llama3.2", "llama3.2-1b", "llava-7b"}
    assert models["llama3.2"]["ctx"] == 4096
    assert Path(models["llama3.2"]["source"].removeprefix("file:")).parent == store / "blobs"
    assert Path(models["llava-7b"]["mmproj"]).read_bytes() == GGUF
    assert {skip.name for skip in found.skipped} == {"broken:latest", "cloud:latest", "bad:latest", "llama3.2:latest"}
    said = {skip.kind: skip.detail for skip in found.skipped if skip.name == "llama3.2:latest"}
    assert said["parameters"].startswith("stop, temperature: ")
    assert set(said) == {"parameters", "system", "template"}
    catalogue = Catalogue(map(read_spec, found.models))
    for name, model in (
        ("llama3.2:1b", "llama3.2-1b"),
        ("me/llava:7b", "llava-7b"),
        ("registry.example/me/llava:7b", "llava-7b"),
    ):
        assert catalogue.resolve(name, frozenset()).id == model
    with pytest.raises(ImportFailed, match="no store of Ollama's"):
        read_ollama_store(store / "blobs")


@pytest.fixture
def stentor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = run(list(words))
        said = capsys.readouterr()
        return status, said.out, said.err

    return call


def test_an_import_is_shown_first_and_then_written_once(stentor, store: Path, tmp_path: Path):
    status, out, err = stentor("import", "ollama", str(store), "--dry-run")
    assert status == 0, err
    assert "llama3.2-1b" in out
    assert not (tmp_path / "stentor.toml").exists()
    (tmp_path / "stentor.toml").write_text("port = 0\n[[models]]\nid = 'mine'\nsource = 'file:/x.gguf'\n")
    status, out, err = stentor("import", "ollama", str(store), "--copy", "--json")
    assert status == 0, err
    changes = json.loads(out)["changes"]
    assert [change["name"] for change in changes if change["action"] == "add"] == [
        "llama3.2-1b",
        "llama3.2",
        "llava-7b",
    ]
    table = tomllib.loads((tmp_path / "stentor.toml").read_text())
    assert table["port"] == 0
    assert [model["id"] for model in table["models"]] == ["mine", "llama3.2-1b", "llama3.2", "llava-7b"]
    copies = sorted(path.name for path in (tmp_path / "data" / "models" / "ollama").iterdir())
    assert copies == ["llama3.2-1b.gguf", "llama3.2.gguf", "llava-7b.gguf", "llava-7b.mmproj.gguf"]
    assert tomllib.loads((tmp_path / "stentor.toml.bak").read_text())["models"][0]["id"] == "mine"
    before = (tmp_path / "stentor.toml").read_bytes()
    status, out, _ = stentor("import", "ollama", str(store), "--copy", "--json")
    assert {change["action"] for change in json.loads(out)["changes"]} == {"keep", "skip"}
    assert (tmp_path / "stentor.toml").read_bytes() == before


def test_a_gateways_prices_limits_and_token_reach_the_store(stentor, gateway: Path, tmp_path: Path):
    status, out, err = stentor("import", "gateway-config", str(gateway), "--json")
    assert status == 0, err
    assert "hf_secret" not in out + err + (tmp_path / "stentor.toml").read_text()
    table = tomllib.loads((tmp_path / "stentor.toml").read_text())
    assert (table["default_ctx"], table["slot_count"]) == (8192, 7)
    status, out, err = stentor("models", "list", "--json")
    assert {row["id"] for row in json.loads(out)} == {"Qwen2.5-7B-Instruct-Q4_K_M", "vl"}
    status, out, err = stentor("config", "--json")
    assert status == 0, err


def test_what_stands_in_the_file_stays(tmp_path: Path, gateway: Path):
    path = tmp_path / "stentor.toml"
    path.write_text("default_ctx = 2048  # mine\n")
    plan = plan_file(path, read_gateway_config(gateway))
    assert plan.text is not None
    assert "default_ctx = 2048  # mine\n" in plan.text
    assert ("keep", "default_ctx") in [(change.action, change.name) for change in plan.changes]
    path.write_text("[[models]\n")
    with pytest.raises(SettingsError, match="not valid TOML"):
        plan_file(path, read_gateway_config(gateway))


@pytest.mark.parametrize("command", ["gateway-config", "model-config", "llama-swap", "ollama"])
def test_what_is_not_there_is_said_in_a_line(stentor, command: str):
    status, out, err = stentor("import", command, "nowhere")
    assert (status, out) == (1, "")
    assert err.startswith("stentor: nowhere")
    assert err.count("\n") == 1


@pytest.mark.parametrize("value", [True, 7, 1.5, 'a "b"\\\n\x7f\t', ["a", "b"], {"a b": "c"}, "ü"])
def test_values_are_written_as_toml_reads_them(value: Any):
    assert tomllib.loads(f"x = {toml_value(value)}")["x"] == value
