"""Forwarded headers, believed from the proxies that the operator names and ignored from everybody else."""

import ipaddress
from collections.abc import Sequence

from stentor.http.exchange import Exchange

_HOPS_MAX = 32


class TrustedProxies:
    """Networks whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` say who the client is, and how it came."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks = [ipaddress.ip_network(network, strict=False) for network in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def _trusts(self, address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        parsed = getattr(parsed, "ipv4_mapped", None) or parsed
        return any(parsed.version == network.version and parsed in network for network in self._networks)

    def apply(self, exchange: Exchange) -> None:
        """Put the client's own address and way into the exchange, if a trusted proxy passed it on."""
        if exchange.address is None or not self._trusts(exchange.address):
            return
        hops: list[str] = []
        scheme = None
        for name, value in exchange.headers:
            if name == b"x-forwarded-for":
                hops += [hop.strip() for hop in value.decode("latin-1").split(",")]
            elif name == b"x-forwarded-proto":
                # The last word is the nearest proxy's; what stands before it may be the client's own invention.
                scheme = value.decode("latin-1").rpartition(",")[2].strip().lower()
        if scheme in ("http", "https"):
            exchange.secure = scheme == "https"
        for hop in reversed(hops[-_HOPS_MAX:]):
            address = _without_port(hop)
            if address is None:
                return
            exchange.address = address
            if not self._trusts(address):
                return


def _without_port(hop: str) -> str | None:
    """``203.0.113.7:1234`` or ``[2001:db8::1]:1234`` as the address alone; None for what is none."""
    text = hop.strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
