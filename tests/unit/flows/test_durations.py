"""``keep_alive`` as Ollama's clients write it."""

import math

import pytest

from stentor.core.errors import Refused
from stentor.flows.dialects.durations import read_keep_alive
from stentor.flows.dialects.ollama_request import Preload, read_chat, read_embed, read_generate, read_old_embeddings

GOOD = {
    "5m": 300, "0": 0, "0s": 0, "-1": math.inf, "-1m": math.inf, "1h30m": 5400, "1.5h": 5400, "300ms": 0.3, "90": 90,
    "2h45m10.5s": 9910.5, "+5s": 5, "10us": 1e-5, ".5s": 0.5, "1.s": 1, "999999999999999999h": math.inf,
}  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), GOOD.items())
def test_texts(text: str, seconds: float) -> None:
    assert read_keep_alive(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("number", "seconds"), [(0, 0), (300, 300), (0.5, 0.5), (-1, math.inf), (1e300, math.inf)])
def test_numbers(number: float, seconds: float) -> None:
    assert read_keep_alive(number) == seconds


@pytest.mark.parametrize("nothing", [None, ""])
def test_nothing(nothing: str | None) -> None:
    assert read_keep_alive(nothing) is None


@pytest.mark.parametrize(
    "text", ["soon", "5 m", "5d", "m", "-", ".", "1e3", "0x5s", "٥m", "5m\n", "nan", "inf", "1" * 40, "1s" * 5000]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="keep_alive") as refusal:
        read_keep_alive(text)
    assert (refusal.value.code, refusal.value.param, len(refusal.value.message) < 250) == (
        "invalid_request", "keep_alive", True
    )  # fmt: skip


def test_every_request_has_it() -> None:
    chat = read_chat(b'{"model":"m","keep_alive":"5m","messages":[{"role":"user","content":"x"}]}')
    said = read_generate(b'{"model":"m","keep_alive":0,"prompt":"x"}')
    raw = read_generate(b'{"model":"m","keep_alive":1.5,"prompt":"x","raw":true}')
    embed = read_embed(b'{"model":"m","keep_alive":"-1","input":"x"}')
    old = read_old_embeddings(b'{"model":"m","keep_alive":7,"prompt":"x"}')
    plain = read_chat(b'{"model":"m","messages":[{"role":"user","content":"x"}]}')
    assert not any(isinstance(each, Preload) for each in (chat, said, raw, plain))
    asks = [each if not hasattr(each, "ask") else each.ask for each in (chat, said, raw, embed, old, plain)]
    assert [ask.keep_s for ask in asks] == [300, 0, 1.5, math.inf, 7, None]
    loads = [read_chat(b'{"model":"m"}'), read_generate(b'{"model":"m","keep_alive":"0m"}')]
    assert [(each.keep_s, each.leave) for each in loads if isinstance(each, Preload)] == [(None, False), (0, True)]
