"""Images and sounds by their heads: real ones pass, claims of gigabytes and broken ones are refused."""

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stentor.core.errors import Refused
from stentor.flows.media import Size, check_total, measure_audio, measure_image
from tests import media


def image(data: bytes, kind: str = "png") -> Size:
    return measure_image(media.image_part(data, kind)["image_url"]["url"], "here")


def sound(data: bytes, form: str) -> Size:
    return measure_audio(base64.b64encode(data).decode(), form, "here")


@pytest.mark.parametrize(
    "data",
    [
        media.png(30, 20),
        media.jpeg_head(30, 20),
        media.gif_head(30, 20),
        media.bmp_head(30, 20),
        media.bmp_head(30, -20),
        media.webp_head(30, 20),
    ],
    ids=["png", "jpeg", "gif", "bmp", "bmp upside down", "webp"],
)
def test_knows_the_size_of_a_picture_whatever_it_is_called(data: bytes) -> None:
    assert image(data, "png").pixels == image(data, "x-icon").pixels == 600


@pytest.mark.parametrize(
    "make", [media.jpeg_head, media.gif_head, media.bmp_head, media.webp_head, lambda w, h: media.png(claimed=(w, h))]
)
@pytest.mark.parametrize("size", [(16_000, 16_000), (16_000, 0)])
def test_refuses_a_picture_that_would_become_gigabytes_or_nothing(make: Any, size: tuple[int, int]) -> None:
    if make is media.webp_head and not size[1]:
        return  # its sizes begin at one
    with pytest.raises(Refused, match="pixels") as refusal:
        image(make(*size))
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", "here")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "must be a 'data:image/"),
        ("data:text/plain;base64,QQ==", "must be a 'data:image/"),
        ("data:image/png,QQ==", "must be a 'data:image/"),
        ("data:image/png;base64,", "no PNG"),
        ("data:image/png;base64,QQ", "isn't valid base64"),
        ("data:image/png;base64,Q Q=", "isn't valid base64"),
        ("data:image/png;base64,QQ==QQ==", "isn't valid base64"),
        ("data:image/png;base64,ÄÖ==", "isn't valid base64"),
        ("https://example.org/a.png", "fetches none"),
        ("HTTP://example.org/a.png", "fetches none"),
        ("data:image/png;base64," + "A" * 28_000_000, "over 20 MiB"),
    ],
)
def test_says_what_is_wrong_with_an_address(url: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        measure_image(url, "here")


def test_knows_how_long_a_sound_is() -> None:
    assert sound(media.wav(2.5), "wav").seconds == pytest.approx(2.5)
    assert sound(media.flac_head(48_000), "flac").seconds == pytest.approx(3.0)
    assert sound(media.mp3(100), "mp3").seconds == pytest.approx(100 * 1152 / 44_100, abs=0.1)
    assert sound(b"ID3\x04\0\0\0\0\x01\0" + b"\xff" * 128 + media.mp3(100), "mp3").seconds == pytest.approx(
        2.6, abs=0.1
    )


def test_refuses_a_sound_that_would_become_gigabytes() -> None:
    slow = bytearray(media.wav(1.0))
    slow[24:28] = slow[28:32] = (1).to_bytes(4, "little")  # one sample a second
    long = bytearray(media.wav(1.0))
    long[40:44] = (2**31).to_bytes(4, "little")
    for data, form in [
        (bytes(slow), "wav"),
        (bytes(long), "wav"),
        (media.flac_head(2**35), "flac"),
        (media.mp3(10, claimed=2**31), "mp3"),
        (media.mp3(100_000), "mp3"),
        (media.mp3(3) + b"\0" * 5_000_000, "mp3"),
    ]:
        with pytest.raises(Refused, match=r"s of sound"):
            sound(data, form)


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (b"", "wav"),
        (b"RIFF", "wav"),
        (media.wav()[:30], "wav"),
        (media.png(), "wav"),
        (media.flac_head(0), "flac"),
        (media.flac_head(100, rate=0), "flac"),
        (b"fLaC", "flac"),
        (media.wav(), "mp3"),
        (b"ID3", "mp3"),
        (media.wav(), "ogg"),
        (media.wav(), ""),
    ],
)
def test_refuses_what_is_no_sound(data: bytes, form: str) -> None:
    with pytest.raises(Refused) as refusal:
        sound(data, form)
    assert refusal.value.code == "invalid_request"


def test_a_request_may_hold_only_so_much_in_all() -> None:
    check_total(Size(100_000_000, 1700.0))
    with pytest.raises(Refused, match="pixels in all"):
        check_total(Size(200_000_000, 0.0))
    with pytest.raises(Refused, match="s of sound"):
        check_total(Size(0, 1900.0))


HEADS = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"RIFF0000WEBPVP8 ", b"RIFF0000WEBPVP8L"]
SOUND_HEADS = [b"", b"RIFF0000WAVE", b"RIFF0000WAVEfmt ", b"fLaC\0", b"ID3", b"\xff\xfb\x50"]


@given(st.sampled_from(HEADS), st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_a_refusal(head: bytes, rest: bytes) -> None:
    with contextlib.suppress(Refused):
        assert image(head + rest).pixels > 0


@given(st.sampled_from(SOUND_HEADS), st.binary(max_size=300), st.sampled_from(["wav", "mp3", "flac"]))
def test_any_bytes_are_a_sound_or_a_refusal(head: bytes, rest: bytes, form: str) -> None:
    with contextlib.suppress(Refused):
        assert 0 < sound(head + rest, form).seconds <= 1800
