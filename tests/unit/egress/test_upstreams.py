"""How upstreams are addressed, and what their answers' heads say."""

import time
from email.utils import formatdate

import pytest

from stentor.egress.upstreams import read_retry_after, upstream_headers, upstream_url


@pytest.mark.parametrize(
    ("kind", "base", "wanted"),
    [
        ("openai", "http://10.0.0.5:8000", "http://10.0.0.5:8000/v1/chat/completions"),
        ("openai", "http://10.0.0.5:8000/", "http://10.0.0.5:8000/v1/chat/completions"),
        ("openai", "https://a.example/v1/", "https://a.example/v1/chat/completions"),
        ("openai", "https://a.example/openai", "https://a.example/openai/chat/completions"),
        ("anthropic", "https://a.example", "https://a.example/v1/chat/completions"),
        ("anthropic", "https://a.example/v1", "https://a.example/v1/chat/completions"),
        ("anthropic", "https://a.example/proxy", "https://a.example/proxy/v1/chat/completions"),
    ],
)
def test_a_base_address_may_name_a_version_or_not(kind: str, base: str, wanted: str) -> None:
    assert upstream_url(kind, base, "/v1/chat/completions") == wanted  # type: ignore[arg-type]


def test_each_kind_has_its_own_credential_header() -> None:
    assert upstream_headers("openai", "k") == {"Authorization": "Bearer k"}
    assert upstream_headers("openai", "") == {}
    assert upstream_headers("anthropic", "k")["x-api-key"] == "k"
    assert "x-api-key" not in upstream_headers("anthropic", "")


class Head:
    def __init__(self, **headers: str) -> None:
        self._headers = headers

    def header(self, name: str) -> str:
        return self._headers.get(name.replace("-", "_"), "")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry_after": "7"}, 7),
        ({"retry_after": "1.5"}, 1.5),
        ({"retry_after_ms": "250", "retry_after": "9"}, 0.25),
        ({"retry_after": "-3"}, 0),
        ({"retry_after": "soon"}, 0),
        ({"retry_after": "nan"}, 0),
        ({"retry_after": "inf"}, 0),
        ({"retry_after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
    ],
)
def test_the_wish_to_be_left_alone_is_read_in_every_form(headers: dict[str, str], seconds: float) -> None:
    assert read_retry_after(Head(**headers)) == seconds  # type: ignore[arg-type]
    later = read_retry_after(Head(retry_after=formatdate(time.time() + 30, usegmt=True)))  # type: ignore[arg-type]
    assert 25 < later <= 30
