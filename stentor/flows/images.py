"""Images that clients name instead of sending them: fetched through the guarded door, once the request is admitted.

Only where the operator allows it, only over https, only public hosts, only images, within a size and a time. The engine
or the upstream gets them inside the request; none of them ever fetches anything.
"""

import asyncio
import base64
from typing import Any

import msgspec

from stentor.core.errors import Refused
from stentor.egress.outbound import Fetched, Outbound, OutboundFailed
from stentor.egress.targets import EgressRefused
from stentor.flows.ask import NO_FETCHING, Ask
from stentor.flows.failure import EngineRefused
from stentor.flows.media import Size, check_total, measure_image

IMAGE_MAX_BYTES = 20 * 1024 * 1024
ALL_MAX_BYTES = 32 * 1024 * 1024
DEADLINE_S = 10.0
IMAGES_MAX = 8
_decode = msgspec.json.Decoder(list[dict[str, Any]]).decode
_encode = msgspec.json.Encoder().encode


class ImageFetcher:
    """Fetches for a whole worker."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound

    def check(self, ask: Ask) -> None:
        """Raises Refused (400) for images that will not be fetched, before anything is reserved."""
        if len(ask.images) > IMAGES_MAX:
            text = f"The request names {len(ask.images)} images to fetch; at most {IMAGES_MAX} are accepted."
            raise Refused("invalid_request", text, param="messages")
        for image in ask.images:
            self._outbound.check(image.url, ("https",))

    async def inline(self, ask: Ask) -> None:
        """Put what the addresses lead to into the request's own fields. Raises EngineRefused (400)."""
        urls = list(dict.fromkeys(image.url for image in ask.images))
        found = dict(zip(urls, await asyncio.gather(*(self._fetch(url) for url in urls)), strict=True))
        fetched = [found[image.url] for image in ask.images]
        if sum(map(len, fetched)) > ALL_MAX_BYTES * 4 // 3:
            raise _refuse(f"its images have more than {ALL_MAX_BYTES // 2**20} MiB together")
        _check_pictures(fetched)
        messages = _decode(ask.fields["messages"])
        for message in messages:
            for part in message["content"] if isinstance(message.get("content"), list) else ():
                if part.get("type") == "image_url" and part["image_url"]["url"] in found:
                    part["image_url"]["url"] = found[part["image_url"]["url"]]
        ask.fields["messages"] = msgspec.Raw(_encode(messages))
        ask.images = ()

    async def _fetch(self, url: str) -> str:
        try:
            fetched = await self._outbound.fetch(
                url, limit_bytes=IMAGE_MAX_BYTES, deadline_s=DEADLINE_S, schemes=("https",)
            )
        except EgressRefused as refusal:
            raise _refuse(f"an image can't be fetched. {refusal.message}") from None
        except OutboundFailed as problem:
            raise _refuse(f"an image can't be fetched: {problem}") from None
        media = find_image_type(fetched)
        return f"data:{media};base64,{base64.b64encode(fetched.body).decode()}"


def _check_pictures(fetched: list[str]) -> None:
    """Raises EngineRefused for what would be too much once it is decoded."""
    try:
        pixels = sum(measure_image(data, "an image that was fetched").pixels for data in fetched)
        check_total(Size(pixels))
    except Refused as refusal:
        raise EngineRefused(refusal.code, refusal.message, param="messages") from None


def check_images(fetcher: ImageFetcher | None, ask: Ask) -> None:
    """Raises Refused (400) where the operator allows no fetching, or not of these."""
    if fetcher is None:
        raise Refused("invalid_request", NO_FETCHING, param=ask.images[0].place)
    fetcher.check(ask)


def find_image_type(fetched: Fetched) -> str:
    """The media type of what was fetched, by its first bytes. Raises EngineRefused for what is no image."""
    if fetched.status != 200:
        raise _refuse(f"an image can't be fetched: its host answers status {fetched.status}")
    head = fetched.body[:12]
    if not fetched.content_type.startswith("image/"):
        raise _refuse("an image's address leads to something that isn't an image")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    raise _refuse("an image's address leads to something that isn't a PNG, JPEG, GIF or WebP")


def _refuse(what: str) -> EngineRefused:
    return EngineRefused("invalid_request", f"The request can't be served: {what}.", param="messages")
