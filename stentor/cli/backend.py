"""Whom commands ask: the running server over its socket, else the same parts opened in this process.

Both answer through the admin API, so a command can't tell them apart.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from stentor.cli.client import AdminClient, SocketTransport, Transport
from stentor.core.errors import StentorError
from stentor.core.lazy import load
from stentor.store.lock import find_holder

if TYPE_CHECKING:
    from stentor.settings import Settings

Row = dict[str, Any]
PAGE = 200
START_TIMEOUT_S = 1800.0
HUB_S = 300.0
DOWNLOAD_WAIT_S = 5


class Backend:
    """Keys, users, usage, models and engines, as the admin API answers about them: plain JSON values."""

    def __init__(self, transport: Transport) -> None:
        self._client = AdminClient(transport)

    def list_keys(self) -> list[Row]:
        """All API keys, newest first, never their texts."""
        return self._pages("/api-keys", {}, None)

    def add_key(self, ask: Row) -> Row:
        """Make a key; the answer holds its text as ``key``, this once."""
        return self._post("/api-keys", ask)

    def revoke_key(self, key_id: str) -> Row:
        """End a key now."""
        return self._post(f"/api-keys/{_segment(key_id)}/revoke", {})

    def rotate_key(self, key_id: str, grace_s: int) -> Row:
        """Replace a key by a new one with the same rights; the old one works for ``grace_s`` more seconds."""
        return self._post(f"/api-keys/{_segment(key_id)}/rotate", {"grace_s": grace_s})

    def list_users(self) -> list[Row]:
        """All users, by name."""
        return self._pages("/users", {}, None)

    def add_user(self, ask: Row) -> Row:
        """Make a user."""
        return self._post("/users", ask)

    def top_up(self, user_id: str, amount_nano: int, note: str) -> Row:
        """Add to (or take from) a user's balance."""
        return self._post(f"/users/{_segment(user_id)}/topup", {"amount_nano": amount_nano, "note": note})

    def list_usage(self, filters: Row, limit: int) -> list[Row]:
        """Usage events, newest first."""
        return self._pages("/usage", filters, limit)

    def list_models(self) -> list[Row]:
        """All models of the catalogue with their state."""
        return self._pages("/models", {}, None)

    def start_model(self, model: str, instances: int) -> Row:
        """Bring a model up; returns when it answers."""
        return self._post(f"/models/{_segment(model)}/start", {"instances": instances}, START_TIMEOUT_S)

    def stop_model(self, model: str) -> Row:
        """Let a model's requests end and stop it."""
        return self._post(f"/models/{_segment(model)}/stop", {}, START_TIMEOUT_S)

    def search_models(self, query: str, limit: int) -> list[Row]:
        """Repositories on the hub."""
        return _rows(self._client.call("GET", "/models/search", query={"q": query, "limit": limit}, timeout_s=HUB_S))

    def list_local(self) -> list[Row]:
        """Model files in the model folders."""
        return _rows(self._client.call("GET", "/models/local"))

    def add_model(self, ask: Row) -> Row:
        """Register a model."""
        return self._post("/models", ask)

    def remove_model(self, model: str, files: bool) -> Row:
        """Take a registered model out of the catalogue, on request with its files."""
        query = {"files": "true"} if files else None
        answer = self._client.call("DELETE", f"/models/{_segment(model)}", query=query)
        return answer if isinstance(answer, dict) else {}

    def update_model(self, model: str) -> Row:
        """Begin to fetch a model's newest revision; the answer is a download."""
        return self._post(f"/models/{_segment(model)}/update", {})

    def download(self, source: str) -> Row:
        """Begin a download."""
        return self._post("/models/download", {"source": source})

    def list_downloads(self) -> list[Row]:
        """All downloads, newest first."""
        return _rows(self._client.call("GET", "/downloads"))

    def wait_download(self, download: str, version: int) -> Row:
        """A download, as soon as it isn't that version, at the latest after a few seconds."""
        path = f"/downloads/{_segment(download)}/state"
        answer = self._client.call("GET", path, query={"after": version, "wait_s": DOWNLOAD_WAIT_S})
        return answer if isinstance(answer, dict) else {}

    def cancel_download(self, download: str) -> Row:
        """End a download."""
        return self._post(f"/downloads/{_segment(download)}/cancel", {})

    def list_slots(self) -> list[Row]:
        """Engine processes by port."""
        return self._pages("/slots", {}, None)

    def read_doctor(self) -> list[Row]:
        """What the books say of their own health."""
        return _rows(self._client.call("GET", "/doctor"))

    def list_rows(self, path: str, filters: Row | None = None, limit: int | None = None) -> list[Row]:
        """All rows of a listing, or the first ``limit``; filters of None are left out."""
        return self._pages(path, filters or {}, limit)

    def call(
        self, method: str, path: str, body: Row | None = None, *, query: Row | None = None, timeout_s: float = 60.0
    ) -> Row:
        """One call of the admin API whose answer is one row."""
        answer = self._client.call(method, path, body=body, query=query, timeout_s=timeout_s)
        return answer if isinstance(answer, dict) else {}

    def _post(self, path: str, body: Row, timeout_s: float = 60.0) -> Row:
        answer = self._client.call("POST", path, body=body, timeout_s=timeout_s)
        return answer if isinstance(answer, dict) else {}

    def _pages(self, path: str, filters: Row, limit: int | None) -> list[Row]:
        """All rows of a listing, or the first ``limit``; follows ``next`` from page to page."""
        rows: list[Row] = []
        after: Any = None
        while True:
            size = PAGE if limit is None else min(PAGE, limit - len(rows))
            page = self._client.call("GET", path, query={**filters, "limit": size, "after": after})
            fresh = _rows(page)
            rows += fresh
            after = page.get("next") if isinstance(page, dict) else None
            if not fresh or after is None or (limit is not None and len(rows) >= limit):
                return rows if limit is None else rows[:limit]


def _segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")


def _rows(answer: Any) -> list[Row]:
    """The rows of a listing, bare or as ``{"data": […]}``."""
    rows = answer.get("data", []) if isinstance(answer, dict) else answer
    return [row for row in rows or [] if isinstance(row, dict)]


@contextmanager
def open_backend(settings: "Settings") -> Iterator[Backend]:
    """The running server if there is one, else the books opened here, under the data folder's lock."""
    if find_holder(settings.data_dir) is not None:
        yield Backend(SocketTransport(settings.admin_socket))
        return
    if not settings.data_dir.exists():
        # Whoever stands in another folder than the server's would take the new, empty books for lost ones.
        click.echo(
            f"stentor: {settings.data_dir} is new, nothing was kept there before. If your server has another folder, "
            "name it with --data-dir or STENTOR_DATA_DIR.",
            err=True,
        )
    with load("stentor.cli.offline").open_transport(settings) as transport:
        yield Backend(transport)


def find_server(settings: "Settings") -> Backend | None:
    """The running server, if there is one."""
    return Backend(SocketTransport(settings.admin_socket)) if find_holder(settings.data_dir) is not None else None


def require_server(settings: "Settings", purpose: str) -> Backend:
    """The running server. Raises StentorError where there is none, saying what it is needed for."""
    if find_holder(settings.data_dir) is None:
        raise StentorError(
            f"No server is running on {settings.data_dir}; {purpose} needs one. Start it with `stentor up`, or name "
            "its folder with --data-dir."
        )
    return Backend(SocketTransport(settings.admin_socket))
