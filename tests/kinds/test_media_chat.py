"""Images and sounds in conversations, through real projectors; and what models can't do, named."""

import json
from typing import Any

import openai
import pytest

from tests import media
from tests.http.harness import CHAT, Gate

Json = dict[str, Any]
IMAGE, SOUND = media.image_part(media.png(40, 30)), media.audio_part(media.wav(1.0))
TEXT = {"type": "text", "text": "What is it?"}


def ask(model: str, *parts: Json, **fields: Any) -> Json:
    messages = [{"role": "user", "content": [TEXT, *parts]}]
    return {"model": model, "messages": messages, "max_tokens": 3, "temperature": 0, **fields}


def chat(gate: Gate, model: str, *parts: Json, **fields: Any) -> Any:
    return gate.ask("POST", CHAT, ask(model, *parts, **fields))


@pytest.mark.parametrize(("model", "part"), [("eyes", IMAGE), ("ears", SOUND), ("omni", IMAGE), ("omni", SOUND)])
def test_media_reach_the_model_and_are_booked(gate: Gate, model: str, part: Json) -> None:
    plain, rich = chat(gate, model), chat(gate, model, part)
    assert (plain.status, rich.status) == (200, 200), rich.body
    used = rich.json()["usage"]["prompt_tokens"]
    # A picture is four patches here, a sound 150 tokens for each half minute that was begun.
    assert used - plain.json()["usage"]["prompt_tokens"] >= (150 if part is SOUND else 4)
    event = gate.event(rich.request_id)
    assert (event["input_tokens"], event["estimated"], event["status"]) == (used, False, "completed")


def test_several_media_and_streams_work_too(gate: Gate, client: openai.OpenAI) -> None:
    body = ask("omni", IMAGE, SOUND, IMAGE, stream=True, stream_options={"include_usage": True})
    chunks = list(client.chat.completions.create(**body))
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.prompt_tokens > 160


@pytest.mark.parametrize(
    ("model", "part", "lacks"), [("eyes", SOUND, "audio"), ("ears", IMAGE, "image"), ("tiny", IMAGE, "image")]
)
def test_what_a_model_cant_take_in_is_named(gate: Gate, model: str, part: Json, lacks: str) -> None:
    answer = chat(gate, model, part)
    assert answer.status == 400
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("missing_ability", "model")
    assert f"'{lacks}'" in error["message"]


@pytest.mark.parametrize(
    "part",
    [
        media.image_part(b"GIF89a" + b"\x04\0\x04\0" + b"rubbish"),
        media.image_part(media.png()[:60]),
        media.image_part(media.jpeg_head(8, 8)),
        media.image_part(media.webp_head(8, 8), "webp"),
        media.image_part(media.png(claimed=(60_000, 60_000))),
        media.image_part(media.png(claimed=(7_000, 7_000))),
        media.image_part(b"<svg/>", "svg+xml"),
        media.image_part(media.wav(0.1)),
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!!"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
        {"type": "image_url"},
        media.audio_part(media.flac_head(16_000), "flac"),
        media.audio_part(media.flac_head(2**34), "flac"),
        media.audio_part(media.mp3(2, claimed=2**30), "mp3"),
        media.audio_part(media.png()),
        {"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "midi"}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
    ],
    ids=lambda part: json.dumps(part)[:60],
)
def test_hostile_media_are_refused_and_the_engine_lives(gate: Gate, part: Json) -> None:
    assert chat(gate, "omni").status == 200
    before = gate.slot("omni")
    answer = chat(gate, "omni", part)
    assert answer.status == 400, answer.body
    assert answer.json()["error"]["code"] == "invalid_request"
    assert chat(gate, "omni", IMAGE, SOUND).status == 200
    after = gate.slot("omni")
    assert (after["pid"], after["generation"]) == (before["pid"], before["generation"])


def test_too_much_for_the_context_is_refused(gate: Gate) -> None:
    answer = chat(gate, "ears", media.audio_part(media.wav(150.0, rate=8000)))
    assert answer.status == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_models_say_what_they_are_before_and_after_their_start(gate: Gate) -> None:
    cards = {card["id"]: card for card in gate.ask("GET", "/v1/models").json()["data"]}
    assert {name: (card["type"], card["abilities"]) for name, card in cards.items()} == {
        "minilm": ("embedding", ["embedding"]),
        "shortened": ("embedding", ["embedding", "dimensions"]),
        "ranker": ("reranker", ["rerank"]),
        "gazer": ("vision-embedding", ["embedding", "image"]),
        "mean": ("vision-embedding", ["embedding"]),
        "tiny": ("text", ["text"]),
        "picky": ("text", ["text"]),
        "eyes": ("vision", ["text", "image"]),
        "ears": ("omni", ["text", "audio"]),
        "omni": ("omni", ["text", "image", "audio"]),
        "recorder": ("audio", ["transcription"]),
        "scribe": ("omni", ["text", "image", "audio"]),
        "wrong": ("reranker", ["rerank"]),
        "odd": ("embedding", ["embedding"]),
        "odd-ranker": ("reranker", ["rerank"]),
    }
    assert cards["minilm"]["context_size"] == 256


def test_a_declared_type_that_is_wrong_is_told_to_operators_with_the_found_one(gate: Gate) -> None:
    answer = gate.ask("POST", "/v1/rerank", {"model": "wrong", "query": "a", "documents": ["b"]})
    assert answer.status == 503
    assert "declared as 'reranker'" in answer.json()["error"]["message"]
    reason = gate.slot("wrong")["reason"]
    assert 'type = "reranker"' in reason
    assert "Found was 'text'" in reason
