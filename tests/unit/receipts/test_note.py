"""Checkpoints as signed notes: the form, and every way of getting one wrong."""

import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from stentor.receipts.note import (
    Checkpoint,
    InvalidNote,
    is_name,
    key_hash,
    list_signers,
    previous_line,
    read_checkpoint,
    sign_note,
)
from tests.independent_verifier import check_checkpoint

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
ROOT = hashlib.sha256(b"root").digest()
POINT = Checkpoint("example.com/log", 42, ROOT)
NOTE = sign_note(POINT.text(), POINT.origin, [KEY])


def test_the_form_of_a_checkpoint():
    lines = NOTE.split("\n")
    assert lines[:4] == ["example.com/log", "42", base64.b64encode(ROOT).decode(), ""]
    dash, name, blob = lines[4].split(" ")
    assert (dash, name, lines[5:]) == ("—", "example.com/log", [""])
    raw = base64.b64decode(blob)
    assert len(raw) == 68
    assert raw[:4] == key_hash("example.com/log", PUBLIC)


def test_a_known_key_hash():
    # The verifier key of the Go checksum database: sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8
    blob = base64.b64decode("Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8")
    assert blob[0] == 1
    assert key_hash("sum.golang.org", blob[1:]).hex() == "033de0ae"


def test_a_note_says_what_was_signed_and_by_whom():
    assert read_checkpoint(NOTE) == POINT
    assert list_signers(NOTE, [PUBLIC]) == [PUBLIC]
    assert list_signers(NOTE, [Ed25519PrivateKey.generate().public_key().public_bytes_raw()]) == []
    x = base64.urlsafe_b64encode(PUBLIC).rstrip(b"=").decode()
    assert check_checkpoint(NOTE, [{"x": x}]) == ("example.com/log", 42, ROOT)


def test_two_keys_sign_while_one_follows_the_other():
    other = Ed25519PrivateKey.generate()
    note = sign_note(POINT.text(), POINT.origin, [other, KEY])
    assert list_signers(note, [PUBLIC]) == [PUBLIC]
    assert len(list_signers(note, [PUBLIC, other.public_key().public_bytes_raw()])) == 2


@pytest.mark.parametrize(
    ("was", "becomes"),
    [("\n42\n", "\n43\n"), ("example.com/log\n42", "example.com/log\n42\nmore"), (ROOT, hashlib.sha256(b"x").digest())],
)
def test_a_changed_checkpoint_is_not_signed(was, becomes):
    if isinstance(was, bytes):
        was, becomes = base64.b64encode(was).decode(), base64.b64encode(becomes).decode()
    with pytest.raises(InvalidNote, match="signature"):
        list_signers(NOTE.replace(was, becomes, 1), [PUBLIC])


def test_a_signature_under_another_name_does_not_count():
    note = sign_note(POINT.text(), "example.com/other", [KEY])
    assert list_signers(note, [PUBLIC]) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/log\n1\n",
        "a\n1\nAAAA\n\n— a AAAA\n",
        "a\n01\n" + base64.b64encode(ROOT).decode() + "\n\n— a AAAA\n",
        "a b\n1\n" + base64.b64encode(ROOT).decode() + "\n\n— a AAAA\n",
        "a\n-1\n" + base64.b64encode(ROOT).decode() + "\n\n— a AAAA\n",
        "a\n1\n" + base64.b64encode(ROOT).decode() + "\n\n- a AAAA\n",
        "a\n1\n" + base64.b64encode(ROOT).decode() + "\n\n— a *\n",
        NOTE[:-1],
        "x" * 100_000,
    ],
)
def test_what_is_no_checkpoint(text):
    with pytest.raises(InvalidNote):
        read_checkpoint(text)


def test_a_log_names_the_one_before():
    after = Checkpoint("example.com/log~2", 0, ROOT, (previous_line(POINT),))
    assert read_checkpoint(sign_note(after.text(), after.origin, [KEY])).previous == POINT
    assert POINT.previous is None


@pytest.mark.parametrize(("name", "good"), [("a.example/log", True), ("a b", False), ("a+b", False), ("", False)])
def test_names(name, good):
    assert is_name(name) is good
