"""What the way out has to be told."""

import msgspec


class EgressSettings(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """``allow`` are host names (``*.example.org`` for all below one), addresses and networks that may be reached
    although they aren't public. ``allow_image_urls``: fetch ``https:`` images that clients name.
    """

    allow: tuple[str, ...] = ()
    allow_image_urls: bool = False
