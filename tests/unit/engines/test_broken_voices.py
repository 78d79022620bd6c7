"""Files that have a voice's names and are none: told at once, as trying again can't help."""

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


@pytest.mark.parametrize("voice", [bytes(510 * 256 * 4), b"PK\x03\x04 no archive", b"x"])
def test_a_kokoro_model_that_is_none(tmp_path: Path, voice: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(b"<html>not found</html>")
    (tmp_path / "af_heart.bin").write_bytes(voice)
    with pytest.raises(BadModel, match=r"model\.onnx"):
        KokoroSynthesizer(tmp_path, 1)
