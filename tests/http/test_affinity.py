"""A conversation goes on where it began, as long as there is room."""

from pathlib import Path

import pytest

from tests.http.harness import CHAT, Gate, Json, chat_body, script, until
from tests.serving import Server, scripted_model


def turn(*said: str) -> Json:
    """A turn of a conversation: instructions, and what was said by turns."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
    return chat_body(messages=[{"role": "system", "content": "be brief"}, *messages])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_conversation_stays_with_its_instance(tmp_path: Path, workers: str):
    config = scripted_model(instances=2, parallel=4)
    with Server(tmp_path, config, "--admin-key", DURABILITY="process", GATEWAY_WORKERS=workers) as server:
        gate = Gate(server)

        def where(body: Json, key: str | None = None) -> str:
            return gate.ask("POST", CHAT, body, key=key).headers["x-stentor-instance"]

        busy = gate.open(script({"tokens": 1}, {"sleep": 30}))
        elsewhere = where(turn("first question"))
        assert elsewhere != busy.headers["x-stentor-instance"]
        busy.leave()
        until(gate.running, lambda count: count == 0)
        assert where(turn("first question", "an answer", "second question")) == elsewhere
        stranger = gate.make_key(gate.make_user()["id"])["key"]
        assert {where(turn("another"))} == {where(turn("first question"), stranger)} != {elsewhere}
