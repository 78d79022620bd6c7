"""Where settings come from, and who wins."""

from pathlib import Path

import pytest

from stentor.settings import SettingsError, load_settings
from stentor.settings.compose import show_value
from stentor.settings.declared import BY_NAME, DECLARED


def load(tmp_path, argv=None, environ=None):
    settings, notices = load_settings(argv or {}, environ or {}, tmp_path)
    return settings, [notice.text for notice in notices]


def write(tmp_path, text, name="stentor.toml"):
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_defaults_stand_alone(tmp_path):
    settings, notices = load(tmp_path)
    assert (settings.host, settings.port, settings.gateway_workers) == ("127.0.0.1", 4000, 1)
    assert settings.data_dir == tmp_path / "data"
    assert settings.model_cache == tmp_path / "data" / "models"
    assert settings.store.url == str(tmp_path / "data" / "stentor.db")
    assert settings.vault.key_file.parent == tmp_path / "data"
    assert settings.body_max_bytes == 32 * 1024 * 1024
    assert notices == []
    assert settings.origins == {}


def test_each_layer_overrides_the_one_before(tmp_path):
    write(tmp_path, "port = 4100\nslot_count = 3\nqueue_max = 5\n")
    environ = {"STENTOR_PORT": "4200", "STENTOR_SLOT_COUNT": "4"}
    settings, _ = load(tmp_path, {"port": "4300"}, environ)
    assert (settings.port, settings.runtime.slot_count, settings.runtime.queue_max) == (4300, 4, 5)
    assert settings.origins["PORT"] == "--port (command line)"
    assert settings.origins["SLOT_COUNT"] == "STENTOR_SLOT_COUNT (environment)"
    assert settings.origins["QUEUE_MAX"] == f"queue_max ({tmp_path / 'stentor.toml'}:3)"


def test_a_command_line_option_that_was_not_given_does_not_count(tmp_path):
    settings, _ = load(tmp_path, {"port": None, "config": None, "data_dir": None}, {"STENTOR_PORT": "4200"})
    assert settings.port == 4200


def test_an_empty_variable_counts_as_not_set(tmp_path):
    settings, _ = load(tmp_path, environ={"STENTOR_PORT": " ", "STENTOR_API_KEY": ""})
    assert settings.port == 4000
    assert settings.api_key is None


def test_the_file_is_found_by_option_then_variable_then_folder(tmp_path):
    write(tmp_path, "port = 4101\n", "one.toml")
    write(tmp_path, "port = 4102\n", "two.toml")
    write(tmp_path, "port = 4103\n")
    write(tmp_path, "port = 4104\n", "data/stentor.toml")
    environ = {"STENTOR_CONFIG": "two.toml"}
    assert load(tmp_path, {"config": "one.toml"}, environ)[0].port == 4101
    assert load(tmp_path, {}, environ)[0].port == 4102
    assert load(tmp_path)[0].port == 4103
    (tmp_path / "stentor.toml").unlink()
    assert load(tmp_path)[0].port == 4104


def test_a_missing_named_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.toml does not exist"):
        load(tmp_path, {"config": "nowhere.toml"})


def test_a_file_found_in_the_data_folder_can_not_move_it(tmp_path):
    write(tmp_path, 'data_dir = "/srv/elsewhere"\n', "data/stentor.toml")
    with pytest.raises(SettingsError, match=r"data_dir .*:1\) names /srv/elsewhere"):
        load(tmp_path)


def test_relative_paths_start_from_the_file_or_the_working_folder(tmp_path):
    file = write(tmp_path, 'data_dir = "d"\n', "etc/stentor.toml")
    assert load(tmp_path, {"config": str(file)})[0].data_dir == tmp_path / "etc" / "d"
    assert load(tmp_path, {}, {"STENTOR_DATA_DIR": "d"})[0].data_dir == tmp_path / "d"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("port = \n", r"not valid TOML: .*line 1"),
        ('\n\nport = "abc"\n', r"port \(.*stentor\.toml:3\) must be a whole number, not 'abc'"),
        ("port = 70000\n", r"from 0 to 65535, not 70000"),
        ("port = true\n", r"must be a whole number, not true/false"),
        ("prot = 1\n", r"prot \(.*:1\) is not a setting; did you mean port\?"),
        ("PORT = 1\n", r"did you mean port\?"),
        ("stentor_port = 1\n", r"did you mean port\?"),
        ('host = "http://localhost"\n', r"must be an address or a host name alone, .* not 'http://localhost'"),
        ('host = "localhost:4000"\n', r"PORT has the port"),
        ("[server]\nport = 1\n", r"server \(.*\) is not a setting; write .* in no table"),
        ("host = 5\n", r"host \(.*:1\) must be text, not a number"),
        ('durability = "fast"\n', r"must be one of power, process, not 'fast'"),
        ('trusted_proxies = "10.0.0.0/33"\n', r"must list addresses or networks"),
        ('public_url = "ftp://x"\n', r"must be an address that starts with http"),
        ("drain_s = nan\n", r"must be a finite number"),
        ("signup = 2\n", r"must be on or off"),
    ],
)
def test_a_bad_file_is_refused_with_line_and_problem(tmp_path, text, problem):
    write(tmp_path, text)
    with pytest.raises(SettingsError, match=problem):
        load(tmp_path)


def test_a_bad_variable_names_itself(tmp_path):
    with pytest.raises(SettingsError, match=r"^STENTOR_PORT \(environment\) must be a whole number, not 'x'\.$"):
        load(tmp_path, environ={"STENTOR_PORT": "x"})


def test_a_bad_option_names_itself(tmp_path):
    with pytest.raises(SettingsError, match=r"^--gateway-workers \(command line\) must be from 1 to 64, not 0\.$"):
        load(tmp_path, {"gateway_workers": "0"})


def test_an_unknown_variable_is_told_with_the_nearest_name(tmp_path):
    _, notices = load(tmp_path, environ={"STENTOR_PROT": "1", "STENTOR_XYZZY": "1", "OTHER": "1"})
    assert notices == [
        "STENTOR_PROT (environment) is not a setting; did you mean STENTOR_PORT?",
        "STENTOR_XYZZY (environment) is not a setting",
    ]


def test_settings_are_frozen_and_show_no_secret(tmp_path):
    settings, _ = load(tmp_path, environ={"STENTOR_API_KEY": "sk-very-secret", "STENTOR_MASTER_KEY": "ab" * 32})
    assert "sk-very-secret" not in repr(settings)
    assert "ab" * 32 not in repr(settings)
    with pytest.raises(AttributeError):
        settings.port = 1


def test_children_get_the_environment_without_our_settings(tmp_path):
    environ = {"PATH": "/bin", "PIP_INDEX_URL": "x", "STENTOR_MASTER_KEY": "ab" * 32, "LLMSERVER_SESSION_KEY": "s"}
    environ |= {"API_KEY": "k", "LLMRING_REDIS_URL": "redis://x"}
    assert load(tmp_path, environ=environ)[0].environ == {"PATH": "/bin", "PIP_INDEX_URL": "x"}


def test_every_declared_setting_has_a_value_of_its_own(tmp_path):
    settings, _ = load(tmp_path)
    assert set(settings.values) >= {setting.name for setting in DECLARED}
    assert len({setting.name for setting in DECLARED}) == len(DECLARED)
    spelled = [name for setting in DECLARED for name in (*setting.aliases, *setting.common_aliases)]
    assert len(spelled) == len(set(spelled))


def test_a_file_with_secrets_that_others_read_is_told(tmp_path):
    file = write(tmp_path, 'api_key = "7f3c9a51e80b4d26a1c5f790"\n')
    assert load(tmp_path)[1] == []
    file.chmod(0o644)
    assert "chmod 600" in load(tmp_path)[1][0]


def test_an_open_address_without_tls_is_told(tmp_path):
    assert "without TLS" in load(tmp_path, {"host": "0.0.0.0"})[1][0]
    assert not any(
        "without TLS" in text for text in load(tmp_path, {"host": "0.0.0.0", "trusted_proxies": "10.0.0.1"})[1]
    )
    assert load(tmp_path, {"host": "::1"})[1] == []


def test_half_of_tls_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="both TLS_CERT and TLS_KEY"):
        load(tmp_path, {"tls_cert": "cert.pem"})


def test_cors_star_is_told(tmp_path):
    assert "every website" in load(tmp_path, {"cors_origins": "*"})[1][0]


def test_slot_ports_must_fit(tmp_path):
    with pytest.raises(SettingsError, match="lead up to port 65536"):
        load(tmp_path, {"slot_first_port": "65530", "slot_count": "7"})


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("sqlite://a/b.db", "a/b.db"),
        ("sqlite:b.db?mode=rwc", "b.db"),
        ("sqlite:///srv/b.db", "/srv/b.db"),
        ("sqlite:////srv/b.db", "/srv/b.db"),
        ("c.db", "c.db"),
    ],
)
def test_database_addresses_are_read_as_sqlx_does(tmp_path, written, path):
    settings, _ = load(tmp_path, environ={"LLMSERVER_DATABASE_URL": written})
    assert Path(settings.store.url).resolve() == (tmp_path / path).resolve()


@pytest.mark.parametrize("written", ["sqlite::memory:", "sqlite://", "mysql://x/y"])
def test_databases_that_can_not_be_are_refused(tmp_path, written):
    with pytest.raises(SettingsError, match=r"STENTOR_DATABASE_URL \(environment\) must"):
        load(tmp_path, environ={"STENTOR_DATABASE_URL": written})


def test_allowed_hosts_hold_what_the_server_was_told_it_is(tmp_path):
    settings, _ = load(tmp_path, {"allowed_hosts": "a.example,b.example", "public_url": "https://c.example:8443"})
    assert settings.allowed_hosts == ("a.example", "b.example", "127.0.0.1", "c.example")


def test_tls_needs_both_files_and_takes_away_the_warning(tmp_path):
    with pytest.raises(SettingsError, match="TLS needs both TLS_CERT and TLS_KEY"):
        load(tmp_path, {"tls_cert": "cert.pem"})
    open_to_all = {"host": "0.0.0.0"}
    assert any("without TLS" in text for text in load(tmp_path, open_to_all)[1])
    told = load(tmp_path, {**open_to_all, "tls_cert": "cert.pem", "tls_key": "key.pem"})[1]
    assert not any("TLS" in text or "tls" in text for text in told)


@pytest.mark.parametrize(
    ("key", "warned"),
    [("1", True), ("hunter2", True), ("a" * 60, True), ("sk-0123456789", True), ("7f3c9a51e80b4d26a1c5f790", False)],
)
def test_a_key_that_can_be_guessed_is_warned_about_and_not_shown(tmp_path, key, warned):
    told = [text for text in load(tmp_path, environ={"STENTOR_API_KEY": key})[1] if "API_KEY" in text]
    assert bool(told) == warned
    assert not any(f"{key} " in text or f"'{key}'" in text for text in told if len(key) > 1)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://ann:pass@db/x", "postgresql://********@db/x"),
        ("postgresql://ann:p@ss@db/x", "postgresql://********@db/x"),
        ("postgresql://ann:p/s@db/x", "postgresql://********@db/x"),
        ("postgresql://db/x?user=ann&password=hush", "postgresql://db/x?user=ann&password=********"),
        ("postgresql://db/x?PassFile=/h&sslmode=require", "postgresql://db/x?PassFile=********&sslmode=require"),
        ("postgresql://db/x?sslmode=require", "postgresql://db/x?sslmode=require"),
        ("plain@text", "plain@text"),
    ],
)
def test_nobody_reads_a_password_in_an_address(address: str, shown: str) -> None:
    assert show_value(BY_NAME["DATABASE_URL"], address) == shown
