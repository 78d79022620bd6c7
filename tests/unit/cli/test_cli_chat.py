"""Chatting with a server: streamed answers, errors before and after the start, cut answers."""

import http.server
import io
import json
import threading

import pytest

MODELS = {"object": "list", "data": [{"id": "first"}, {"id": "second"}]}


def frame(text):
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"


class Endpoint:
    """Answers ``/v1/models``, and chats with the frames that a test sets."""

    def __init__(self):
        self.frames = [
            frame("Hel"),
            ": a comment\n\n",
            frame("lo"),
            'data: {"choices": [], "usage": {}}\n\n',
            "data: [DONE]\n\n",
        ]
        self.status = 200
        self.asked = []
        self.keys = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments):
                pass

            def _write(self, status, text):
                outer.keys.append(self.headers["Authorization"])
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def do_GET(self):
                self._write(200, json.dumps(MODELS))

            def do_POST(self):
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self._write(outer.status, "".join(outer.frames))

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.close()


def test_one_message_is_answered_and_the_first_model_taken(endpoint, stentor):
    status, out, err = stentor(
        "chat", "hi", "--url", endpoint.url, "--key", "sk-x", "--system", "be kind", "--max-tokens", "9"
    )
    assert (status, out, err) == (0, "Hello\n", "")
    assert endpoint.asked == [
        {
            "model": "first",
            "messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
            "max_tokens": 9,
            "stream": True,
        }
    ]
    assert set(endpoint.keys) == {"Bearer sk-x"}


@pytest.mark.parametrize(
    ("models", "asked"),
    [
        ([("embedder", "embedding"), ("voice", "speech"), ("talker", "text")], "talker"),
        ([("elsewhere", "text"), ("here", "text")], "default"),  # the server knows which of them costs nothing
    ],
)
def test_a_model_that_can_not_talk_is_not_chosen(endpoint, stentor, monkeypatch, models, asked):
    data = [{"id": model, "abilities": [ability]} for model, ability in models]
    monkeypatch.setitem(MODELS, "data", data)
    assert stentor("chat", "hi", "--url", endpoint.url, "--key", "sk-x")[0] == 0
    assert endpoint.asked[0]["model"] == asked


def test_a_key_that_may_use_no_talker_is_told(endpoint, stentor, monkeypatch):
    monkeypatch.setitem(MODELS, "data", [{"id": "voice", "abilities": ["speech"]}])
    assert "no model that can talk" in stentor("chat", "hi", "--url", endpoint.url, "--key", "sk-x")[2]


def test_the_key_comes_from_the_environment(endpoint, stentor, monkeypatch):
    monkeypatch.setenv("STENTOR_API_KEY", "sk-env")
    assert stentor("chat", "hi", "--url", endpoint.url, "--model", "second")[1] == "Hello\n"
    assert endpoint.asked[0]["model"] == "second"
    assert endpoint.keys == ["Bearer sk-env"]


def test_piped_text_is_one_message(endpoint, stentor, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("long\ntext\n"))
    assert stentor("chat", "--url", endpoint.url, "--key", "k")[1] == "Hello\n"
    assert endpoint.asked[0]["messages"] == [{"role": "user", "content": "long\ntext\n"}]


def test_a_conversation_keeps_what_was_said(endpoint, stentor, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stdin", Terminal("one\ntwo\n\n"))
    status, _, _ = stentor("chat", "--url", endpoint.url, "--key", "k")
    assert status == 0
    assert [message["content"] for message in endpoint.asked[1]["messages"]] == ["one", "Hello", "two"]


def test_a_refusal_is_told_in_the_servers_words(endpoint, stentor):
    endpoint.status = 402
    endpoint.frames = [json.dumps({"error": {"message": "The balance is empty.", "code": "insufficient_balance"}})]
    assert stentor("chat", "hi", "--url", endpoint.url, "--key", "k") == (1, "", "stentor: The balance is empty.\n")


def test_an_error_after_the_start_is_told(endpoint, stentor):
    endpoint.frames = [frame("Hel"), 'data: {"error": {"message": "The engine died."}}\n\n']
    status, out, err = stentor("chat", "hi", "--url", endpoint.url, "--key", "k")
    assert (status, out, err) == (1, "Hel", "stentor: The engine died.\n")


def test_a_cut_answer_is_not_taken_for_a_whole_one(endpoint, stentor):
    endpoint.frames = [frame("Hel")]
    status, out, err = stentor("chat", "hi", "--url", endpoint.url, "--key", "k")
    assert (status, out) == (1, "Hel")
    assert "cut off" in err


def test_no_server_says_how_to_start_one(stentor):
    status, _, err = stentor("chat", "hi", "--url", "http://127.0.0.1:1/v1", "--key", "k")
    assert status == 1
    assert "No server answers on http://127.0.0.1:1/v1" in err
    assert "stentor up" in err


def test_a_server_with_another_address_is_told(held, stentor, monkeypatch):
    monkeypatch.setenv("STENTOR_PORT", "1")
    status, _, err = stentor("chat", "hi", "--key", "sk-x")
    assert status == 1
    assert "No server answers on http://127.0.0.1:1/v1" in err
    assert "One runs on this data folder: name with --url" in err


def test_a_broken_address_is_refused(stentor):
    assert "is not an address like" in stentor("chat", "hi", "--url", "localhost:4000", "--key", "k")[2]
