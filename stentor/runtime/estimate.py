"""How much memory an engine will take, from what the head of its model file says. Pure.

The parts, as llama.cpp allocates them on a processor (build of xllamacpp 2026.10): weights, the cache of keys and
values of every place, buffers for the widest step of the work, the vectors or scores that come out, the tokenizer,
the projector of a model that sees or hears, cached prompts. Measured against the growth of real engines' memory in
tests/real/test_memory.py; the worst case counts, so it is right for engines whose places are all full.
"""

import msgspec

from stentor.core.units import MIB
from stentor.runtime.gguf import GgufHeader
from stentor.runtime.spec import ModelSpec

# Bytes per number of the cache types: ggml's block sizes (bytes per block / numbers per block).
CACHE_BYTES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip
# An engine without a model: the interpreter, the libraries' own pages.
PROCESS_BYTES = 40 * MIB
_BASE_BYTES = 9 * MIB
_PLACE_BYTES = MIB
_MEDIA_BYTES = 32 * MIB  # pictures and sounds as pixels and samples
_BATCH, _UBATCH = 2048, 512
_CELLS = 256  # the cache grows in steps of so many tokens
_WORD_BYTES, _MERGE_BYTES = 200, 280
# Activations that are alive at once, in vectors a token, beside the two of the widest layer.
_ALIVE = 7
_CHECKPOINTS_MAX, _CHECKPOINT_TOKENS = 32, 8192
_POOLED = ("embedding", "vision-embedding", "reranker")


class MemoryEstimate(msgspec.Struct, frozen=True):
    """Bytes by what takes them; ``total`` is what an engine grows by, :data:`PROCESS_BYTES` not counted."""

    weights: int
    cache: int
    buffers: int
    outputs: int
    tokenizer: int
    projector: int
    prompts: int
    base: int

    @property
    def total(self) -> int:
        return (
            self.weights
            + self.cache
            + self.buffers
            + self.outputs
            + self.tokenizer
            + self.projector
            + self.prompts
            + self.base
        )


def estimate_bytes(
    header: GgufHeader, spec: ModelSpec, ctx: int, places: int, projector: GgufHeader | None = None
) -> int:
    """Memory of one whole engine process with ``ctx`` tokens on each of ``places``, in bytes."""
    return PROCESS_BYTES + estimate_memory(header, spec, ctx, places, projector).total


def estimate_memory(
    header: GgufHeader, spec: ModelSpec, ctx: int, places: int, projector: GgufHeader | None = None
) -> MemoryEstimate:
    """As :func:`estimate_bytes`, in parts."""
    pooled = spec.kind in _POOLED
    batch = spec.batch or (ctx if pooled else _BATCH)
    ubatch = min(spec.ubatch or (ctx if pooled else _UBATCH), batch, max(ctx * places, 1))
    return MemoryEstimate(
        weights=header.file_bytes,
        cache=places * _cache_bytes(header, spec, ctx, ubatch),
        buffers=_buffer_bytes(header, spec, ctx, ubatch),
        outputs=_output_bytes(header, pooled, min(batch, max(ctx * places, 1)), ubatch, places),
        tokenizer=header.words * _WORD_BYTES + header.merges * _MERGE_BYTES,
        projector=_projector_bytes(projector),
        prompts=spec.cache_ram_mib * MIB,
        base=_BASE_BYTES + places * _PLACE_BYTES,
    )


def _cache_bytes(header: GgufHeader, spec: ModelSpec, ctx: int, ubatch: int) -> int:
    """One place: every token in layers that look at everything, the last ones in those with a window, and copies of
    the latter to go back to."""
    shape = header.cache
    key, value = CACHE_BYTES[spec.cache_type_k], CACHE_BYTES[spec.cache_type_v]
    cells = _round_up(ctx)
    near_cells = min(cells, _round_up(shape.window + ubatch))
    whole = cells * (shape.keys * key + shape.values * value)
    near_token = shape.window_keys * key + shape.window_values * value
    checkpoints = min(_CHECKPOINTS_MAX, 1 + ctx // _CHECKPOINT_TOKENS) if shape.window or shape.state else 0
    kept = min(ctx, shape.window) * near_token + 4 * shape.state
    return int(whole + near_cells * near_token + 4 * shape.state + checkpoints * kept)


def _buffer_bytes(header: GgufHeader, spec: ModelSpec, ctx: int, ubatch: int) -> int:
    cells = _round_up(ctx)
    flash = spec.flash_attention != "off"
    mask = cells * (2 if flash else 4)
    widest = 2 * header.inner if flash else max(2 * header.inner, header.heads * cells)
    packed = 2 * max(header.inner, header.width)  # a row as the weights' own type wants it
    return ubatch * (4 * (_ALIVE * header.width + widest) + mask + packed)


def _output_bytes(header: GgufHeader, pooled: bool, batch: int, ubatch: int, places: int) -> int:
    """Scores of all words: of each place's last token, or of every token where vectors are asked for."""
    score = 4 * header.words
    if not pooled:
        return places * score
    return batch * (score + 4 * header.width) + (0 if header.encodes else ubatch * score)


def _projector_bytes(projector: GgufHeader | None) -> int:
    if projector is None:
        return 0
    wide = _ALIVE * projector.width + 2 * projector.inner
    return projector.file_bytes + 4 * projector.patches * wide + _MEDIA_BYTES


def _round_up(tokens: int) -> int:
    return -(-tokens // _CELLS) * _CELLS
