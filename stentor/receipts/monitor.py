"""An outsider's monitor: it remembers the last checkpoint it saw, and wants to be shown that the log only grew.

It knows the server by its public answers alone. Keys are trusted at first sight (or given); later ones are taken up
when they sign together with one that is trusted.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import msgspec

from stentor.receipts.merkle import (
    EMPTY_ROOT,
    HASH_BYTES,
    TILE_WIDTH,
    Tree,
    is_consistent,
    plan_append,
)
from stentor.receipts.note import Checkpoint, InvalidNote, list_signers, read_checkpoint
from stentor.receipts.verify import TrustedKey, read_keys

LOG = "/receipts/log"
Fetch = Callable[[str], bytes]
"""Get a path of the server; raises StentorError where it can't be had."""


class Seen(msgspec.Struct, frozen=True):
    """What a monitor remembers: the last checkpoint (root in hexadecimal), and the keys it trusts (base64)."""

    origin: str
    size: int
    root: str
    keys: list[str]


class Report(msgspec.Struct):
    """``problems`` are proof, or lack of proof, that history was changed; ``seen`` is what to remember from now on."""

    seen: Seen | None
    problems: list[str]
    notes: list[str]


def audit(fetch: Fetch, before: Seen | None, given: list[TrustedKey] | None = None, *, full: bool = False) -> Report:
    """Look at a server's log once. ``full``: fetch every leaf's hash and build the tree anew."""
    problems: list[str] = []
    notes: list[str] = []
    published = _publics(read_keys(msgspec.json.decode(fetch("/receipts/public-keys.json"))))
    trusted = _trusted(before, given, published)
    if before is None and given is None:
        notes.append(f"First visit: {len(published)} checkpoint key(s) taken on trust.")
    note = fetch(f"{LOG}/checkpoint").decode("utf-8", "replace")
    try:
        checkpoint = read_checkpoint(note)
        if not list_signers(note, trusted):
            return Report(before, ["The checkpoint isn't signed by any key this monitor trusts."], notes)
        adopted = list_signers(note, [key for key in published if key not in trusted])
    except InvalidNote as error:
        return Report(before, [f"The checkpoint can't be read: {error}."], notes)
    if adopted:
        notes.append(f"{len(adopted)} new checkpoint key(s), vouched for by one already trusted.")
    if before is not None:
        problems += _compare(fetch, before, checkpoint)
    if full and not problems:
        problems += _rebuild(fetch, checkpoint)
    moved = before is not None and checkpoint.origin != before.origin
    if problems and not moved:
        return Report(before, problems, notes)
    keys = [base64.b64encode(key).decode() for key in [*trusted, *adopted]]
    return Report(Seen(checkpoint.origin, checkpoint.size, checkpoint.root.hex(), keys), problems, notes)


def _publics(keys: list[TrustedKey]) -> list[bytes]:
    return [key.public for key in keys if key.purpose == "checkpoint"]


def _trusted(before: Seen | None, given: list[TrustedKey] | None, published: list[bytes]) -> list[bytes]:
    if given is not None:
        return _publics(given)
    return published if before is None else [base64.b64decode(key) for key in before.keys]


def _compare(fetch: Fetch, before: Seen, now: Checkpoint) -> list[str]:
    if now.origin != before.origin:
        return _explain_origin(before, now)
    if now.size < before.size:
        return [f"The log shrank: it had {before.size} leaves and says {now.size} now."]
    if now.size == before.size:
        same = now.root.hex() == before.root
        return [] if same else [f"Two histories: the tree of {now.size} leaves has another root than last time."]
    if before.size == 0:
        return []
    proof = _fetch_proof(fetch, before.size, now.size)
    if proof is None or not is_consistent(before.size, now.size, bytes.fromhex(before.root), now.root, proof):
        return [
            f"No proof that the {before.size} leaves seen last time are the beginning of the {now.size} leaves of now: "
            "history was changed, or this monitor is shown another one."
        ]
    return []


def _explain_origin(before: Seen, now: Checkpoint) -> list[str]:
    old = now.previous
    told = f"The log has a new origin, {now.origin}, in place of {before.origin}"
    if old is None:
        return [f"{told}, and names none before it."]
    if old.origin == before.origin and old.size == before.size and old.root.hex() == before.root:
        return [f"{told}: a backup was restored. It names the checkpoint seen last ({old.size} leaves)."]
    if old.origin == before.origin and old.size >= before.size:
        return [f"{told}: a backup was restored. It names a checkpoint of {old.size} leaves; {before.size} were seen."]
    return [f"{told}, and names {old.origin} with {old.size} leaves, which isn't what was seen last."]


def _fetch_proof(fetch: Fetch, first: int, second: int) -> list[bytes] | None:
    try:
        document: Any = msgspec.json.decode(fetch(f"{LOG}/consistency?first={first}&second={second}"))
        return [base64.b64decode(node, validate=True) for node in document["proof"]]
    except (msgspec.DecodeError, KeyError, TypeError, binascii.Error, ValueError):
        return None


def _rebuild(fetch: Fetch, checkpoint: Checkpoint) -> list[str]:
    """Build the tree from all leaf hashes, tile by tile."""
    size = 0
    tails: tuple[bytes, ...] = ()
    tiles: dict[tuple[int, int], bytes] = {}
    log = quote(checkpoint.origin, safe="")
    while size < checkpoint.size:
        raw = fetch(f"{LOG}/tiles/0/{size // TILE_WIDTH}?log={log}")
        count = min(TILE_WIDTH, checkpoint.size - size)
        hashes = [raw[at : at + HASH_BYTES] for at in range(0, count * HASH_BYTES, HASH_BYTES)]
        if len(raw) < count * HASH_BYTES:
            return [f"Tile {size // TILE_WIDTH} of the leaves is too short."]
        planned = plan_append(size, tails, hashes)
        # Only what later steps read: the leaves themselves are forgotten as soon as their tile is full.
        tiles |= {place: tile for place, tile in planned.changed.items() if place[0] or count < TILE_WIDTH}
        size, tails = planned.size, planned.tails
    root = Tree(size, lambda level, index: tiles.get((level, index), b"")).root() if size else EMPTY_ROOT
    if root != checkpoint.root:
        return [f"The {size} leaf hashes that the server shows don't make the root that it signed."]
    return []
