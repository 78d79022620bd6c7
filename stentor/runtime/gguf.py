"""What the head of a GGUF file says about a model: what it can do, what it can hold, and what its memory will cost."""

import math
from pathlib import Path

import msgspec

from stentor.runtime.gguf_head import Head, InvalidGguf, Value, read_head

__all__ = ["CacheShape", "GgufHeader", "InvalidGguf", "describe_cache", "read_header", "read_projector"]

_MOST = 1 << 31
_SOUND_FRAMES = 1500  # half a minute, as encoders of sound take it in
# Every n-th layer looks at everything, the others at a window; where the file doesn't say, as llama.cpp has it.
_WINDOW_PATTERNS = {
    "gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma-embedding": 6, "gpt-oss": 2, "cohere2": 4, "llama4": 4,
    "exaone4": 4, "exaone-moe": 4, "olmo2": 4, "smallthinker": 4, "afmoe": 4, "plamo3": 8,
}  # fmt: skip
# Architectures that read and never generate: no cache of keys and values.
_ENCODERS = frozenset(
    {
        "bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert",
        "gemma-embedding", "llama-embed", "t5encoder",
    }
)  # fmt: skip


class CacheShape(msgspec.Struct, frozen=True):
    """What a model keeps of a conversation. Numbers per token of keys and values in layers that look at everything
    (``keys``, ``values``) and in those that look at the last ``window`` tokens (``window_keys``, ``window_values``);
    ``state`` are numbers per conversation, however long it is (recurrent layers)."""

    keys: int = 0
    values: int = 0
    window_keys: int = 0
    window_values: int = 0
    window: int = 0
    state: int = 0


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """``trained_ctx`` is the longest context the model was trained for, ``file_bytes`` the size of the weights with all
    shards; 0 where the file doesn't say. ``has_pooling``: it says how to pool, ``pools``: into one vector,
    ``pools_last``: into the last token's; ``ranks``: it has a classifier's output; ``encodes``: it reads and never
    generates. ``width`` is the length of its vectors, ``inner`` the widest layer, ``heads`` those of its attention,
    ``words`` and ``merges`` what its tokenizer knows; ``numbers`` are those of all its tensors, in ``blocks`` layers
    and ``tables`` of words beside them. ``sees`` and ``hears`` are said by projectors (architecture ``clip``), whose
    vectors have ``projected`` numbers, made of so many ``patches`` of an image. ``parameters`` and ``size_label`` say
    how large the model is, ``file_type`` how it is quantized (-1: unsaid), as llama.cpp counts.
    """

    architecture: str
    name: str
    trained_ctx: int
    file_bytes: int
    has_pooling: bool = False
    pools: bool = False
    pools_last: bool = False
    ranks: bool = False
    encodes: bool = False
    width: int = 0
    inner: int = 0
    heads: int = 0
    words: int = 0
    merges: int = 0
    numbers: int = 0
    blocks: int = 0
    tables: int = 1
    cache: CacheShape = CacheShape()
    sees: bool = False
    hears: bool = False
    projected: int = 0
    patches: int = 0
    parameters: int = 0
    size_label: str = ""
    file_type: int = -1


def read_header(path: Path, *, quick: bool = False) -> GgufHeader:
    """Read the head of ``path``; ``quick``: without tokenizer and tensors. Raises OSError and InvalidGguf."""
    head = read_head(path, quick=quick)
    pairs = head.pairs
    architecture = str(pairs.get("general.architecture", ""))
    if architecture == "clip":
        return _describe_projector(head)
    pooling = pairs.get(f"{architecture}.pooling_type")
    numbers = sum(math.prod(shape) for shape in head.shapes.values())
    file_type = pairs.get("general.file_type")
    return GgufHeader(
        architecture=architecture,
        name=str(pairs.get("general.name", "")),
        parameters=max(0, _first(pairs.get("general.parameter_count"))) or _whole(pairs, numbers),
        size_label=str(pairs.get("general.size_label", "")),
        file_type=file_type if isinstance(file_type, int) else -1,
        trained_ctx=_integer(pairs, f"{architecture}.context_length"),
        file_bytes=_all_shards(path, pairs, head.file_bytes),
        has_pooling=pooling is not None,
        pools=pooling in (1, 2, 3),
        pools_last=pooling == 3,
        ranks=pooling == 4 or any(name.startswith("cls.output") for name in head.shapes),
        encodes=architecture in _ENCODERS or pairs.get(f"{architecture}.attention.causal") is False,
        width=_integer(pairs, f"{architecture}.embedding_length"),
        inner=_inner(architecture, pairs),
        heads=min(_first(pairs.get(f"{architecture}.attention.head_count")), _MOST),
        words=head.lengths.get("tokenizer.ggml.tokens", 0) or _integer(pairs, f"{architecture}.vocab_size"),
        merges=head.lengths.get("tokenizer.ggml.merges", 0),
        numbers=numbers,
        blocks=_integer(pairs, f"{architecture}.block_count"),
        tables=2 if "output.weight" in head.shapes else 1,
        cache=describe_cache(architecture, pairs),
    )


def _whole(pairs: dict[str, Value], numbers: int) -> int:
    """The numbers of all tensors; 0 where they are spread over several files, of which this is one."""
    return numbers if _integer(pairs, "split.count") < 2 else 0


def read_projector(path: Path) -> GgufHeader:
    """Read the head of a projector (mmproj). Raises OSError and InvalidGguf, also where it is something else."""
    header = read_header(path)
    if header.architecture != "clip":
        raise InvalidGguf(f"it is no projector: its architecture is '{header.architecture[:40]}', not 'clip'.")
    if not (header.sees or header.hears):
        raise InvalidGguf("it is a projector that neither sees nor hears.")
    return header


def _describe_projector(head: Head) -> GgufHeader:
    pairs = head.pairs
    # Old files have no such entry, and their only kind is the seeing one.
    hears = pairs.get("clip.has_audio_encoder") is True
    sees = pairs.get("clip.has_vision_encoder") is True or ("clip.has_vision_encoder" not in pairs and not hears)
    kind = "vision" if sees else "audio"
    patch = max(1, _integer(pairs, "clip.vision.patch_size"))
    return GgufHeader(
        architecture="clip",
        name=str(pairs.get("general.name", "")),
        trained_ctx=0,
        file_bytes=head.file_bytes,
        sees=sees,
        hears=hears,
        width=max(_integer(pairs, f"clip.{each}.embedding_length") for each in ("vision", "audio")),
        inner=max(_integer(pairs, f"clip.{each}.feed_forward_length") for each in ("vision", "audio")),
        heads=_integer(pairs, f"clip.{kind}.attention.head_count"),
        projected=_integer(pairs, f"clip.{kind}.projection_dim"),
        patches=max(min((_integer(pairs, "clip.vision.image_size") // patch) ** 2, _MOST), _SOUND_FRAMES * hears),
    )


def _lengths(architecture: str, pairs: dict[str, Value]) -> tuple[int, int]:
    """Of a head's key and value; missing ones are embedding length / heads, as llama.cpp reads them."""
    heads = max(1, _first(pairs.get(f"{architecture}.attention.head_count")))
    head_size = _integer(pairs, f"{architecture}.embedding_length") // heads
    key = _integer(pairs, f"{architecture}.attention.key_length") or head_size
    return key, _integer(pairs, f"{architecture}.attention.value_length") or head_size


def _kv_heads(architecture: str, pairs: dict[str, Value]) -> list[int]:
    """KV heads of each layer; where their count is missing, one per head."""
    layers = min(_integer(pairs, f"{architecture}.block_count"), 1 << 16)
    given = pairs.get(f"{architecture}.attention.head_count_kv")
    if isinstance(given, list):
        return [max(0, count) for count in given]
    heads = max(1, _first(pairs.get(f"{architecture}.attention.head_count")))
    return [max(0, _first(given)) or heads] * layers


def describe_cache(architecture: str, pairs: dict[str, Value]) -> CacheShape:
    """What a model of this head keeps: over its layers, KV heads × the length of a key, and of a value."""
    if architecture in _ENCODERS or pairs.get(f"{architecture}.attention.causal") is False:
        return CacheShape()
    key, value = _lengths(architecture, pairs)
    heads = _kv_heads(architecture, pairs)
    window = _integer(pairs, f"{architecture}.attention.sliding_window")
    near = _windowed(architecture, pairs, len(heads)) if window else [False] * len(heads)
    whole = sum(count for count, is_near in zip(heads, near, strict=True) if not is_near)
    nearby = sum(heads) - whole
    near_key = _integer(pairs, f"{architecture}.attention.key_length_swa") or key
    near_value = _integer(pairs, f"{architecture}.attention.value_length_swa") or value
    return CacheShape(
        whole * key,
        whole * value,
        nearby * near_key,
        nearby * near_value,
        window if nearby else 0,
        _recurrent_layers(architecture, pairs, heads) * _state_numbers(architecture, pairs),
    )


def _windowed(architecture: str, pairs: dict[str, Value], layers: int) -> list[bool]:
    """Which layers look at a window alone."""
    given = pairs.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(given, list):
        return [bool(given[layer % len(given)]) for layer in range(layers)] if given else [False] * layers
    pattern = given if isinstance(given, int) and given > 0 else _WINDOW_PATTERNS.get(architecture, 0)
    return [bool(pattern) and layer % pattern < pattern - 1 for layer in range(layers)]


def _recurrent_layers(architecture: str, pairs: dict[str, Value], heads: list[int]) -> int:
    if not _integer(pairs, f"{architecture}.ssm.inner_size"):
        return 0
    every = _integer(pairs, f"{architecture}.full_attention_interval")
    if every:
        return len(heads) - len(heads) // every
    return sum(count == 0 for count in heads) or len(heads)


def _state_numbers(architecture: str, pairs: dict[str, Value]) -> int:
    """Numbers that a recurrent layer keeps: its convolution's inputs and its state."""
    inner = _integer(pairs, f"{architecture}.ssm.inner_size")
    state = _integer(pairs, f"{architecture}.ssm.state_size")
    groups = _integer(pairs, f"{architecture}.ssm.group_count")
    kernel = max(1, _integer(pairs, f"{architecture}.ssm.conv_kernel"))
    return (kernel - 1) * (inner + 2 * groups * state) + state * inner


def _inner(architecture: str, pairs: dict[str, Value]) -> int:
    """Width of the widest layer; of experts, of all those that a token passes."""
    dense = _first(pairs.get(f"{architecture}.feed_forward_length"))
    expert = _integer(pairs, f"{architecture}.expert_feed_forward_length")
    used = _integer(pairs, f"{architecture}.expert_used_count")
    return min(max(dense, expert * used), _MOST)


def _all_shards(path: Path, pairs: dict[str, Value], first_bytes: int) -> int:
    """The size of a file, or of all the files it was split into (``name-00001-of-00003.gguf``)."""
    count = _integer(pairs, "split.count")
    mark = f"-00001-of-{count:05}"
    if count < 2 or count > 4096 or mark not in path.name:
        return first_bytes
    shards = [path.with_name(path.name.replace(mark, f"-{number:05}-of-{count:05}")) for number in range(1, count + 1)]
    return sum(shard.stat().st_size for shard in shards if shard.is_file())


def _integer(pairs: dict[str, Value], key: str) -> int:
    value = pairs.get(key)
    return min(value, _MOST) if isinstance(value, int) and value > 0 else 0


def _first(value: Value | None) -> int:
    if isinstance(value, list):
        return max(value, default=0)
    return value if isinstance(value, int) else 0
