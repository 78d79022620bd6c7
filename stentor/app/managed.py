"""The handlers of every route that the node authority answers."""

from stentor.app.authority import Authority
from stentor.http.admin.handlers import AdminEndpoints
from stentor.http.handler import Handler
from stentor.http.ring.handlers import RingEndpoints
from stentor.http.surface import SURFACE


def managed_handlers(authority: Authority) -> dict[str, Handler]:
    """By the surface's names."""
    return {
        **AdminEndpoints(authority.operations, SURFACE).handlers(),
        **RingEndpoints(authority.ring.operations, authority.settings.body_max_bytes).handlers(),
    }
