"""Files that have a voice's names and are none: told at once, as trying again can't help."""

import io
import re
import zipfile
from pathlib import Path

import pytest

from stentor.engines.host import BadModel
from stentor.engines.kokoro import KokoroSynthesizer
from stentor.engines.piper import PiperSynthesizer

DESCRIPTION = (
    b'{"audio":{"sample_rate":22050},"num_symbols":1,"num_speakers":1,"espeak":{"voice":"en"},"phoneme_id_map":{}}'
)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x08\x09" * 4000])
def test_a_piper_voice_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "voice.onnx").write_bytes(content)
    (tmp_path / "voice.onnx.json").write_bytes(DESCRIPTION)
    with pytest.raises(BadModel, match=r"voice\.onnx"):
        PiperSynthesizer(tmp_path, 1)


@pytest.mark.parametrize("description", [b"", b"{}", b"[]", b'{"audio":7}'])
def test_a_description_that_says_nothing(tmp_path: Path, description: bytes) -> None:
    (tmp_path / "voice.onnx").write_bytes(b"x")
    (tmp_path / "voice.onnx.json").write_bytes(description)
    with pytest.raises(BadModel, match=r"voice\.onnx"):
        PiperSynthesizer(tmp_path, 1)


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return file.getvalue()


WHOLE = bytes(510 * 256 * 4)


@pytest.mark.parametrize(
    ("voice", "named"),
    [
        (WHOLE, "model.onnx"),
        (WHOLE[:-1000], "af_heart.bin"),
        (b"PK\x03\x04 no archive", "af_heart.bin"),
        (b"x", "af_heart.bin"),
        (b"", "af_heart.bin"),
        (archive(), "af_heart.bin"),
        (archive(af_heart=b"<html>"), "af_heart.bin"),
    ],
)
def test_a_kokoro_model_that_is_none(tmp_path: Path, voice: bytes, named: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"<html>not found</html>")
    (tmp_path / "af_heart.bin").write_bytes(voice)
    with pytest.raises(BadModel, match=re.escape(str(tmp_path / named))):
        KokoroSynthesizer(tmp_path, 1)
