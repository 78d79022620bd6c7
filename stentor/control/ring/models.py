"""The registry's routes."""

from stentor.control.ring.reading import text_of
from stentor.core.ring import RingAnswer, RingCall
from stentor.registry.registry import Answer, Registry

FRESH = "public, max-age=3600"
FOR_EVER = "public, max-age=31536000, immutable"


class RingRegistry:
    """Documents with entity tags."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def whole(self, call: RingCall) -> RingAnswer:
        """All providers' models."""
        version = call.params.get("version") or text_of(call, "version") or ""
        found = await self._registry.get_whole(version, _names(call, "providers"), _names(call, "capabilities"))
        return _answer(call, found, FOR_EVER if "version" in call.params else FRESH)

    async def provider(self, call: RingCall) -> RingAnswer:
        """One provider's models."""
        return _answer(call, await self._registry.get_provider(call.params["provider"]), FRESH)

    async def version(self, call: RingCall) -> RingAnswer:
        """One provider's models at one version."""
        found = await self._registry.get_version(call.params["provider"], call.params["version"])
        return _answer(call, found, FOR_EVER)


def _names(call: RingCall, parameter: str) -> list[str]:
    return [name.strip() for name in (text_of(call, parameter) or "").split(",") if name.strip()]


def _answer(call: RingCall, found: Answer, caching: str) -> RingAnswer:
    headers = [("ETag", found.etag), ("Cache-Control", caching)]
    if found.age_s is not None:
        headers += [("Age", str(found.age_s)), ("Warning", '110 - "Response is Stale"')]
    tags = [tag.strip().removeprefix("W/") for tag in call.if_none_match.split(",")]
    if found.etag in tags or "*" in tags:
        return RingAnswer(b"", headers=tuple(headers), status=304)
    return RingAnswer(found.document, headers=tuple(headers))
