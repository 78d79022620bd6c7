"""The outsider's monitor: what it accepts, and every way of cheating it."""

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stentor.receipts.canonical import to_base64url
from stentor.receipts.merkle import MissingTile, Tree, hash_leaf, plan_append
from stentor.receipts.monitor import Seen, audit
from stentor.receipts.note import Checkpoint, previous_line, sign_note
from stentor.receipts.verify import TrustedKey


class Log:
    """A log that an operator could run, honest or not."""

    def __init__(self, leaves: list[bytes], key: Ed25519PrivateKey | None = None, origin: str = "log.example") -> None:
        self.keys = [key or Ed25519PrivateKey.generate()]
        self.signers = self.keys
        self.origin = origin
        self.extensions: tuple[str, ...] = ()
        self.change: Callable[[str, bytes], bytes] = lambda _, body: body
        self.set(leaves)

    def set(self, leaves: list[bytes]) -> None:
        self.leaves = leaves
        self.tiles = plan_append(0, (), [hash_leaf(leaf) for leaf in leaves]).changed
        self.size = len(leaves)

    def tree(self, size: int | None = None) -> Tree:
        return Tree(self.size if size is None else size, lambda level, index: self.tiles.get((level, index), b""))

    @property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.origin, self.size, self.tree().root(), self.extensions)

    def fetch(self, target: str) -> bytes:
        return self.change(target, self._fetch(target))

    def _fetch(self, target: str) -> bytes:
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        if path == "/receipts/public-keys.json":
            publics = [to_base64url(key.public_key().public_bytes_raw()) for key in self.keys]
            form = {"kty": "OKP", "crv": "Ed25519", "purpose": "checkpoint"}
            jwks = [{"kid": str(at), **form, "x": public} for at, public in enumerate(publics)]
            return json.dumps(jwks).encode()
        if path == "/receipts/log/checkpoint":
            return sign_note(self.checkpoint.text(), self.origin, self.signers).encode()
        if path == "/receipts/log/consistency":
            first, second = int(query["first"][0]), int(query["second"][0])
            try:
                proof = self.tree(second).consistency(first)
            except (ValueError, MissingTile):
                return b"null"
            return json.dumps({"proof": [base64.b64encode(node).decode() for node in proof]}).encode()
        assert path.startswith("/receipts/log/tiles/0/")
        return self.tiles.get((0, int(path.rpartition("/")[2])), b"")


def leaves(count: int, salt: str = "") -> list[bytes]:
    return [f"{salt}{number}".encode() for number in range(count)]


@pytest.fixture
def log() -> Log:
    return Log(leaves(300))


def look(log: Log, before: Seen | None, **more: Any) -> tuple[Seen | None, list[str]]:
    report = audit(log.fetch, before, **more)
    return report.seen, report.problems


def test_a_log_that_grows_is_accepted(log: Log):
    seen, problems = look(log, None, full=True)
    assert problems == []
    for count in (300, 301, 700, 1000):
        log.set(leaves(count))
        seen, problems = look(log, seen, full=True)
        assert problems == []
        assert seen is not None
        assert seen.size == count


def test_an_empty_log_may_grow():
    log = Log([])
    seen, problems = look(log, None, full=True)
    assert problems == []
    log.set(leaves(3))
    assert look(log, seen)[1] == []


@pytest.mark.parametrize(
    "now",
    [
        leaves(299),
        leaves(300, "other"),
        leaves(400, "other"),
        [*leaves(100), *leaves(300)[101:], b"more", b"more"],
        [*leaves(300)[::-1], b"more"],
        [b"changed", *leaves(400)[1:]],
    ],
    ids=["shrunk", "another history", "another longer one", "one removed", "reordered", "one changed"],
)
def test_a_changed_history_is_found_out(log: Log, now: list[bytes]):
    seen, _ = look(log, None)
    log.set(now)
    after, problems = look(log, seen)
    assert len(problems) == 1
    assert after == seen  # what is remembered stays what was proven


def test_two_monitors_that_are_shown_two_histories_notice(log: Log):
    fork = Log([*leaves(299), b"forked"], log.keys[0])
    ours, _ = look(log, None)
    theirs, problems = look(fork, None)
    assert problems == []
    # They compare notes: each looks at what the other remembers.
    assert "Two histories" in look(log, theirs)[1][0]
    assert "Two histories" in look(fork, ours)[1][0]


def test_a_checkpoint_by_a_stranger_is_refused(log: Log):
    seen, _ = look(log, None)
    log.keys = log.signers = [Ed25519PrivateKey.generate()]
    assert "isn't signed" in look(log, seen)[1][0]


def test_a_changed_checkpoint_is_refused(log: Log):
    seen, _ = look(log, None)
    log.change = lambda target, body: body.replace(b"\n300\n", b"\n301\n") if target.endswith("checkpoint") else body
    assert "signature" in look(log, seen)[1][0]
    log.change = lambda target, body: b"nothing" if target.endswith("checkpoint") else body
    assert "can't be read" in look(log, seen)[1][0]


def test_a_new_key_is_learned_from_the_old_one(log: Log):
    seen, _ = look(log, None)
    second = Ed25519PrivateKey.generate()
    log.keys = [second, *log.keys]
    log.signers = log.keys
    seen, problems = look(log, seen)
    assert problems == []
    log.signers = [second]
    assert look(log, seen)[1] == []


def test_a_published_key_that_signs_alone_is_not_trusted(log: Log):
    seen, _ = look(log, None)
    second = Ed25519PrivateKey.generate()
    log.keys, log.signers = [*log.keys, second], [second]
    assert look(log, seen)[1] != []


def test_a_restored_backup_is_reported_once(log: Log):
    seen, _ = look(log, None)
    restored = Log(leaves(5), log.keys[0], "log.example~2")
    restored.extensions = (previous_line(log.checkpoint),)
    seen, problems = look(restored, seen)
    assert "a backup was restored" in problems[0]
    restored.set(leaves(6))
    assert look(restored, seen)[1] == []


@pytest.mark.parametrize("extensions", [(), ("previous elsewhere 300 AAAA",), ("something else",)])
def test_a_new_origin_without_the_old_checkpoint_is_reported(log: Log, extensions: tuple[str, ...]):
    seen, _ = look(log, None)
    other = Log(leaves(5), log.keys[0], "log.example~2")
    other.extensions = extensions
    problems = look(other, seen)[1]
    assert len(problems) == 1
    assert "backup" not in problems[0] or "names" in problems[0]


@pytest.mark.parametrize("place", [0, 1])
def test_leaves_that_do_not_make_the_root_are_found_out(log: Log, place: int):
    def change(target: str, body: bytes) -> bytes:
        return body[:-1] + bytes([body[-1] ^ 1]) if target.startswith(f"/receipts/log/tiles/0/{place}") else body

    log.change = change
    assert "don't make the root" in look(log, None, full=True)[1][0]
    log.change = lambda target, body: body[:-32] if "tiles" in target else body
    assert look(log, None, full=True)[1] != []


def test_given_keys_are_trusted_instead_of_published_ones(log: Log):
    stranger = TrustedKey("x", "checkpoint", Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    own = TrustedKey("y", "checkpoint", log.keys[0].public_key().public_bytes_raw())
    assert "isn't signed" in look(log, None, given=[stranger])[1][0]
    assert look(log, None, given=[own])[1] == []
