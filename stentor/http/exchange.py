"""One request and its answer, as the surface sees it: what was asked, the body as it comes, the answer as it goes.

Behind :class:`Exchange` stands a connection (:mod:`stentor.http.server`) or a call from within
(:mod:`stentor.http.loopback`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from stentor.core.errors import Refused
from stentor.core.principal import Principal
from stentor.core.sessions import SessionCard

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client left before its request was read."""


class Exchange(ABC):
    """``path`` is percent-decoded, ``query`` is not, header names are in lower case.

    ``address`` is the peer's, None where there is none; ``caller`` is who was authenticated already, where the server
    itself asks on somebody's behalf. ``secure``: it came by TLS, here or at a trusted proxy; ``session`` is the session
    that its cookie opened. ``more_headers`` are added to whatever is answered. ``on_gone`` is called once if
    the client leaves before the answer is complete; set it with :meth:`watch`. ``stalled`` says that the client has to
    read before more is written.
    """

    __slots__ = ("address", "caller", "complete", "gone", "headers", "method", "more_headers", "on_gone", "path",
                 "query", "secure", "session", "stalled")  # fmt: skip

    def __init__(self, method: str, path: str, query: bytes, headers: Headers, address: str | None) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.address = address
        self.caller: Principal | None = None
        self.secure = False
        self.session: SessionCard | None = None
        self.more_headers: Headers = []
        self.on_gone: Callable[[], None] | None = None
        self.complete = False
        self.gone = False
        self.stalled = False

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Have ``on_gone`` called when the client leaves before its answer is complete; at once if it has left."""
        if self.gone:
            on_gone()
        else:
            self.on_gone = on_gone

    @abstractmethod
    async def read(self) -> bytes:
        """The next part of the body; empty at its end. Raises ClientGone."""

    @abstractmethod
    def find_body(self) -> bytes | None:
        """The whole body if all of it is here and none was read; None where it has to be waited for."""

    def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer."""
        self.start(status, headers, len(body))
        self.end(body)

    @abstractmethod
    def start(self, status: int, headers: Headers, length: int | None = None) -> None:
        """The head of an answer that follows in parts, ``length`` bytes in all if that is known.

        It goes out with the first part.
        """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Some of the answer. See that it isn't ``stalled`` before."""

    @abstractmethod
    def end(self, data: bytes = b"") -> None:
        """The last of the answer."""

    @abstractmethod
    async def wait_writable(self) -> None:
        """Return when the client has read enough for more to be written, or has left."""

    @abstractmethod
    def close_after(self) -> None:
        """Take no further request from this client."""

    @abstractmethod
    def finish(self) -> None:
        """Nobody works on this any more: an answer that isn't complete is cut off, so that the client notices."""


def plain_lines(headers: Headers) -> bytes:
    """Headers as they go over the wire. Raises Refused (500) for one that would end its line."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    if lines.count(b"\n") != len(headers) or lines.count(b"\r") != len(headers) or b"\0" in lines:
        raise Refused("internal_error", "A header of this answer holds a line break; the log has its request id.")
    return lines
