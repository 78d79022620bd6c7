"""What people meet who come from other servers, or type a command for the first time."""

import socket
import threading

import pytest

from stentor import cli
from stentor.cli import root


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("run", "llama3.2"), "Here it is `stentor chat`."),
        (("pull", "llama3.2"), "Here it is `stentor models add`."),
        (("list",), "Here it is `stentor models list`."),
        (("status",), "Here it is `stentor ps` and `stentor doctor`."),
        (("key", "list"), "Here it is `stentor keys`."),
        (("keys", "delete", "k1"), "Here it is `stentor keys revoke`."),
        (("users", "rm", "ann"), "`stentor users set NAME --inactive` shuts them out"),
        (("import", "litellm", "config.yaml"), "docs/guide/first-steps.md"),
        (("usge",), "'usage'"),
    ],
)
def test_words_of_other_programs_lead_to_a_command(stentor, typed, said):
    status, out, err = stentor(*typed)
    assert (status, out) == (2, "")
    assert said in err


def test_the_list_of_commands_is_not_cut(stentor):
    status, out, _ = stentor("--help")
    assert status == 0
    assert "..." not in out.partition("Commands:")[2]
    assert "Begin with `stentor up`." in out
    assert "--queue-max" in stentor("up", "--help")[1]


def test_money_can_be_taken_off_a_balance(admin, stentor):
    admin.answers["POST /admin/api/users/ann/topup"] = 200, {"balance_nano": 0}
    assert stentor("users", "topup", "ann", "-2.50", "--note", "refund")[0] == 0
    assert admin.calls[-1].body == {"amount_nano": -2_500_000_000, "note": "refund"}
    assert stentor("users", "topup", "ann", "2.50", "--nope")[0] == 2


@pytest.mark.parametrize("command", ["revoke", "rotate", "limit"])
def test_a_key_in_place_of_its_id_is_told_and_not_repeated(admin, stentor, command):
    status, out, err = stentor("keys", command, "sk-secretsecretsecret")
    assert (status, out) == (2, "")
    assert "`stentor keys list` has the id" in err
    assert "secretsecret" not in err
    assert admin.calls == []


def test_an_expired_key_is_not_listed_as_active(admin, stentor):
    key = {"id": "k1", "name": "ci", "hint": "abcd", "scopes": [], "expires_us": 1_000_000, "revoked_us": None}
    admin.answers["GET /admin/api/api-keys"] = 200, {"data": [key], "has_more": False, "next": None}
    out = stentor("keys", "list")[1]
    assert "expired" in out
    assert "active" not in out


def test_the_audit_shows_json_and_of_a_change_what_differs(admin, stentor):
    entry = {
        "created_us": 1,
        "action": "user_change",
        "before": {"name": "ann", "active": True},
        "after": {"name": "ann", "active": False},
    }
    admin.answers["GET /admin/api/audit"] = 200, {"data": [entry], "has_more": False, "next": None}
    assert '{"active":false}' in stentor("audit")[1]


def test_doctor_finds_what_models_and_tls_name_and_is_not_there(stentor, tmp_path):
    (tmp_path / "stentor.toml").write_text(
        'tls_cert = "no.pem"\ntls_key = "no.key"\n'
        '[[models]]\nid = "mine"\nengine = "command"\ncommand = ["./serve-it", "${PORT}"]\n'
        '[[models]]\nid = "big"\nengine = "llama-server"\nbinary = "no-server"\nsource = "file:big.gguf"\n'
        'fallbacks = ["mine", "gpt-5"]\n'
    )
    status, out, _ = stentor("doctor")
    assert status == 1
    assert "✗ tls: TLS can't be served" in out
    assert "✗ model mine: The program ./serve-it is not there or not executable." in out
    assert "✓ model mine" not in out
    assert f"✗ model big: The program {tmp_path}/no-server is not there" in out
    assert "! model big: No model of the settings is called gpt-5, which it falls back to." in out


def test_ctrl_c_while_the_command_line_loads_is_no_traceback(monkeypatch):
    def interrupt(_name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", interrupt)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


def test_a_narrow_terminal_gets_blocks_with_whole_ids(admin, stentor, monkeypatch):
    user = {"id": "01a1fff4-61a4-7e28-a6df-1b251957cd3b", "name": "ann", "tier_id": "sub", "active": True}
    admin.answers["GET /admin/api/users"] = 200, {"data": [user, user], "next": None}
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "70")
    narrow = stentor("users", "list")[1]
    assert narrow.count("id       01a1fff4-61a4-7e28-a6df-1b251957cd3b\nname     ann\n") == 2
    assert "email" not in narrow
    monkeypatch.setenv("COLUMNS", "160")
    wide = stentor("users", "list")[1]
    assert wide.count("01a1fff4-61a4-7e28-a6df-1b251957cd3b") == 2
    assert "name     ann" not in wide


def test_another_folder_than_the_servers_is_told(stentor, tmp_path):
    status, out, err = stentor("keys", "list")
    assert (status, out) == (0, "")
    assert err.startswith(f"stentor: {tmp_path}/data is new, nothing was kept there before.")
    assert "--data-dir" in err
    assert "is new" not in stentor("keys", "list")[2]


def test_no_color_is_heard(stentor, monkeypatch):
    seen = []
    monkeypatch.setattr(root.root, "main", lambda **given: seen.append(given["color"]))
    stentor("version")
    monkeypatch.setenv("NO_COLOR", "1")
    stentor("version")
    assert seen == [None, False]


def test_a_webhooks_secret_is_alone_on_stdout(admin, stentor):
    admin.answers["POST /admin/api/webhooks"] = 200, {"name": "ops", "secret": "whsec_x"}
    status, out, err = stentor("webhooks", "add", "ops", "--url", "https://ops.test/x")
    assert (status, out) == (0, "whsec_x\n")
    assert "shown this once" in err


def test_https_to_a_server_that_speaks_http_is_told(stentor):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        answer = threading.Thread(target=_answer_plainly, args=(server,))
        answer.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/v1"
        status, _, err = stentor("chat", "hi", "--url", url, "--key", "sk-x")
        answer.join()
    assert status == 1
    assert "Does it speak http?" in err


def _answer_plainly(server):
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.recv(65536)


def test_doctor_finds_a_provider_that_the_vault_lacks(stentor, tmp_path):
    (tmp_path / "stentor.toml").write_text(
        '[[models]]\nid = "far"\n[models.remote]\nprovider = "acme"\nprice = {input = 1, output = 2}\n'
    )
    stentor("db", "migrate")
    status, out, _ = stentor("doctor")
    assert status == 1
    assert "✗ model far: The vault has no provider 'acme'.\n    → Run: stentor providers add acme" in out


def test_a_second_start_is_told_of_the_first(stentor, held, monkeypatch):
    """``held`` is held by this very process, which would not tell of itself."""
    monkeypatch.setattr("stentor.app.server.find_holder", lambda _folder: 4242)
    with socket.create_server(("127.0.0.1", 0)) as first:
        status, out, err = stentor("up", "--port", str(first.getsockname()[1]))
    assert (status, out) == (1, "")
    assert f"A Stentor runs on {held} already (process 4242)." in err
