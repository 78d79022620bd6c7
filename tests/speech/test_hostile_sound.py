"""Files that are broken, lie, or mean harm: each is refused in words, and the engine is there for the next."""

import contextlib
import functools
import gzip
import io
import socket
import struct
import sys
import zipfile
from pathlib import Path

import pytest

from tests.http.harness import until
from tests.speech import clips
from tests.speech.conftest import TRANSCRIPTIONS, Hearing, form
from tests.speech.words import plain_words

SENTENCE = clips.SENTENCES[4]


def header(**changed: int) -> bytes:
    """The head of a WAV file, with some numbers of it changed."""
    fields = {"kind": 1, "channels": 1, "rate": 16_000, "bits": 16, "size": 0, **changed}
    bytes_each = fields["channels"] * fields["bits"] // 8
    chunk = struct.pack(
        "<4sIHHIIHH", b"fmt ", 16, fields["kind"], fields["channels"], fields["rate"],
        fields["rate"] * bytes_each & 0xFFFFFFFF, bytes_each & 0xFFFF, fields["bits"],
    )  # fmt: skip
    return (
        b"RIFF" + struct.pack("<I", 36 + fields["size"]) + b"WAVE" + chunk + b"data" + struct.pack("<I", fields["size"])
    )


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.wav", b"x")
    return out.getvalue()


def sound(form_name: str) -> bytes:
    return clips.encode(clips.samples_of(clips.speak(SENTENCE)), form_name)


def replaced(data: bytes, name: bytes, change: bytes, at: int) -> bytes:
    """An MP4 file, with bytes of the box ``name`` changed, ``at`` bytes after its name."""
    place = data.index(name) + len(name) + at
    return data[:place] + change + data[place + len(change) :]


def bomb() -> bytes:
    """A small file that makes FFmpeg build an index of 40 million places."""
    return replaced(sound("m4a"), b"stsz", struct.pack(">II", 1, 40_000_000), 4)


@functools.cache
def silent_bomb() -> bytes:
    """A small file with most of an hour in it."""
    return clips.encode(clips.silence(3_000.0, 8_000), "flac", 8_000)


BAD = {
    "one byte": lambda: b"R",
    "a text": lambda: b"this is not sound at all, however long it is" * 50,
    "zeros": lambda: bytes(100_000),
    "a zip": zipped,
    "a gzip": lambda: gzip.compress(clips.speak(SENTENCE).read_bytes()),
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "a playlist": lambda: b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n",
    "a script": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "a page": lambda: b"<html><body>Sign in</body></html>",
    "wav: a head alone": lambda: header(),
    "wav: cut in its head": lambda: header()[:30],
    "wav: no channels": lambda: header(channels=0, size=1000) + bytes(1000),
    "wav: 200 channels": lambda: header(channels=200, size=40_000) + bytes(40_000),
    "wav: 1 Hz": lambda: header(rate=1, size=20_000) + bytes(20_000),
    "wav: 4 GHz": lambda: header(rate=4_000_000_000, size=20_000) + bytes(20_000),
    "wav: 0 bits": lambda: header(bits=0, size=1000) + bytes(1000),
    "wav: an odd codec": lambda: header(kind=0x0160, size=1000) + bytes(1000),
    "mp3: its sync word alone": lambda: b"\xff\xfb" + bytes(3000),
    "mp3: a tag alone": lambda: b"ID3\x04\x00\x00\x00\x00\x0f\x76" + bytes(2000),
    "ogg: its mark alone": lambda: b"OggS" + bytes(2000),
    "flac: its mark alone": lambda: b"fLaC" + bytes(2000),
    "webm: its mark alone": lambda: b"\x1a\x45\xdf\xa3" + bytes(2000),
    "m4a: its mark alone": lambda: b"\x00\x00\x00\x20ftypM4A " + bytes(2000),
    "m4a: cut before its index": lambda: sound("m4a")[:2000],
    "m4a: an index of a gigabyte": bomb,
    "ogg: cut in its head": lambda: sound("ogg")[:60],
    "webm: cut in its head": lambda: sound("webm")[:200],
    "flac: its samples scrambled": lambda: sound("flac")[:100] + bytes(range(256)) * 100,
    "too long": lambda: clips.wav(clips.silence(101.0, 8_000), 8_000),
    "a bomb of silence": silent_bomb,
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_a_bad_file_is_refused_in_words(gate: Hearing, name: str) -> None:
    answer = gate.hear(BAD[name](), filename="sound.mp3")
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert error["param"] == "file"
    assert len(error["message"]) > 20
    assert "/" not in error["message"].replace("engine's", "")
    event = gate.event(answer.request_id)
    assert (event["status"], event["cost_nano"], event["audio_ms"]) == ("failed", 0, 0)


def test_the_engine_has_survived_it_all(gate: Hearing) -> None:
    """All of it once more, as streams, then a good one."""
    for make in BAD.values():
        assert gate.hear(make(), stream="true").status == 400
    answer = gate.hear(clips.speak(SENTENCE).read_bytes())
    assert plain_words(answer.json()["text"]) == plain_words(SENTENCE)
    assert gate.slot("tiny")["restarts"] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded on Linux alone")
def test_a_small_file_makes_no_engine_large(gate: Hearing) -> None:
    assert gate.hear(clips.speak(SENTENCE).read_bytes()).status == 200  # it is loaded
    status = Path(f"/proc/{gate.slot('tiny')['pid']}/status")

    def most_mib() -> int:
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) >> 10

    before_mib = most_mib()
    assert gate.hear(bomb()).status == 400
    assert most_mib() - before_mib < 200


def test_what_came_before_a_cut_is_heard(gate: Hearing) -> None:
    """A recording that broke off is still a recording."""
    for name in ("wav", "mp3", "ogg", "webm", "flac"):
        whole = sound(name)
        answer = gate.hear(whole[: len(whole) * 3 // 4])
        assert answer.status == 200, (name, answer.body)
        assert plain_words(answer.json()["text"])[:3] == plain_words(SENTENCE)[:3], name


def test_a_wav_that_was_streamed_says_no_length(gate: Hearing) -> None:
    samples = clips.samples_of(clips.speak(SENTENCE)).tobytes()
    head = bytearray(header(rate=clips.SPOKEN_RATE))
    head[4:8] = head[40:44] = b"\xff\xff\xff\xff"
    answer = gate.hear(bytes(head) + samples)
    assert plain_words(answer.json()["text"]) == plain_words(SENTENCE)


def test_a_file_that_says_too_short_a_length_is_not_heard_beyond_it(gate: Hearing) -> None:
    """What is reserved is what its packets say; more is never heard."""
    whole = clips.encode(clips.join(clips.SENTENCES[:3]), "m4a")
    lie = replaced(whole.replace(b"edts", b"free"), b"stts", struct.pack(">I", 1), 12)
    for stream in ("false", "true"):
        answer = gate.hear(lie, stream=stream)
        assert answer.status == 400, answer.body
        assert "longer than" in answer.json()["error"]["message"]
        assert gate.event(answer.request_id)["cost_nano"] == 0


def test_a_stream_that_breaks_off_is_charged_for_what_was_heard(gate: Hearing) -> None:
    said = clips.samples_of(clips.speak(SENTENCE))
    parts = [said, clips.silence(6.0), said, said, said]
    whole = clips.encode(clips.numpy.concatenate(parts), "m4a")
    body = whole.index(b"mdat") + 4
    size = struct.unpack(">I", whole[body - 8 : body - 4])[0] - 8
    broken = body + size * 6 // 10
    answer = gate.hear(whole[:broken] + b"\x21" * (body + size - broken) + whole[body + size :], stream="true")
    assert b"transcript.text.delta" in answer.body
    assert b"transcript.text.done" not in answer.body
    event = gate.event(answer.request_id)
    assert (event["status"], event["billable"]) == ("failed", True)
    heard_ms = len(said) / clips.SPOKEN_RATE * 1000
    assert heard_ms * 0.7 < event["audio_ms"] < heard_ms + 6000
    assert event["estimated"]


def test_an_empty_file_and_no_file_are_told_apart(gate: Hearing) -> None:
    for content, word in ((b"", "empty"), (None, "no file")):
        answer = gate.hear(content)
        assert answer.status == 400
        assert word in answer.json()["error"]["message"]


def test_a_file_over_the_limit_is_413(gate: Hearing) -> None:
    answer = gate.hear(bytes(4 * 1024 * 1024 + 1))
    assert answer.status == 413
    assert "4 MiB" in answer.json()["error"]["message"]
    assert gate.hear(bytes(20 * 1024 * 1024)).status == 413


MULTIPART = "multipart/form-data; boundary="
FIELD = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n'


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"x", "multipart/form-data"),
        (b"x", MULTIPART),
        (b"x", MULTIPART + "b" * 80),
        (b"nothing like a form", MULTIPART + "b"),
        (b"--b\r\n", MULTIPART + "b"),
        (b"--b\r\n\r\nno name\r\n--b--\r\n", MULTIPART + "b"),
        (FIELD.replace(b"model", b"file") + b"RIFF", MULTIPART + "b"),
        (b"--b\r\n" + b"X-A: b\r\n" * 2000, MULTIPART + "b"),
        (b"--b--\r\n", MULTIPART + "b"),
        ((FIELD + b"x\r\n") * 70 + b"--b--", MULTIPART + "b"),
        (FIELD + b"\xff\xfe\r\n--b--", MULTIPART + "b"),
    ],
)
def test_a_broken_form_is_refused(gate: Hearing, body: bytes, kind: str) -> None:
    answer = gate.ask("POST", TRANSCRIPTIONS, body, Content_Type=kind)
    assert answer.status == 400, answer.body


def test_two_files_and_a_file_of_another_name_are_refused(gate: Hearing) -> None:
    body, kind = form(b"RIFF", model="tiny")
    mark = kind.partition("boundary=")[2]
    twice = body.replace(f"--{mark}--\r\n".encode(), b"") + body
    assert gate.ask("POST", TRANSCRIPTIONS, twice, Content_Type=kind).status == 400
    other = body.replace(b'name="file"', b'name="image"')
    answer = gate.ask("POST", TRANSCRIPTIONS, other, Content_Type=kind)
    assert answer.json()["error"]["param"] == "image"


def test_an_upload_that_trickles_is_refused(gate: Hearing) -> None:
    """However regularly it comes: it holds no place in the spool for hours."""
    body, kind = form(bytes(1_000_000), model="tiny")
    head = (
        f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {gate.key}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", gate.port), timeout=60) as line:
        line.sendall(head + body[:1000])
        line.settimeout(0.5)
        answer = b""
        for place in range(1000, 1120):
            line.sendall(body[place : place + 1])
            with contextlib.suppress(TimeoutError):
                answer = line.recv(65536)
                break
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"too slow: 0 KiB came" in answer
    assert b"16 KiB/s" in answer


def test_an_upload_that_is_given_up_leaves_nothing(gate: Hearing) -> None:
    body, kind = form(bytes(1_000_000), model="tiny")
    head = (
        f"POST {TRANSCRIPTIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {gate.key}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", gate.port)) as line:
        line.sendall(head + body[:500_000])
        until(gate.spooled, timeout_s=30)  # afterwards nothing may lie there
