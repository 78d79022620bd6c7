"""The names of the systems that Stentor unites."""

import base64

import pytest

from stentor.settings import SettingsError, load_settings
from stentor.settings.declared import DECLARED, UNUSED_ALIASES

KEY = bytes(range(32))


def load(tmp_path, environ, argv=None):
    settings, notices = load_settings(argv or {}, environ, tmp_path)
    return settings, [notice.text for notice in notices]


SAMPLES = {
    "LLMSERVER_BIND_ADDRESS": "127.0.0.1:8443",
    "LLMSERVER_MASTER_KEY": KEY.hex(),
    "LLMSERVER_ENCRYPTION_KEY": KEY.hex(),
    "LLMRING_DATABASE_POOL_SIZE": "5",
    "LLMRING_DATABASE_POOL_OVERFLOW": "5",
    "LLMRING_CACHE_TTL": "60",
    "LLMRING_REGISTRY_BASE_URL": "https://example.org/registry/",
    "LLM_WORKERS": "2",
    "RATE_LIMIT_QPS": "3",
}


@pytest.mark.parametrize("alias", [alias for setting in DECLARED for alias in setting.aliases])
def test_every_alias_is_taken_and_reported_once(tmp_path, alias):
    binary = tmp_path / "llama-server"
    binary.write_text("")
    sample = SAMPLES.get(alias, str(binary) if "BIN" in alias else "one")
    settings, notices = load(tmp_path, {alias: sample})
    name = next(setting.name for setting in DECLARED if alias in setting.aliases)
    assert f"{alias} is taken as STENTOR_{name}." in notices
    assert notices.count(f"{alias} is taken as STENTOR_{name}.") == 1
    assert any(alias in origin for origin in settings.origins.values())


def test_two_names_with_one_value_are_fine(tmp_path):
    encoded = base64.b64encode(KEY).decode()
    settings, _ = load(tmp_path, {"STENTOR_MASTER_KEY": KEY.hex(), "LLMSERVER_MASTER_KEY": encoded})
    assert settings.vault.master_key == KEY.hex()


@pytest.mark.parametrize(
    "environ",
    [
        {"STENTOR_INSTANCES": "2", "LLM_WORKERS": "3"},
        {"LLMSERVER_MODEL_CACHE": "/a", "LLMSERVER_HF_CACHE": "/b"},
        {"STENTOR_PORT": "4000", "LLMSERVER_BIND_ADDRESS": "127.0.0.1:8443"},
        {"STENTOR_MASTER_KEY": "00" * 32, "LLMSERVER_ENCRYPTION_KEY": "11" * 32},
    ],
)
def test_two_names_with_different_values_are_refused_by_name(tmp_path, environ):
    with pytest.raises(SettingsError, match="to different values") as refusal:
        load(tmp_path, environ)
    assert all(name in str(refusal.value) for name in environ)
    assert "00" * 32 not in str(refusal.value)


def test_the_command_line_overrides_an_alias_without_a_conflict(tmp_path):
    settings, _ = load(tmp_path, {"LLMSERVER_BIND_ADDRESS": "0.0.0.0:8443"}, {"port": "4001", "host": "127.0.0.1"})
    assert (settings.host, settings.port) == ("127.0.0.1", 4001)


def test_bind_address_takes_an_ipv6_address(tmp_path):
    settings, _ = load(tmp_path, {"STENTOR_BIND_ADDRESS": "[::1]:4001"})
    assert (settings.host, settings.port) == ("::1", 4001)


@pytest.mark.parametrize("text", ["4000", ":4000", "::1:4000", "host:", "host:x", "host:99999"])
def test_a_broken_bind_address_is_refused(tmp_path, text):
    with pytest.raises(SettingsError, match=r"LLMSERVER_BIND_ADDRESS \(environment\) must"):
        load(tmp_path, {"LLMSERVER_BIND_ADDRESS": text})


COMMON = {"API_KEY": "sk-common", "WORKERS": "2", "LOG_LEVEL": "debug", "MODEL_PATH": "/m/x.gguf"}


def test_common_words_alone_do_not_count(tmp_path):
    settings, notices = load(tmp_path, COMMON)
    assert settings.api_key is None
    assert settings.instances == 1
    assert settings.values["LOG_LEVEL"] == "INFO"
    assert settings.values["MODEL_PATH"] is None
    assert notices == []


@pytest.mark.parametrize(
    "beside", [{"STENTOR_COMPAT": "lmserv"}, {"LLM_WORKERS": "2"}, {"LLM_MODEL_PATH": "/m/x.gguf"}]
)
def test_common_words_count_in_lmserv_company(tmp_path, beside):
    settings, notices = load(tmp_path, {**COMMON, **beside})
    assert settings.api_key == "sk-common"
    assert settings.instances == 2
    assert settings.values["LOG_LEVEL"] == "DEBUG"
    assert str(settings.values["MODEL_PATH"]) == "/m/x.gguf"
    assert "API_KEY is taken as STENTOR_API_KEY." in notices


def test_common_words_count_when_the_file_says_so(tmp_path):
    (tmp_path / "stentor.toml").write_text('compat = "lmserv"\n')
    assert load(tmp_path, COMMON)[0].api_key == "sk-common"
    assert load(tmp_path, {**COMMON, "STENTOR_COMPAT": "none"})[0].api_key is None
    assert load(tmp_path, {**COMMON, "STENTOR_COMPAT": "none"}, {"compat": "lmserv"})[0].api_key == "sk-common"


def test_common_words_count_when_the_command_line_says_so(tmp_path):
    assert load(tmp_path, COMMON, {"compat": "lmserv"})[0].api_key == "sk-common"
    assert load(tmp_path, {**COMMON, "STENTOR_COMPAT": "lmserv"}, {"compat": "none"})[0].api_key is None


@pytest.mark.parametrize("environ", [{"STENTOR_API_KEY": "changeme"}, {"API_KEY": "changeme", "LLM_WORKERS": "1"}])
def test_the_placeholder_key_is_refused(tmp_path, environ):
    with pytest.raises(SettingsError, match="placeholder"):
        load(tmp_path, environ)


@pytest.mark.parametrize("key", ["with space", "x" * 256, "ümlaut", "tab\there"])
def test_keys_that_can_not_travel_are_refused_without_repeating_them(tmp_path, key):
    with pytest.raises(SettingsError, match="1 to 255 visible") as refusal:
        load(tmp_path, {"STENTOR_API_KEY": key})
    assert key not in str(refusal.value)


def test_a_broken_master_key_is_refused_without_repeating_it(tmp_path):
    with pytest.raises(SettingsError, match="64 hex digits or as base64") as refusal:
        load(tmp_path, {"LLMSERVER_MASTER_KEY": "hunter2"})
    assert "hunter2" not in str(refusal.value)


def test_unused_names_are_told(tmp_path):
    for name in UNUSED_ALIASES:
        assert load(tmp_path, {name: "x"})[1] == [f"{name} is accepted and not used: {UNUSED_ALIASES[name]}."]


def test_llama_cli_means_the_server_beside_it(tmp_path):
    cli = tmp_path / "llama-cli"
    cli.write_text("")
    settings, notices = load(tmp_path, {"LLM_BIN_PATH": str(cli)})
    assert settings.runtime.engine_bin is None
    assert "embedded engine is used" in notices[-1]
    (tmp_path / "llama-server").write_text("")
    settings, notices = load(tmp_path, {"LLM_BIN_PATH": str(cli)})
    assert settings.runtime.engine_bin == tmp_path / "llama-server"
    assert "beside it is used" in notices[-1]


def test_a_missing_engine_binary_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"LLAMA_BIN \(environment\) names /nowhere/llama-server, which does not"):
        load(tmp_path, {"LLAMA_BIN": "/nowhere/llama-server"})
