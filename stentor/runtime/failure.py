"""Why an engine is not there: one text for everybody, one for administrators."""

from stentor.core.errors import StentorError


class StartFailed(StentorError):
    """An engine that did not come up or fell over.

    ``public`` is for every caller, the text with the engine's own words for administrators; ``permanent`` means that
    trying again can't help before somebody changes something.
    """

    def __init__(self, public: str, detail: str = "", *, permanent: bool = False) -> None:
        super().__init__(detail or public)
        self.public = public
        self.permanent = permanent
