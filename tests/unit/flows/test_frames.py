"""Frames are cut on blank lines, however the bytes come in."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.flows import frames
from stentor.flows.frames import FrameSplitter, FrameTooLarge, frame_data

STREAM = b'data: {"a":1}\n\n: ping\n\ndata: two\ndata: lines\n\ndata: [DONE]\n\n'
FRAMES = [b'data: {"a":1}\n\n', b": ping\n\n", b"data: two\ndata: lines\n\n", b"data: [DONE]\n\n"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12), st.booleans())
def test_cuts_the_same_frames_wherever_the_network_cuts(cuts: list[int], crlf: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    scale = len(stream) / len(STREAM)
    edges = [0, *sorted(int(cut * scale) for cut in cuts), len(stream)]
    splitter = FrameSplitter()
    got = [frame for a, b in itertools.pairwise(edges) for frame in splitter.feed(stream[a:b])]
    assert got == FRAMES
    assert splitter.rest == b""


def test_keeps_the_rest_of_a_cut_frame() -> None:
    splitter = FrameSplitter()
    assert splitter.feed(b"data: 1\n\ndata: 2") == [b"data: 1\n\n"]
    assert splitter.rest == b"data: 2"


def test_refuses_a_frame_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "FRAME_MAX_BYTES", 100)
    with pytest.raises(FrameTooLarge):
        FrameSplitter().feed(b"x" * 101)


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        (b"data: x\n\n", b"x"),
        (b"data:x\n\n", b"x"),
        (b"data: two\ndata: lines\n\n", b"two\nlines"),
        (b"event: e\ndata: x\n\n", b"x"),
        (b": ping\n\n", None),
        (b"\n\n", None),
    ],
)
def test_finds_the_data_of_a_frame(frame: bytes, data: bytes | None) -> None:
    assert frame_data(frame) == data
