"""What the registry has to be told."""

import msgspec


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True):
    """``base_url`` empty: the bundled snapshot serves, nothing is fetched. ``ttl_s``: how long a copy is fresh."""

    base_url: str = ""
    ttl_s: float = 3600.0
