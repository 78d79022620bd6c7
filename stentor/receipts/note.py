"""Signed notes and checkpoints (C2SP signed-note, tlog-checkpoint): text that says how a log stands, and who says so.

A checkpoint is ``origin``, the tree's size, its root in base64, then further lines, each ended by a line feed. A blank
line and one line a signature follow: ``— <name> <base64 of key hash and signature>``.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_NAME = re.compile(r"[^\s+]{1,255}")
_LINE = re.compile(r"— (\S+) (\S+)")
_SIGNATURE_BYTES = 64
NOTE_MAX_CHARS = 64 * 1024


class InvalidNote(Exception):
    """Text that isn't a signed note, or not a checkpoint; the message says where."""


class Checkpoint(NamedTuple):
    """What a log says of itself. ``extensions`` are further lines, signed with the rest."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def text(self) -> str:
        """The note's text, as it is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @property
    def previous(self) -> "Checkpoint | None":
        """The log that this one follows, from the extension line ``previous <origin> <size> <root>``."""
        for line in self.extensions:
            words = line.split(" ")
            if len(words) == 4 and words[0] == "previous" and _SIZE.fullmatch(words[2]):
                return Checkpoint(words[1], int(words[2]), _unbase64(words[3]))
        return None


def previous_line(checkpoint: Checkpoint) -> str:
    """The extension line that names the log before this one."""
    return f"previous {checkpoint.origin} {checkpoint.size} {base64.b64encode(checkpoint.root).decode()}"


def is_name(text: str) -> bool:
    """Whether ``text`` may be an origin and a key's name."""
    return _NAME.fullmatch(text) is not None


def key_hash(name: str, public: bytes) -> bytes:
    """Four bytes that tell a log's keys apart."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def sign_note(text: str, name: str, keys: Iterable[Ed25519PrivateKey]) -> str:
    """``text`` with a signature line for each key."""
    lines = []
    for key in keys:
        blob = key_hash(name, key.public_key().public_bytes_raw()) + key.sign(text.encode())
        lines.append(f"— {name} {base64.b64encode(blob).decode()}\n")
    return text + "\n" + "".join(lines)


def split_note(note: str) -> tuple[str, list[tuple[str, bytes, bytes]]]:
    """The signed text, and its signatures as name, key hash, signature. Raises InvalidNote."""
    if len(note) > NOTE_MAX_CHARS:
        raise InvalidNote("it is too long for a checkpoint")
    text, mark, tail = note.rpartition("\n\n")
    if not mark or not tail.endswith("\n"):
        raise InvalidNote("there is no blank line before the signatures, or the last line has no end")
    signatures = []
    for line in tail[:-1].split("\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            raise InvalidNote(f"the line {line[:80]!r} isn't a signature")
        blob = _unbase64(match[2])
        if len(blob) >= 4:
            signatures.append((match[1], blob[:4], blob[4:]))
    return text + "\n", signatures


def read_checkpoint(note: str) -> Checkpoint:
    """The checkpoint in a note; its signatures are not looked at. Raises InvalidNote."""
    text, _ = split_note(note)
    lines = text[:-1].split("\n")
    if len(lines) < 3 or not is_name(lines[0]):
        raise InvalidNote("a checkpoint has an origin, a size and a root hash")
    if not _SIZE.fullmatch(lines[1]):
        raise InvalidNote(f"the size {lines[1][:40]!r} isn't a decimal number")
    root = _unbase64(lines[2])
    if len(root) != hashlib.sha256().digest_size:
        raise InvalidNote("the root isn't a SHA-256 hash")
    return Checkpoint(lines[0], int(lines[1]), root, tuple(lines[3:]))


def list_signers(note: str, publics: Iterable[bytes]) -> list[bytes]:
    """Those of the keys (32 bytes each) that signed the note under its origin. Raises InvalidNote."""
    text, signatures = split_note(note)
    origin = text.partition("\n")[0]
    wanted: Mapping[bytes, bytes] = {key_hash(origin, public): public for public in publics}
    signers = []
    for name, hashed, signature in signatures:
        public = wanted.get(hashed)
        if name != origin or public is None or len(signature) != _SIGNATURE_BYTES:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(public).verify(signature, text.encode())
        except InvalidSignature:
            raise InvalidNote(f"the signature of {name} is wrong") from None
        signers.append(public)
    return signers


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidNote(f"{text[:60]!r} isn't base64") from None
