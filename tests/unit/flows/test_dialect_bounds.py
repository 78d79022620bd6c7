"""What a dialect reserves is no less than what its chat would, however it is written."""

import base64
import json

import pytest

from stentor.core.errors import Refused
from stentor.flows.ask import engine_body, read_chat
from stentor.flows.dialects.lmserv import read_lmserv
from stentor.flows.dialects.messages_request import read_messages
from stentor.flows.dialects.ollama_request import OllamaAsk
from stentor.flows.dialects.ollama_request import read_chat as read_ollama
from stentor.flows.dialects.responses_request import read_responses
from tests import media

LONG = "wörter " * 500
IMAGE = base64.b64encode(media.png() + b"\0" * 3000).decode()
TURNS = [
    {"role": "user", "content": LONG},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And?"},
]


def asks():
    chat = read_chat(json.dumps({"model": "m", "messages": TURNS}, ensure_ascii=False).encode())
    body = {"model": "m", "messages": TURNS}
    yield chat, read_messages(json.dumps(body).encode())
    yield chat, read_responses(json.dumps({"model": "m", "input": TURNS}).encode()).ask
    found = read_ollama(json.dumps(body).encode())
    assert isinstance(found, OllamaAsk)
    yield chat, found.ask


def test_the_bound_is_the_chats():
    for chat, ask in asks():
        assert chat.input_bound - 200 <= ask.input_bound <= chat.input_bound + 200
        assert ask.prefix == chat.prefix
        assert (ask.needs, ask.answers, ask.output_asked) == (chat.needs, 1, None)
        assert json.loads(bytes(ask.fields["messages"])) == TURNS


def test_escapes_make_no_prompt_shorter_than_it_is():
    body = b'{"prompt":"' + b"\\u00e9" * 100 + b'"}'
    assert read_lmserv(body).input_bound >= 200


def test_images_are_counted_and_not_as_text():
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": IMAGE}}
    messages = [{"role": "user", "content": [block]}]
    ask = read_messages(json.dumps({"model": "m", "messages": messages}).encode())
    assert (ask.needs, ask.media) == (("text", "image"), 1)
    assert ask.input_bound < 1000
    sent = json.loads(engine_body(ask, engine="llama", upstream_model="m", output_cap=5))
    assert sent["messages"][0]["content"][0]["image_url"]["url"] == f"data:image/png;base64,{IMAGE}"


def test_a_schema_that_is_too_large_is_refused_here_as_well():
    schema = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(5000)}}
    body = {"model": "m", "input": "x", "text": {"format": {"type": "json_schema", "name": "s", "schema": schema}}}
    ask = read_responses(json.dumps(body).encode()).ask
    with pytest.raises(Refused, match="at most"):
        engine_body(ask, engine="llama", upstream_model="m", output_cap=5)
