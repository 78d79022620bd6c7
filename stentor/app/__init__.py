"""The composition root: the only place where the parts are made and joined."""

from stentor.app.server import Ready, run

__all__ = ["Ready", "run"]
