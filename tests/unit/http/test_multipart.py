"""Forms as they come in: what stands around the parts is nobody's, and costs nobody anything."""

import time

import pytest

from stentor.core.errors import Refused
from stentor.http.multipart import MultipartReader, PartEnd, PartHead

TYPE = b"multipart/form-data; boundary=b"
FORM = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nsound\r\n--b--\r\n'
WHOLE = [PartHead("file", is_file=True), b"sound", PartEnd()]


def test_what_follows_the_last_boundary_is_let_go() -> None:
    reader = MultipartReader(TYPE)
    assert list(reader.feed(FORM)) == WHOLE
    began_s = time.process_time()
    for _ in range(2000):
        assert list(reader.feed(b"x" * 65536)) == []
    assert time.process_time() - began_s < 5  # joined to what came before it took minutes
    reader.finish()


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
def test_a_form_may_come_in_pieces(step: int) -> None:
    reader = MultipartReader(TYPE)
    events = [event for at in range(0, len(FORM), step) for event in reader.feed(FORM[at : at + step])]
    assert b"".join(event for event in events if isinstance(event, bytes)) == b"sound"
    assert [event for event in events if not isinstance(event, bytes)] == [WHOLE[0], WHOLE[2]]
    reader.finish()


def test_a_form_without_its_end_is_refused() -> None:
    reader = MultipartReader(TYPE)
    list(reader.feed(FORM[:-6]))
    with pytest.raises(Refused):
        reader.finish()
