"""``/v1/messages/count_tokens`` for models that others run: exact where they count, else an estimate that says so."""

from typing import Any

import pytest

from stentor.accounting.tokens import count_tokens
from tests.http.harness import Json
from tests.upstreams.anthropic_upstream import AnthropicUpstream
from tests.upstreams.conftest import TOKEN, Wide
from tests.upstreams.test_anthropic_models import DOT

PATH = "/v1/messages/count_tokens"
TURNS: list[Json] = [{"role": "user", "content": "How many are these?"}]
TOOL = {"name": "look_up", "description": "Find it.", "input_schema": {"type": "object", "properties": {"q": {}}}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DOT}}


def count(wide: Wide, model: str, messages: list[Json] = TURNS, **fields: Any) -> Any:
    return wide.ask("POST", PATH, {"model": model, "messages": messages, **fields})


@pytest.fixture
def upstream(wide: Wide) -> Any:
    wide.claude.reset()
    yield wide.claude
    wide.claude.reset()


def test_an_anthropic_upstream_counts_itself(wide: Wide, upstream: AnthropicUpstream) -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]}]
    answer = count(wide, "claude", turns, system="Be brief.", tools=[TOOL])
    headers, asked = upstream.seen[-1]
    assert answer.json() == {"input_tokens": upstream.count(asked)["input_tokens"]}
    assert (asked["path"], headers["x-api-key"]) == (PATH, TOKEN)
    assert (asked["system"], asked["tools"]) == ("Be brief.", [TOOL])
    assert asked["messages"] == [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, IMAGE]}]
    event = wide.event(answer.headers["x-request-id"])
    assert (event["endpoint"], event["status"], event["cost_nano"]) == (PATH, "completed", 0)


def test_a_second_stentor_counts_itself(wide: Wide) -> None:
    answer = count(wide, "peer")
    assert answer.json() == wide.peer.ask("POST", PATH, {"model": "scripted", "messages": TURNS}).json()
    assert "estimated" not in answer.json()


def test_where_nobody_counts_it_is_an_estimate_that_says_so_and_costs_nothing(wide: Wide) -> None:
    answer = count(wide, "far", system="Be brief.")
    expected = count_tokens("Be brief.\nHow many are these?")
    assert answer.json() == {"input_tokens": expected, "estimated": True}
    event = wide.event(answer.headers["x-request-id"])
    assert (event["status"], event["input_tokens"], event["cost_nano"]) == ("completed", expected, 0)
    assert event["estimated"]


def test_images_are_not_estimated(wide: Wide, upstream: AnthropicUpstream) -> None:
    upstream.status, upstream.body = (
        404,
        {"type": "error", "error": {"type": "not_found_error", "message": "Not found"}},
    )
    answer = count(wide, "claude", [{"role": "user", "content": [IMAGE]}])
    assert (answer.status, answer.json()["error"]["type"]) == (400, "invalid_request_error")
    assert "doesn't offer /v1/messages/count_tokens" in answer.json()["error"]["message"]
    assert count(wide, "claude").json()["estimated"]


@pytest.mark.parametrize(("status", "seen"), [(529, 529), (401, 502), (500, 502)])
def test_trouble_of_an_upstream_is_no_reason_to_guess(
    wide: Wide, upstream: AnthropicUpstream, status: int, seen: int
) -> None:
    upstream.status, upstream.body = status, {"type": "error", "error": {"type": "x", "message": "no"}}
    answer = count(wide, "claude")
    assert answer.status == seen, answer.body
    assert answer.json()["type"] == "error"
