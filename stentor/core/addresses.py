"""Which addresses the server may connect to when somebody else names them. Pure: text in, a reason or nothing out.

Public unicast addresses alone, by the IANA registries of special-purpose addresses (RFC 6890 and its successors), plus
the metadata services of clouds that sit on public ones. An IPv6 address that carries an IPv4 one is judged by that,
or refused with its whole mechanism where nobody needs it any more (6to4, Teredo, IPv4-compatible).
"""

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_V4_REFUSED: tuple[tuple[IPv4Network, str], ...] = tuple(
    (IPv4Network(network), words)
    for network, words in (
        ("0.0.0.0/8", "this host"),
        ("10.0.0.0/8", "a private network"),
        ("100.64.0.0/10", "a provider's shared network"),
        ("127.0.0.0/8", "this machine"),
        ("169.254.0.0/16", "link-local, where clouds keep their metadata"),
        ("172.16.0.0/12", "a private network"),
        ("192.0.0.0/24", "reserved for protocols"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "reserved for AS112"),
        ("192.52.193.0/24", "reserved for AMT"),
        ("192.88.99.0/24", "the 6to4 relay"),
        ("192.168.0.0/16", "a private network"),
        ("192.175.48.0/24", "reserved for AS112"),
        ("198.18.0.0/15", "benchmarks"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
        ("168.63.129.16/32", "a cloud's metadata service"),
    )
)
_V6_PUBLIC = IPv6Network("2000::/3")
_V6_REFUSED: tuple[tuple[IPv6Network, str], ...] = tuple(
    (IPv6Network(network), words)
    for network, words in (
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved for protocols"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "reserved for AS112"),
        ("3fff::/20", "documentation"),
    )
)
_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")


def find_objection(address: Address) -> str | None:
    """What ``address`` is instead of a public one, or None if it is public."""
    if isinstance(address, IPv4Address):
        return next((words for network, words in _V4_REFUSED if address in network), None)
    inner = _embedded(address)
    if inner is not None:
        return find_objection(inner)
    if address not in _V6_PUBLIC or address.scope_id is not None:
        return _describe_local(address)
    return next((words for network, words in _V6_REFUSED if address in network), None)


def _embedded(address: IPv6Address) -> IPv4Address | None:
    if address in _MAPPED or address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return None


def _describe_local(address: IPv6Address) -> str:
    if address.is_loopback:
        return "this machine"
    if address.is_link_local:
        return "link-local"
    if address.is_multicast:
        return "multicast"
    return "not a public address"


class AllowList:
    """What an operator allows beyond public addresses. Raises ValueError for an entry that is none of the kinds."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        self._networks: list[Network] = []
        self._hosts: set[str] = set()
        self._suffixes: list[str] = []
        for entry in entries:
            self._add(entry.strip())

    def _add(self, entry: str) -> None:
        bare = entry[1:-1] if entry.startswith("[") and entry.endswith("]") else entry
        try:
            self._networks.append(ip_network(bare, strict=False))
            return
        except ValueError:
            pass
        if not _HOST.fullmatch(entry) or "/" in entry or entry.replace(".", "").isdigit():
            raise ValueError(f"{entry!r} is neither a host name, nor an address, nor a network like 10.0.0.0/8")
        if entry.startswith("*."):
            self._suffixes.append(entry[1:].lower())
        else:
            self._hosts.add(entry.lower())

    def allows_host(self, host: str) -> bool:
        """Whether ``host`` (lower-case) was allowed by name, wherever it may lie."""
        return host in self._hosts or any(host.endswith(suffix) for suffix in self._suffixes)

    def allows_address(self, address: Address) -> bool:
        """Whether ``address``, or the IPv4 address inside it, lies in an allowed network."""
        inner = _embedded(address) if isinstance(address, IPv6Address) else None
        return any(each in network for network in self._networks for each in (address, inner) if each is not None)


def read_address(text: str) -> Address:
    """The address behind what a resolver said. Raises ValueError."""
    return ip_address(text)
