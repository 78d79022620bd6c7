"""What people are told whose model can't serve them, whatever the reason."""

import contextlib
from collections.abc import Iterator

from stentor.core.errors import Refused
from stentor.core.ids import ModelId
from stentor.runtime.failure import StartFailed


def refuse_gone(model: ModelId) -> Refused:
    """The refusal to those who wait for a model that was taken out of the catalogue."""
    return Refused("model_not_found", f"The model '{model}' was removed. Nothing was charged.", param="model")


def refuse_shutdown() -> Refused:
    """The refusal while the server ends."""
    text = "The server is shutting down. Nothing was charged; try again shortly."
    return Refused("server_shutdown", text, retry_after_s=5.0)


@contextlib.contextmanager
def told(model: ModelId) -> Iterator[None]:
    """What a start that failed is told as."""
    try:
        yield
    except StartFailed as problem:
        raise Refused(
            "model_unavailable",
            f"The model '{model}' could not be started: {problem.public}. `stentor models list` tells why.",
            details={"reason": problem.public},
        ) from problem
    except TimeoutError as problem:
        raise Refused("model_unavailable", f"The model '{model}' is still starting; look again later.") from problem
