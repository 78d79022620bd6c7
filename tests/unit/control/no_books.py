"""Books for tests of who only stands before them."""

from typing import Any


class Nothing:
    """Books that nobody asks."""

    def abandon(self, owner: str) -> None:
        pass

    def on_revoked(self, listener: Any) -> None:
        pass

    def on_changed(self, listener: Any) -> None:
        pass
