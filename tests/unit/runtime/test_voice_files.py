"""In which folders a model that speaks is found: as people, and repositories, lay them out."""

from pathlib import Path

import pytest

from stentor.runtime.launchers.base import LaunchRefused
from stentor.runtime.spec import ModelSpec
from stentor.runtime.speech import find_voice

KOKORO = ModelSpec(id="kokoro", engine="kokoro", source="file:/models/kokoro")


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x" * 1000)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("model.onnx", "voices/af_heart.bin", "voices/jf_alpha.bin"),
        ("onnx/model_quantized.onnx", "voices/af_heart.bin", "voices/jf_alpha.bin"),
        ("model.onnx", "af_heart.bin", "jf_alpha.bin"),
    ],
)
def test_kokoros_voices_are_where_they_are_usually_put(tmp_path: Path, names: tuple[str, ...]) -> None:
    found = find_voice(KOKORO, lay(tmp_path, *names))
    assert [(voice.id, voice.language) for voice in found.voices] == [("af_heart", "en-US"), ("jf_alpha", "ja")]
    assert found.size_bytes == 3000


@pytest.mark.parametrize("names", [("model.onnx",), ("voices/af_heart.bin",)])
def test_half_a_model_is_told(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(LaunchRefused, match="has no"):
        find_voice(KOKORO, lay(tmp_path, *names))
