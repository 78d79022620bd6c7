"""The composition root: the only place where the parts are made and joined.

Importing it costs nothing, so that a gateway worker doesn't load what only the authority needs.
"""

from collections.abc import Callable
from typing import Any

from stentor.core.lazy import load


def check_address(settings: Any) -> None:
    """Raises StentorError where the server could not listen; see :func:`stentor.app.server.check_address`."""
    load("stentor.app.server").check_address(settings)


def run(settings: Any, *, on_ready: Callable[[Any], None], admin_key: bool = False) -> int:
    """Serve until SIGTERM or SIGINT; see :func:`stentor.app.server.run`."""
    status: int = load("stentor.app.server").run(settings, on_ready=on_ready, admin_key=admin_key)
    return status
