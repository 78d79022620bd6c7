"""Canonical bytes: RFC 8785's own examples, what is signed and what isn't, and the quick form of a usage leaf."""

import json
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from stentor.receipts.canonical import (
    NotCanonical,
    canonical_json,
    from_base64url,
    is_signed_by,
    leaf_bytes,
    sign_receipt,
    signed_bytes,
    to_base64url,
)
from stentor.receipts.usage import UsageRow, split_receipt_id, usage_leaf, usage_leaf_bytes
from tests.independent_verifier import es6_number, jcs

# RFC 8785, appendix B: IEEE 754 bits and the number's text.
NUMBERS = [
    ("0000000000000000", "0"),
    ("8000000000000000", "0"),
    ("0000000000000001", "5e-324"),
    ("8000000000000001", "-5e-324"),
    ("7fefffffffffffff", "1.7976931348623157e+308"),
    ("ffefffffffffffff", "-1.7976931348623157e+308"),
    ("4340000000000000", "9007199254740992"),
    ("c340000000000000", "-9007199254740992"),
    ("4430000000000000", "295147905179352830000"),
    ("44b52d02c7e14af5", "9.999999999999997e+22"),
    ("44b52d02c7e14af6", "1e+23"),
    ("44b52d02c7e14af7", "1.0000000000000001e+23"),
    ("444b1ae4d6e2ef4e", "999999999999999700000"),
    ("444b1ae4d6e2ef4f", "999999999999999900000"),
    ("444b1ae4d6e2ef50", "1e+21"),
    ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", "0.000001"),
    ("41b3de4355555553", "333333333.3333332"),
    ("41b3de4355555554", "333333333.33333325"),
    ("41b3de4355555555", "333333333.3333333"),
    ("41b3de4355555556", "333333333.3333334"),
    ("41b3de4355555557", "333333333.33333343"),
    ("becbf647612f3696", "-0.0000033333333333333333"),
    ("43143ff3c1cb0959", "1424953923781206.2"),
]
# RFC 8785 §3.2.2 and §3.2.3.
EXAMPLE = r"""{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"""
EXAMPLE_FORM = (
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
)
SORTED = {
    "\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",
    "\U0001f600": "Emoji: Grinning Face", "\u0080": "Control", "\u00f6": "Latin Small Letter O With Diaeresis",
}  # fmt: skip
SORTED_ORDER = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@pytest.mark.parametrize(("bits", "text"), NUMBERS)
def test_numbers_of_rfc_8785(bits, text):
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical_json(number).decode() == es6_number(number) == text


def test_the_example_of_rfc_8785():
    assert canonical_json(json.loads(EXAMPLE)).decode() == jcs(json.loads(EXAMPLE)) == EXAMPLE_FORM


def test_names_are_sorted_as_rfc_8785_says():
    for form in (canonical_json(SORTED).decode(), jcs(SORTED)):
        assert list(json.loads(form)) == SORTED_ORDER


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, "\ud800", {"a": object()}])
def test_what_canonical_json_cant_carry_is_refused(value):
    with pytest.raises((NotCanonical, TypeError)):
        canonical_json(value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_two_implementations_agree(value):
    assert canonical_json(value).decode() == jcs(value)


def test_what_is_signed_and_what_is_logged():
    receipt = {"id": "1", "key_id": "k", "signature": "s", "log": {"index": 1}, "cost": {"amount": "1"}}
    assert signed_bytes(receipt) == b'{"cost":{"amount":"1"},"id":"1","key_id":"k"}'
    assert leaf_bytes(receipt) == b'{"cost":{"amount":"1"},"id":"1"}'


def test_a_signature_holds_for_the_same_content_alone():
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    receipt = {"id": "1", "tokens": {"input": 1, "output": 2}, "cost": {"amount": "0.10"}}
    receipt["signature"] = sign_receipt(receipt, key)
    assert is_signed_by(json.loads(json.dumps(receipt)), public)
    assert is_signed_by({**receipt, "log": {"index": 7}}, public)
    for change in ({"id": "2"}, {"tokens": {"input": 1, "output": 3}}, {"extra": None}, {"signature": "ed25519:AAAA"}):
        assert not is_signed_by({**receipt, **change}, public)
    assert not is_signed_by({"id": "1"}, public)
    assert not is_signed_by(receipt, Ed25519PrivateKey.generate().public_key().public_bytes_raw())


@given(st.binary(max_size=80))
def test_base64url_comes_back(raw):
    text = to_base64url(raw)
    assert "=" not in text
    assert from_base64url(text) == from_base64url(text + "=" * (-len(text) % 4)) == raw


@pytest.mark.parametrize("text", ["*", "a", "ab c", "äöü"])
def test_other_text_is_no_base64url(text):
    assert from_base64url(text) is None


COUNT = st.integers(0, 2**40)
NANO = st.none() | st.integers(0, 10**15)


@given(
    st.tuples(COUNT, COUNT, COUNT, COUNT, COUNT, COUNT),
    st.tuples(NANO, NANO, NANO, NANO, NANO, NANO),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30),
    st.booleans(),
)
def test_the_quick_leaf_is_the_canonical_one(counts, prices, model, billable):
    row = UsageRow(
        1, "01900000-0000-7000-8000-000000000000", 1, 1_800_000_000_123_456, "p", model,
        *counts[:5], counts[5], 3, billable, *prices,
    )  # fmt: skip
    leaf = usage_leaf(row, b"k" * 32)
    assert usage_leaf_bytes(row, b"k" * 32) == canonical_json(leaf) == leaf_bytes(leaf)
    assert split_receipt_id(leaf["id"]) == (row.request_id, 1)


def test_salts_differ_by_event_and_by_key():
    row = UsageRow(1, "01900000-0000-7000-8000-000000000000", 1, 1, "p", "m", *[1] * 5, 1, 1, True, *[1] * 6)
    salts = {
        usage_leaf(row, b"a")["salt"],
        usage_leaf(row, b"b")["salt"],
        usage_leaf(row._replace(attempt=2), b"a")["salt"],
    }
    assert len(salts) == 3
    assert all(len(from_base64url(salt)) == 16 for salt in salts)


@pytest.mark.parametrize("text", ["", "rcpt_", "rcpt_01900000-0000-7000-8000-000000000000", "rcpt_abc_1", "other_1"])
def test_ids_of_other_receipts_name_no_event(text):
    assert split_receipt_id(text) is None
