"""Why an engine is not there: one text for everybody, one for administrators."""

import re
from collections.abc import Iterable

from stentor.core.errors import StentorError


class StartFailed(StentorError):
    """An engine that did not come up or fell over.

    ``public`` is for every caller, the text with the engine's own words for administrators; ``permanent`` means that
    trying again can't help before somebody changes something; ``out_of_memory`` that less memory might have done.
    """

    def __init__(self, public: str, detail: str = "", *, permanent: bool = False, out_of_memory: bool = False) -> None:
        super().__init__(detail or public)
        self.public = public
        self.permanent = permanent
        self.out_of_memory = out_of_memory


class NoRoom(StartFailed):
    """No slot or no memory beside what is there; no fault of the engine, so it isn't tried again by itself.

    ``refuses``: those who wait are told so; otherwise nobody waited.
    """

    refuses = True


_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|cannot allocate memory|unable to allocate|bad_alloc|insufficient memory",
    re.IGNORECASE,
)


def is_out_of_memory(lines: Iterable[str]) -> bool:
    """Whether an engine's last words say that memory, of the machine or of a GPU, did not suffice."""
    return any(_OUT_OF_MEMORY.search(line) for line in lines)
