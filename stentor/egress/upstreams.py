"""How upstreams are addressed: URLs, headers, and the look at their list of models."""

import math
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from stentor.core.remote import RemoteKind
from stentor.egress.outbound import Outbound, OutboundAnswer, OutboundFailed, Patience
from stentor.egress.targets import EgressRefused

ANTHROPIC_VERSION = "2023-06-01"
_PROBE = Patience(10.0, 10.0)
_PROBE_BYTES = 64 * 1024


def upstream_url(kind: RemoteKind, base_url: str, path: str) -> str:
    """The full address of ``path`` (``/v1/…``) at an upstream, whether or not its base address names a version."""
    base = base_url.rstrip("/")
    if kind == "hf-inference":
        return base + path
    below = urlsplit(base).path
    if below.endswith("/v1") or (below and kind == "openai"):
        return base + path.removeprefix("/v1")
    return base + path


def upstream_headers(kind: RemoteKind, credential: str) -> dict[str, str]:
    """The headers that say who asks; without a credential nobody in particular."""
    if kind == "anthropic":
        return {"anthropic-version": ANTHROPIC_VERSION, **({"x-api-key": credential} if credential else {})}
    return {"Authorization": f"Bearer {credential}"} if credential else {}


def read_retry_after(answer: OutboundAnswer) -> float:
    """For how many seconds an upstream wants to be left alone; 0 where it doesn't say."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = answer.header(name).strip()
        try:
            seconds = float(text) * scale
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(answer.header("retry-after")).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


async def look_at_upstream(
    outbound: Outbound, kind: RemoteKind, base_url: str, credential: str, *, trusted: bool
) -> str:
    """Ask for the list of models: empty if the upstream is well, else what is wrong, for operators."""
    if kind == "hf-inference":
        return ""  # it has no list of models, and every question to a model costs
    try:
        answer = await outbound.send(
            "GET",
            upstream_url(kind, base_url, "/v1/models"),
            headers=upstream_headers(kind, credential),
            patience=_PROBE,
            trusted=trusted,
        )
    except (EgressRefused, OutboundFailed) as problem:
        return str(problem)
    try:
        await answer.read_at_most(_PROBE_BYTES)
    finally:
        answer.release()
    if answer.status in (401, 403):
        return "it refuses the credential"
    # Some serve conversations and no list; being told so is a sign of life, too.
    well = answer.status == 429 or answer.status < 500
    return "" if well and not 300 <= answer.status < 400 else f"it answers status {answer.status}"
