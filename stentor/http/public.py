"""What anyone may ask: health, what this is, the API's description; and the metrics."""

import datetime
from collections.abc import Awaitable, Callable

import msgspec

from stentor.core.books import Books
from stentor.core.errors import StentorError
from stentor.core.principal import Principal
from stentor.core.scheduler import Scheduler
from stentor.http import wire
from stentor.http.connection import Connection
from stentor.http.openapi import openapi_document
from stentor.http.pages import docs_page, root_page

_encode = msgspec.json.Encoder().encode
_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"
_HTML = b"text/html; charset=utf-8"
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class PublicEndpoints:
    """``render_metrics`` gives the exposition text of the whole server, all workers included."""

    def __init__(
        self, books: Books, scheduler: Scheduler, render_metrics: Callable[[], Awaitable[bytes]], version: str
    ) -> None:
        self._books = books
        self._scheduler = scheduler
        self._render_metrics = render_metrics
        self._version = version
        self._openapi = b""
        self._docs = b""

    async def health(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /health: 503 while the store can't be written or the authority can't be reached."""
        try:
            problem = await self._books.find_problem()
            instances = await self._scheduler.list_instances()
        except StentorError as error:
            problem, instances = str(error), []
        ready = [card for card in instances if card.state == "ready"]
        idle = sum(card.places - card.running for card in ready)
        status = 200 if problem is None else 503
        if _prefers_text(connection):
            text = f"ok – workers idle: {idle}" if problem is None else f"unhealthy – {problem}"
            await _send(connection, status, _TEXT, text.encode())
            return
        health = wire.Health(
            status="healthy" if problem is None else "unhealthy",
            database="connected" if problem is None else "unavailable",
            workers_idle=idle,
            active_slots=len(ready),
            timestamp=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            version=self._version,
        )
        await _send(connection, status, _JSON, _encode(health))

    async def root(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /: a page for people, a line for scripts, JSON for the rest."""
        if _prefers_text(connection):
            await _send(connection, 200, _TEXT, b"LMServ is running.")
        elif b"text/html" in (connection.header(b"accept") or b""):
            await _send(connection, 200, _HTML, root_page(self._version).encode())
        else:
            root = wire.Root(name="Stentor", version=self._version, docs="/docs", registry="/registry/")
            await _send(connection, 200, _JSON, _encode(root))

    async def metrics(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /metrics"""
        await _send(connection, 200, METRICS_TYPE, await self._render_metrics())

    async def openapi(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /openapi.json"""
        if not self._openapi:
            self._openapi = _encode(openapi_document(self._version))
        await _send(connection, 200, _JSON, self._openapi)

    async def docs(self, connection: Connection, principal: Principal, params: dict[str, str]) -> None:
        """GET /docs and /swagger-ui/: self-contained, nothing is loaded from elsewhere."""
        if not self._docs:
            self._docs = docs_page(openapi_document(self._version)).encode()
        await _send(connection, 200, _HTML, self._docs)


def _prefers_text(connection: Connection) -> bool:
    """Whether ``text/plain`` ranks first in ``Accept`` (by q, then by order)."""
    accept = (connection.header(b"accept") or b"").decode("latin-1")
    ranked = []
    for order, item in enumerate(accept.split(",")):
        kind, *params = [part.strip() for part in item.split(";")]
        quality = next((part[2:] for part in params if part.startswith("q=")), "1")
        try:
            ranked.append((-float(quality), order, kind))
        except ValueError:
            continue
    return bool(ranked) and min(ranked)[2] == "text/plain"


async def _send(connection: Connection, status: int, media_type: bytes, body: bytes) -> None:
    headers = [
        (b"x-request-id", connection.request_id.encode()),
        (b"content-type", media_type),
        (b"x-content-type-options", b"nosniff"),
    ]
    if media_type == _HTML:
        headers.append((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"))
    await connection.respond(status, headers, body)
