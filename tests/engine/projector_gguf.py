"""Writes the eyes and ears of a model (mmproj) with made-up weights: real llama.cpp loads them and runs the real path.

Vision as in LLaVA 1.5 (a CLIP encoder and a two-layer projector), hearing as in Ultravox (a Whisper encoder, ten
frames stacked into one token). What a model sees through them means nothing.
"""

from pathlib import Path

import gguf
import numpy as np

WIDTH, HIDDEN, HEADS = 32, 64, 2
IMAGE, PATCH = 28, 14
MELS, FRAMES, STACK = 128, 1500, 10


class _Maker:
    def __init__(self, path: Path, projected: int) -> None:
        self.writer = gguf.GGUFWriter(path, "clip")
        self.writer.add_type("mmproj")
        self.writer.add_name("tiny projector")
        self.projected = projected
        self._numbers = np.random.default_rng(11)

    def add(self, name: str, *shape: int, ones: bool = False, half: bool = False) -> None:
        """A tensor; ``shape`` slowest first."""
        data = np.ones(shape, "<f4") if ones else self._numbers.standard_normal(shape) * 0.05
        self.writer.add_tensor(name, np.ascontiguousarray(data.astype("<f2" if half else "<f4")))

    def norm(self, name: str, size: int = WIDTH) -> None:
        self.add(f"{name}.weight", size, ones=True)
        self.add(f"{name}.bias", size)

    def linear(self, name: str, inside: int, outside: int) -> None:
        self.add(f"{name}.weight", outside, inside)
        self.add(f"{name}.bias", outside)

    def encoder(self, kind: str, prefix: str, projector: str) -> None:
        """What all encoders have: metadata, and one block."""
        key = f"clip.{kind}"
        self.writer.add_bool(f"clip.has_{kind}_encoder", True)
        self.writer.add_string(f"{key}.projector_type", projector)
        self.writer.add_uint32(f"{key}.embedding_length", WIDTH)
        self.writer.add_uint32(f"{key}.feed_forward_length", HIDDEN)
        self.writer.add_uint32(f"{key}.block_count", 1)
        self.writer.add_uint32(f"{key}.attention.head_count", HEADS)
        self.writer.add_float32(f"{key}.attention.layer_norm_epsilon", 1e-5)
        self.writer.add_uint32(f"{key}.projection_dim", self.projected)
        block = f"{prefix}.blk.0"
        for name in ("attn_q", "attn_v", "attn_out"):
            self.linear(f"{block}.{name}", WIDTH, WIDTH)
        self.add(f"{block}.attn_k.weight", WIDTH, WIDTH)
        if prefix == "v":  # Whisper's keys have no bias
            self.add(f"{block}.attn_k.bias", WIDTH)
        self.linear(f"{block}.ffn_up", WIDTH, HIDDEN)
        self.linear(f"{block}.ffn_down", HIDDEN, WIDTH)
        for name in ("ln1", "ln2"):
            self.norm(f"{block}.{name}")

    def eyes(self) -> None:
        self.encoder("vision", "v", "mlp")
        self.writer.add_uint32("clip.vision.image_size", IMAGE)
        self.writer.add_uint32("clip.vision.patch_size", PATCH)
        self.writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
        self.writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
        self.writer.add_bool("clip.use_gelu", True)
        self.add("v.class_embd", WIDTH)
        self.add("v.patch_embd.weight", WIDTH, 3, PATCH, PATCH)
        self.add("v.position_embd.weight", (IMAGE // PATCH) ** 2 + 1, WIDTH)
        self.norm("v.pre_ln")
        self.linear("mm.0", WIDTH, HIDDEN)
        self.linear("mm.2", HIDDEN, self.projected)

    def ears(self) -> None:
        self.encoder("audio", "a", "ultravox")
        self.writer.add_uint32("clip.audio.num_mel_bins", MELS)
        self.writer.add_uint32("clip.audio.projector.stack_factor", STACK)
        self.add("a.conv1d.1.weight", WIDTH, MELS, 3, half=True)
        self.add("a.conv1d.1.bias", WIDTH, 1)
        self.add("a.conv1d.2.weight", WIDTH, WIDTH, 3, half=True)
        self.add("a.conv1d.2.bias", WIDTH, 1)
        self.add("a.position_embd.weight", FRAMES, WIDTH)
        self.norm("a.post_ln")
        stacked = WIDTH * STACK
        self.add("mm.a.norm_pre.weight", stacked, ones=True)
        self.add("mm.a.mlp.1.weight", HIDDEN, stacked)
        self.add("mm.a.norm_mid.weight", HIDDEN // 2, ones=True)
        self.add("mm.a.mlp.2.weight", self.projected, HIDDEN // 2)

    def close(self) -> None:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()


def write_projector(path: Path, *, sees: bool = True, hears: bool = False, projected: int = 64) -> Path:
    """Write a projector for a model whose vectors have ``projected`` numbers."""
    maker = _Maker(path, projected)
    if sees:
        maker.eyes()
    if hears:
        maker.ears()
    maker.close()
    return path
