"""A request's right to use an engine."""

import msgspec

from stentor.core.ids import InstanceId


class Place(msgspec.Struct, frozen=True):
    """One place of one instance. ``generation`` names the child it was given for, ``queued_us`` is the wait in µs."""

    instance: InstanceId
    generation: int
    url: str
    token: str
    queued_us: int
