"""Who the client is behind proxies: the last hop that isn't a trusted proxy, and nobody's own words."""

import pytest

from stentor.core.operator import OperatorCall
from stentor.http.loopback import _Within
from stentor.http.proxies import TrustedProxies


def apply(client: str, headers: list[tuple[bytes, bytes]], *networks: str) -> tuple[str, str]:
    exchange = _Within(OperatorCall("GET", "/", b"", b"", address=client))
    exchange.headers = headers
    TrustedProxies(networks or ("10.0.0.0/8", "::1/128")).apply(exchange)
    return str(exchange.address), "https" if exchange.secure else "http"


FOR, PROTO = b"x-forwarded-for", b"x-forwarded-proto"


@pytest.mark.parametrize(
    ("client", "headers", "expected"),
    [
        ("192.0.2.1", [(FOR, b"8.8.8.8"), (PROTO, b"https")], ("192.0.2.1", "http")),
        ("10.0.0.1", [], ("10.0.0.1", "http")),
        ("10.0.0.1", [(FOR, b"8.8.8.8"), (PROTO, b"https")], ("8.8.8.8", "https")),
        ("10.0.0.1", [(FOR, b"127.0.0.1, 8.8.8.8, 10.0.0.2")], ("8.8.8.8", "http")),
        ("10.0.0.1", [(FOR, b"127.0.0.1"), (FOR, b"8.8.8.8")], ("8.8.8.8", "http")),
        ("10.0.0.1", [(FOR, b"8.8.8.8, nonsense")], ("10.0.0.1", "http")),
        ("10.0.0.1", [(FOR, b"10.0.0.9")], ("10.0.0.9", "http")),
        ("10.0.0.1", [(FOR, b"8.8.8.8:1234")], ("8.8.8.8", "http")),
        ("::1", [(FOR, b"[2001:db8::7]:80")], ("2001:db8::7", "http")),
        ("::ffff:10.0.0.1", [(FOR, b"8.8.8.8")], ("8.8.8.8", "http")),
        ("10.0.0.1", [(PROTO, b"https, http")], ("10.0.0.1", "http")),
        ("10.0.0.1", [(PROTO, b"gopher")], ("10.0.0.1", "http")),
    ],
)
def test_the_client_behind_a_proxy(client, headers, expected):
    assert apply(client, headers) == expected
