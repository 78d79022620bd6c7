"""How long packed sound is, by what its heads say: real files, and files that lie or are cut."""

import io
import random
import struct
from pathlib import Path

import av
import pytest

from stentor.flows.sound_file import NoSound, SoundFile, look_at_sound
from tests.speech import clips

LENGTH_S = 7.0


def look(folder: Path, content: bytes) -> SoundFile:
    path = folder / "sound"
    path.write_bytes(content)
    return look_at_sound(path)


@pytest.mark.parametrize("form", sorted(clips.FORMATS))
def test_each_format_says_how_long_it_is(tmp_path: Path, form: str) -> None:
    found = look(tmp_path, clips.encode(clips.silence(LENGTH_S), form))
    assert found.told
    assert found.measured == (form == "wav")
    assert found.duration_s == pytest.approx(LENGTH_S, abs=0.2)


def test_what_a_browser_records_says_it_by_its_last_piece(tmp_path: Path) -> None:
    class Sent:
        """As a browser hands it out: nothing that was sent can be mended."""

        whole = b""

        def write(self, data: bytes) -> int:
            self.whole += bytes(data)
            return len(data)

    sent = Sent()
    with av.open(io.BytesIO(clips.encode(clips.silence(LENGTH_S), "webm"))) as source:
        options = {"live": "1", "cluster_time_limit": "1000"}
        with av.open(sent, "w", format="webm", options=options) as target:
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    found = look(tmp_path, sent.whole)
    assert found.told
    assert LENGTH_S - 1.5 < found.duration_s <= LENGTH_S


def test_a_long_file_of_few_bytes_says_so(tmp_path: Path) -> None:
    sound = clips.encode(clips.silence(1.0), "ogg")
    at = sound.rfind(b"OggS") + 6
    found = look(tmp_path, sound[:at] + struct.pack("<q", 48_000 * 36_000) + sound[at + 8 :])
    assert found.duration_s == pytest.approx(36_000)


@pytest.mark.parametrize("form", sorted(clips.FORMATS))
def test_damage_is_no_surprise(tmp_path: Path, form: str) -> None:
    whole, chance = clips.encode(clips.silence(2.0), form), random.Random(form)
    for _ in range(60):
        cut = bytearray(whole[: chance.randrange(16, len(whole))])
        for _ in range(chance.randrange(8)):
            cut[chance.randrange(12, len(cut))] = chance.randrange(256)
        try:
            assert look(tmp_path, bytes(cut)).duration_s >= 0
        except NoSound:
            assert form == "wav"
