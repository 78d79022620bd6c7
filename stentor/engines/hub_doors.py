"""Where the hub may send us: the addresses of a name are judged when it is looked up, and those alone connected to.

The operator's own words (the hub's address, a proxy, what outgoing requests are allowed) are trusted. Whoever answers
as the hub may redirect to public addresses; to the operator's network only if the hub itself lies there, and never to
where machines keep their own secrets (link-local addresses, clouds' metadata).
"""

import socket
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from stentor.core.addresses import AllowList, find_objection, read_address
from stentor.engines.hub_attempts import Problem

_PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
Resolve = Callable[..., list[Any]]


class Doors:
    """Looks up names as ``socket.getaddrinfo`` does, for which it stands in."""

    def __init__(
        self, endpoint: str, allow: tuple[str, ...], environ: Mapping[str, str], resolve: Resolve = socket.getaddrinfo
    ) -> None:
        proxies = [text for name, text in environ.items() if name.upper() in _PROXIES]
        self._hub = _host_of(endpoint)
        self._proxies = {_host_of(text if "://" in text else f"http://{text}") for text in proxies}
        self._allow = AllowList(allow)
        self._resolve = resolve
        self._at_home = False

    def resolve(self, host: Any, *rest: Any, **more: Any) -> list[Any]:
        """The addresses of ``host`` that may be connected to. Raises Problem where there are none, and OSError."""
        found = self._resolve(host, *rest, **more)
        name = (host.decode() if isinstance(host, bytes) else str(host)).lower().rstrip(".")
        if name == self._hub:
            self._at_home = any(self._find_objection(each) for each in found)
            return found
        if name in self._proxies or self._allow.allows_host(name):
            return found
        objections = {each[4][0]: self._find_objection(each) for each in found}
        good = [each for each in found if not self._is_barred(objections[each[4][0]])]
        if not good:
            text = ", ".join(f"{address} ({words})" for address, words in objections.items())
            raise Problem("elsewhere", f"{name[:100]} is {text}")
        return good

    def _find_objection(self, found: Any) -> str | None:
        address = read_address(found[4][0])
        return None if self._allow.allows_address(address) else find_objection(address)

    def _is_barred(self, objection: str | None) -> bool:
        if objection is None:
            return False
        return not self._at_home or objection.startswith("link-local") or "metadata" in objection


def _host_of(url: str) -> str:
    return (urlsplit(url).hostname or "").lower()
