"""Addresses (URLs) that somebody else wrote, read strictly: what two programs could read in two ways is refused.

Only ``http`` and ``https``; no user names, no backslashes, no characters outside ASCII, no number in any other spelling
than that of RFC 3986 (``127.1``, ``0x7f000001`` and ``2130706433`` are all 127.0.0.1 to somebody).
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from stentor.core.addresses import Address, AllowList, find_objection
from stentor.core.errors import Refused

URL_MAX_CHARS = 4096
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FIRST_FREE_PORT = 1024
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>/[^?#]*)?(?P<query>\?[^#]*)?(?P<fragment>#.*)?"
)
_AUTHORITY = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_CHARS = re.compile(r"[!-~]+")


class EgressRefused(Refused):
    """An address that this server doesn't connect to; the text names what is wrong, never where a name leads."""

    def __init__(self, problem: str) -> None:
        super().__init__("address_not_allowed", problem)


class Target(NamedTuple):
    """One address, taken apart. ``host`` is lower-case and without brackets, ``literal`` set if it is a number."""

    scheme: str
    host: str
    port: int
    path: str
    literal: Address | None

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address again, in one spelling."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"


def read_target(url: str, schemes: tuple[str, ...] = ("http", "https")) -> Target:
    """``url`` taken apart, its fragment dropped. Raises EgressRefused for anything that isn't plain."""
    if len(url) > URL_MAX_CHARS:
        raise EgressRefused(f"The address has {len(url)} characters; at most {URL_MAX_CHARS} are accepted.")
    if not _CHARS.fullmatch(url) or "\\" in url:
        raise EgressRefused(
            "The address holds spaces, backslashes or characters outside ASCII. Write names in their xn-- form."
        )
    parts = _URL.fullmatch(url)
    if parts is None:
        raise EgressRefused("That isn't an address like https://host/path.")
    scheme = parts["scheme"].lower()
    if scheme not in schemes:
        raise EgressRefused(f"Addresses must begin with {' or '.join(f'{each}://' for each in schemes)}.")
    if "@" in parts["authority"]:
        raise EgressRefused("The address holds a user name or password; credentials don't belong into addresses.")
    authority = _AUTHORITY.fullmatch(parts["authority"])
    if authority is None:
        raise EgressRefused("The address names no host, or one with characters that don't belong there.")
    host, literal = _read_host(authority["host"].lower())
    port = int(authority["port"]) if authority["port"] else _DEFAULT_PORTS[scheme]
    if not 1 <= port <= 65535:
        raise EgressRefused(f"The address has port {port}; ports are 1 to 65535.")
    return Target(scheme, host, port, (parts["path"] or "/") + (parts["query"] or ""), literal)


def check_base(url: str) -> None:
    """Raises EgressRefused for an address that no path can be put behind; a credential in a query is sealed nowhere."""
    read_target(url)
    if "?" in url or "#" in url:
        raise EgressRefused(
            "The address goes on after its path ('?' or '#'), but paths are put behind it. A credential is said apart."
        )


def _read_host(text: str) -> tuple[str, Address | None]:
    try:
        if text.startswith("["):
            six = IPv6Address(text[1:-1])
            return six.compressed, six
        if _NUMBER.fullmatch(text.rstrip(".").rpartition(".")[2]):
            four = IPv4Address(text)
            return str(four), four
    except AddressValueError:
        raise EgressRefused("The address has a host that is a number, but not in the usual spelling.") from None
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise EgressRefused("The address names a host that isn't a well-formed name.")
    return text, None


def check_target(target: Target, allowed: AllowList) -> None:
    """Raises EgressRefused for what is known before a name is looked up: numbers that aren't public, odd ports."""
    if allowed.allows_host(target.host):
        return
    if target.literal is not None:
        if allowed.allows_address(target.literal):
            return
        check_address(target.literal, allowed)
    if target.host == "localhost" or target.host.endswith(".localhost"):
        raise EgressRefused("The address leads to this machine, which this server doesn't connect to for others.")
    if target.port < _FIRST_FREE_PORT and target.port not in _DEFAULT_PORTS.values():
        raise EgressRefused(f"Port {target.port} belongs to another service; use 80, 443, or one from 1024 on.")


def check_address(address: Address, allowed: AllowList) -> None:
    """Raises EgressRefused unless ``address`` is public or allowed."""
    if find_objection(address) is not None and not allowed.allows_address(address):
        raise EgressRefused(
            "The address leads to a machine that isn't public. An administrator can allow it with EGRESS_ALLOW."
        )
