"""Identifiers are what RFC 9562 says, and sort by their time."""

import time
import uuid

from stentor.core.ids import new_uuid7


def test_ids_are_uuids_of_version_7_with_the_time_in_front() -> None:
    before_ms = time.time_ns() // 1_000_000
    texts = [new_uuid7() for _ in range(1000)]
    after_ms = time.time_ns() // 1_000_000
    assert len(set(texts)) == 1000
    for text in texts:
        number = uuid.UUID(text)
        assert (str(number), number.version, number.variant) == (text, 7, uuid.RFC_4122)
        assert before_ms <= number.int >> 80 <= after_ms
