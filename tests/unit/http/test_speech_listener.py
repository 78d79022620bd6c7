"""What a listener hears of a speech that ends early."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from stentor.core.errors import Refused
from stentor.flows.speech.request import read_speech
from stentor.http.openai.speech import _Listener


class Heard(SimpleNamespace):
    """A connection that writes down what is sent."""

    request_id, received_s, fail = "r", 0.0, None

    def __init__(self) -> None:
        super().__init__(sent=[], end_stream=None, answer=None)

    async def write(self, data: bytes) -> None:
        self.sent.append(data)

    async def cut(self) -> None:
        self.sent.append(None)


@pytest.mark.parametrize("form", ["audio", "sse"])
async def test_a_defect_is_never_written_into_the_sound(form: str) -> None:
    heard: Any = Heard()
    ask = read_speech(b'{"model":"m","input":"x","stream_format":"%b"}' % form.encode())
    _Listener(cast(Any, heard), ask)
    await heard.fail(Refused("internal_error", "The server failed on this request."))
    *events, end = heard.sent
    assert end is None
    assert [b"internal_error" in event for event in events] == ([True] if form == "sse" else [])
