"""The tree: RFC 6962's own example, and every proof against trees made in the plainest way."""

import random
from hashlib import sha256

import pytest

from stentor.receipts.merkle import (
    EMPTY_ROOT,
    HASH_BYTES,
    TILE_WIDTH,
    MissingTile,
    Tree,
    hash_leaf,
    is_consistent,
    plan_append,
    plan_tiles,
    root_from_inclusion,
)
from tests.independent_verifier import merkle_root, root_by_path

# The inputs and roots of Certificate Transparency's reference tree (the tree of RFC 6962 §2.1.3 has seven of them).
INPUTS = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
LEAVES = [hash_leaf(bytes.fromhex(text)) for text in INPUTS]


def tiles_of(hashes: list[bytes], *, most: int = 700, seed: int = 1) -> dict[tuple[int, int], bytes]:
    """Tiles made by appending in pieces of odd sizes."""
    pieces = random.Random(seed)
    tiles: dict[tuple[int, int], bytes] = {}
    size, tails = 0, ()
    while size < len(hashes):
        planned = plan_append(size, tails, hashes[size : size + pieces.randint(1, most)])
        tiles |= planned.changed
        size, tails = planned.size, planned.tails
    return tiles


def tree(hashes: list[bytes], size: int | None = None) -> Tree:
    tiles = tiles_of(hashes)
    return Tree(len(hashes) if size is None else size, lambda level, index: tiles.get((level, index), b""))


def test_the_empty_tree():
    assert Tree(0, lambda *_: b"").root() == EMPTY_ROOT == sha256(b"").digest()


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_of_the_reference_tree(size):
    assert tree(LEAVES[:size]).root().hex() == ROOTS[size - 1]


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [
        (0, 1, []),
        (0, 8, ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]),
        (5, 8, ["bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
        (2, 3, ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    ],
)  # fmt: skip
def test_inclusion_paths_of_the_reference_tree(index, size, path):
    assert [node.hex() for node in tree(LEAVES[:size]).inclusion(index)] == path


@pytest.mark.parametrize(
    ("first", "second", "proof"),
    [
        (1, 1, []),
        (1, 8, ["96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"]),
        (6, 8, ["0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"]),
        (2, 5, ["5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"]),
    ],
)  # fmt: skip
def test_consistency_proofs_of_the_reference_tree(first, second, proof):
    assert [node.hex() for node in tree(LEAVES[:second]).consistency(first)] == proof


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 255, 256, 257, 300, 511, 513, 65536, 65537, 66000])
def test_every_kind_of_proof_at_sizes_around_tiles(size):
    hashes = [sha256(b"%d" % number).digest() for number in range(size)]
    whole = tree(hashes)
    root = whole.root()
    assert root == merkle_root(hashes)
    pick = random.Random(size)
    for index in {0, size - 1, *(pick.randrange(size) for _ in range(20))}:
        path = whole.inclusion(index)
        assert root_from_inclusion(index, size, hashes[index], path) == root
        assert root_by_path(index, size, hashes[index], path) == root
        assert root_from_inclusion(index, size, sha256(b"another").digest(), path) != root
        assert root_from_inclusion(index, size, hashes[index], [*path, root]) != root
        if path:
            assert root_from_inclusion(index, size, hashes[index], path[:-1]) != root
    for first in {1, size, *(pick.randint(1, size) for _ in range(20))}:
        older = merkle_root(hashes[:first])
        proof = whole.consistency(first)
        assert is_consistent(first, size, older, root, proof)
        assert not is_consistent(first, size, root_of_other(first), root, proof)
        assert not is_consistent(first, size, older, root_of_other(size), proof)
        assert not is_consistent(first, size, older, root, [*proof, root])
        if proof:
            assert not is_consistent(first, size, older, root, proof[:-1])
            assert not is_consistent(first, size, older, root, proof[::-1]) or len(proof) == 1


def root_of_other(size: int) -> bytes:
    return sha256(b"a tree of %d others" % size).digest()


def test_an_earlier_tree_is_read_from_grown_tiles():
    hashes = [sha256(b"%d" % number).digest() for number in range(1000)]
    tiles = tiles_of(hashes)
    for size in (1, 255, 256, 700, 999):
        assert Tree(size, lambda level, index: tiles.get((level, index), b"")).root() == merkle_root(hashes[:size])


def test_nothing_is_consistent_with_a_shorter_tree_or_without_a_proof():
    root = merkle_root(LEAVES)
    assert not is_consistent(8, 5, root, merkle_root(LEAVES[:5]), [])
    assert not is_consistent(4, 8, merkle_root(LEAVES[:4]), root, [])
    assert not is_consistent(-1, 8, root, root, [])
    assert is_consistent(0, 8, EMPTY_ROOT, root, [])
    assert not is_consistent(0, 8, root, root, [])


def test_indexes_outside_are_refused():
    with pytest.raises(ValueError, match="leaf 8"):
        tree(LEAVES).inclusion(8)
    with pytest.raises(ValueError, match="earlier state of 0"):
        tree(LEAVES).consistency(0)
    assert root_from_inclusion(8, 8, LEAVES[0], []) is None


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 65_535, 65_536, 65_537, 16_777_217, 10_000_000])
def test_the_tiles_of_a_proof_are_known_before(size):
    for leaf in {0, size // 2, size - 1, max(0, size - 257), size // 3}:
        asked = set()

        def read_tile(level, index, asked=asked):
            asked.add((level, index))
            return bytes(HASH_BYTES * min(TILE_WIDTH, max(0, (size >> (8 * level)) - index * TILE_WIDTH)))

        tree = Tree(size, read_tile)
        tree.leaf(leaf), tree.inclusion(leaf), tree.root(), tree.consistency(leaf + 1)
        assert asked <= set(plan_tiles(size, leaf))
        assert len(plan_tiles(size, leaf)) <= 8


def test_a_missing_tile_is_named():
    with pytest.raises(MissingTile, match="tile 0 of level 0"):
        Tree(5, lambda *_: b"").root()
