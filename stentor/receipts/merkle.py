"""Merkle trees as in RFC 6962 §2.1, over tiles of 256 hashes. Pure: bytes and integers in, bytes out.

A tree of any size is described by its *nodes*: ``node(level, index)`` is the hash over the 2^level leaves from
``index``·2^level on, for complete subtrees. Tiles hold the nodes of the levels 0, 8, 16, … in rows of 256; what lies
between is computed from them, so that a proof reads a handful of tiles whatever the tree's size.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256

HASH_BYTES = 32
TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
EMPTY_ROOT = sha256(b"").digest()

ReadTile = Callable[[int, int], bytes]
"""``(tile level, tile index)`` to the tile's hashes, one after the other; the last tile of a level may be short."""


def hash_leaf(content: bytes) -> bytes:
    """SHA-256(0x00 ‖ content)."""
    return sha256(b"\0" + content).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    return sha256(b"\1" + left + right).digest()


def fold_complete(hashes: bytes) -> bytes:
    """The hash over a power of two of sibling hashes."""
    while len(hashes) > HASH_BYTES:
        pairs = range(0, len(hashes), 2 * HASH_BYTES)
        hashes = b"".join([sha256(b"\1" + hashes[at : at + 2 * HASH_BYTES]).digest() for at in pairs])
    return hashes


def plan_append(size: int, tails: Sequence[bytes], hashes: Sequence[bytes]) -> "Appended":
    """What ``hashes`` make of a tree of ``size`` leaves, of which ``tails`` are the short last tiles by level."""
    grown = [bytearray(tail) for tail in tails] or [bytearray()]
    changed: dict[tuple[int, int], bytes] = {}
    counts = [size >> (TILE_HEIGHT * level) for level in range(len(grown))]
    pending: list[bytes] = list(hashes)
    level = 0
    while pending:
        if level == len(grown):
            grown.append(bytearray())
            counts.append(0)
        pending = _grow_level(level, counts[level], grown[level], pending, changed)
        level += 1
    return Appended(size + len(hashes), tuple(bytes(tail) for tail in grown), changed)


def _grow_level(
    level: int, count: int, tail: bytearray, added: list[bytes], changed: dict[tuple[int, int], bytes]
) -> list[bytes]:
    """Add nodes to one level's tiles; returns the nodes of the level above that became complete."""
    done: list[bytes] = []
    tile = count // TILE_WIDTH
    at = 0
    while at < len(added):
        room = TILE_WIDTH - len(tail) // HASH_BYTES
        part = added[at : at + room]
        tail += b"".join(part)
        at += len(part)
        changed[level, tile] = bytes(tail)
        if len(tail) == TILE_BYTES:
            done.append(fold_complete(bytes(tail)))
            tail.clear()
            tile += 1
    return done


class Appended:
    """A tree after an append: its size, the short last tiles by level, and every tile that changed."""

    __slots__ = ("changed", "size", "tails")

    def __init__(self, size: int, tails: tuple[bytes, ...], changed: dict[tuple[int, int], bytes]) -> None:
        self.size = size
        self.tails = tails
        self.changed = changed


def plan_tiles(size: int, leaf: int | None = None) -> list[tuple[int, int]]:
    """Level and index of the tiles behind a tree's root, and behind the path from ``leaf`` to it."""
    tiles: set[tuple[int, int]] = set()
    level = 0
    while count := size >> (TILE_HEIGHT * level):
        tiles.add((level, (count - 1) // TILE_WIDTH))
        if leaf is not None:
            tiles.add((level, leaf >> (TILE_HEIGHT * (level + 1))))
        level += 1
    return sorted(tiles)


class Tree:
    """A tree of ``size`` leaves behind its tiles. Each tile is read once a tree."""

    def __init__(self, size: int, read_tile: ReadTile) -> None:
        self.size = size
        self._read_tile = read_tile
        self._tiles: dict[tuple[int, int], bytes] = {}

    def _tile(self, level: int, index: int) -> bytes:
        tile = self._tiles.get((level, index))
        if tile is None:
            tile = self._tiles[level, index] = self._read_tile(level, index)
        return tile

    def leaf(self, index: int) -> bytes:
        """The hash of one leaf. Raises MissingTile where it isn't there."""
        return self.node(0, index)

    def node(self, level: int, index: int) -> bytes:
        """The hash of a complete subtree."""
        tile_level, height = divmod(level, TILE_HEIGHT)
        first = index << height
        tile = self._tile(tile_level, first // TILE_WIDTH)
        start = first % TILE_WIDTH * HASH_BYTES
        hashes = tile[start : start + (HASH_BYTES << height)]
        if len(hashes) != HASH_BYTES << height:
            raise MissingTile(tile_level, first // TILE_WIDTH)
        return fold_complete(hashes)

    def span(self, start: int, end: int) -> bytes:
        """MTH(D[start:end]); ``start`` is a multiple of the largest power of two that is less than the length."""
        count = end - start
        if count & (count - 1) == 0:
            level = count.bit_length() - 1
            return self.node(level, start >> level)
        split = start + _split(count)
        return hash_node(self.span(start, split), self.span(split, end))

    def root(self) -> bytes:
        """The tree's root hash."""
        return self.span(0, self.size) if self.size else EMPTY_ROOT

    def inclusion(self, index: int) -> list[bytes]:
        """PATH(index, D[size]) of RFC 6962 §2.1.1: sibling hashes from the leaf upwards."""
        if not 0 <= index < self.size:
            raise ValueError(f"leaf {index} is not in a tree of {self.size}")
        path: list[bytes] = []
        start, end = 0, self.size
        while end - start > 1:
            split = start + _split(end - start)
            if index < split:
                path.append(self.span(split, end))
                end = split
            else:
                path.append(self.span(start, split))
                start = split
        return path[::-1]

    def consistency(self, first: int) -> list[bytes]:
        """PROOF(first, D[size]) of RFC 6962 §2.1.2, for 0 < first <= size."""
        if not 0 < first <= self.size:
            raise ValueError(f"a tree of {self.size} has no earlier state of {first}")
        return self._subproof(first, 0, self.size, whole=True)

    def _subproof(self, first: int, start: int, end: int, *, whole: bool) -> list[bytes]:
        if first == end - start:
            return [] if whole else [self.span(start, end)]
        split = _split(end - start)
        if first <= split:
            rest = self._subproof(first, start, start + split, whole=whole)
            return [*rest, self.span(start + split, end)]
        rest = self._subproof(first - split, start + split, end, whole=False)
        return [*rest, self.span(start, start + split)]


class MissingTile(Exception):
    """A tile that should be there isn't, or is too short."""

    def __init__(self, level: int, index: int) -> None:
        super().__init__(f"tile {index} of level {level} is missing or incomplete")


def _split(count: int) -> int:
    """The largest power of two less than ``count``."""
    return 1 << (count - 1).bit_length() - 1


def root_from_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes | None:
    """The root that ``path`` leads to (RFC 9162 §2.1.3.2), or None if it doesn't fit index and size."""
    if not 0 <= index < size:
        return None
    node, last, here = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return None
        if node & 1 or node == last:
            here = hash_node(sibling, here)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            here = hash_node(here, sibling)
        node >>= 1
        last >>= 1
    return here if last == 0 else None


def is_consistent(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the tree of ``first`` leaves is the beginning of the other (RFC 9162 §2.1.4.2)."""
    if not 0 <= first <= second:
        return False
    if first == second:
        return not proof and first_root == second_root
    if first == 0:
        return not proof and first_root == EMPTY_ROOT
    path = list(proof) if first & (first - 1) else [first_root, *proof]
    if not path or path == [first_root]:
        return False
    return _roots_of(first, second, path) == (first_root, second_root)


def _roots_of(first: int, second: int, path: list[bytes]) -> tuple[bytes, bytes] | None:
    """Both roots that a consistency path leads to."""
    node, last = first - 1, second - 1
    while node & 1:
        node >>= 1
        last >>= 1
    older = newer = path[0]
    for sibling in path[1:]:
        if last == 0:
            return None
        if node & 1 or node == last:
            older, newer = hash_node(sibling, older), hash_node(sibling, newer)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            newer = hash_node(newer, sibling)
        node >>= 1
        last >>= 1
    return (older, newer) if last == 0 else None
