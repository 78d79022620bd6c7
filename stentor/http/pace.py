"""How slowly a body may come: a client that trickles it would hold a place for hours."""

import asyncio
import time
from collections.abc import AsyncIterator

from stentor.core.errors import Refused

GRACE_S = 10.0


async def keep_pace(
    parts: AsyncIterator[bytes], least_bytes_per_s: int, grace_s: float = GRACE_S
) -> AsyncIterator[bytes]:
    """``parts`` as they come, as long as they come at ``least_bytes_per_s`` on the whole; the first ``grace_s`` are
    free. Raises Refused for those that don't."""
    begun_s, size_bytes = time.monotonic(), 0
    loop = asyncio.get_running_loop()
    while True:
        left_s = begun_s + grace_s + size_bytes / least_bytes_per_s - time.monotonic()
        try:
            async with asyncio.timeout_at(loop.time() + left_s):
                part = await anext(parts, None)
        except TimeoutError:
            text = f"The upload is too slow: {size_bytes >> 10} KiB came in {time.monotonic() - begun_s:.0f} s, and"
            text += f" {least_bytes_per_s >> 10} KiB/s are the least. Send it quicker, or in smaller files."
            raise Refused("invalid_request", text, param="file") from None
        if part is None:
            return
        size_bytes += len(part)
        yield part
