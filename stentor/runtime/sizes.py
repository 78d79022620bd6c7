"""What engines really needed: memory and load time of each model, remembered over restarts.

A formula plans the first start. From then on what was seen in use, or what the engine itself reported, corrects it: a
larger figure always counts, a smaller one only if the engine reported it, since memory is used up slowly.
"""

from pathlib import Path

import msgspec

from stentor.core.errors import UNREADABLE
from stentor.core.ids import ModelId

_PROCESS_BYTES = 64 << 20  # of an engine beyond its buffers: interpreter, libraries, HTTP server
_MARGIN = 1.05


class Seen(msgspec.Struct):
    """Of one model run in one way: most bytes in use, bytes that the engine said it took (0: it didn't)."""

    resident_bytes: int = 0
    reported_bytes: int = 0


class ModelSizes(msgspec.Struct):
    """Of one model: seconds that its last load took, and what was seen by the way it was run."""

    load_s: float = 0.0
    seen: dict[str, Seen] = {}


class Sizes:
    """The file ``run/sizes.json``; losing it costs nothing but the first estimate."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._models: dict[str, ModelSizes] = {}
        try:
            self._models = msgspec.json.decode(path.read_bytes(), type=dict[str, ModelSizes])
        except (OSError, *UNREADABLE):
            # Nothing learned yet, or nothing that can be read: the formula plans.
            self._models = {}

    def correct(self, model: ModelId, way: str, estimate_bytes: int) -> int:
        """``estimate_bytes`` by the formula, corrected by what was seen when the model was run in this ``way``."""
        known = self._models.get(model)
        seen = known.seen.get(way) if known is not None else None
        return estimate_bytes if seen is None else choose_bytes(estimate_bytes, seen)

    def load_s(self, model: ModelId) -> float:
        """How long the model's last load took in seconds; 0 where it was never loaded."""
        known = self._models.get(model)
        return 0.0 if known is None else known.load_s

    def note_load(self, model: ModelId, load_s: float) -> None:
        """A load took so long."""
        self._models.setdefault(model, ModelSizes()).load_s = round(load_s, 3)

    def note(self, model: ModelId, way: str, resident_bytes: int, reported_bytes: int) -> None:
        """An instance has so much in use, and said that it took so much."""
        seen = self._models.setdefault(model, ModelSizes()).seen.setdefault(way, Seen())
        seen.resident_bytes = max(seen.resident_bytes, resident_bytes)
        seen.reported_bytes = max(seen.reported_bytes, reported_bytes)

    def save(self) -> None:
        """Write the file. A disk that takes nothing is not worth a failure here."""
        fresh = self._path.with_suffix(".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh.write_bytes(msgspec.json.format(msgspec.json.encode(self._models)))
            fresh.replace(self._path)
        except OSError:
            return


def choose_bytes(estimate_bytes: int, seen: Seen) -> int:
    """The better of formula and experience; with 5 % to spare where experience is all there is."""
    resident = int(seen.resident_bytes * _MARGIN)
    if seen.reported_bytes:
        return max(resident, seen.reported_bytes + _PROCESS_BYTES)
    return max(estimate_bytes, resident)
