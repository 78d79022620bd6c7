"""When an upstream's answer has begun to say something."""

import asyncio
import json
from typing import Any

import pytest

from stentor.flows.failure import EngineFailed
from stentor.flows.upstreams.remote import RemoteAnswer


class Cut:
    """An upstream's answer of one read, after which nothing more comes."""

    status = 200
    content_type = "text/event-stream"

    def __init__(self, *deltas: dict[str, Any]) -> None:
        frames = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        self.reads = [b"".join(b"data: " + json.dumps(frame).encode() + b"\n\n" for frame in frames)]

    async def read(self) -> bytes:
        return self.reads.pop() if self.reads else b""


def begins(*deltas: dict[str, Any]) -> bool:
    try:
        asyncio.run(RemoteAnswer(Cut(*deltas), None).hold_first())  # type: ignore[arg-type]
    except EngineFailed:
        return False
    return True


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "content", "refusal"])
def test_a_thought_is_a_first_word_under_either_name(name: str) -> None:
    assert begins({"role": "assistant", name: ""}, {name: "hm"})
    assert not begins({"role": "assistant", "content": ""}, {name: ""})
