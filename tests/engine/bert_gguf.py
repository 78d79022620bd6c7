"""Writes models of the BERT family as GGUF: a reranker of made-up weights, and MiniLM as it was trained.

MiniLM's weights are a safetensors file (https://github.com/huggingface/safetensors: a length, a JSON index, raw
numbers); names and order of tensors as llama.cpp's architecture ``bert`` has them. WordPiece pieces that begin a word
get llama.cpp's word mark, those that continue one lose their ``##``.
"""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Tensors = dict[str, "np.ndarray[Any, Any]"]

_BLOCK = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm.weight": "token_embd_norm.weight",
    "embeddings.LayerNorm.bias": "token_embd_norm.bias",
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def read_safetensors(path: Path) -> Tensors:
    """All float32 tensors of the file."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    index = json.loads(data[8 : 8 + size])
    body = memoryview(data)[8 + size :]
    tensors: Tensors = {}
    for name, entry in index.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(body[start:end], dtype="<f4").reshape(entry["shape"])
    return tensors


def rename(tensors: Tensors, blocks: int) -> Tensors:
    """The tensors under llama.cpp's names; what it doesn't use is left out."""
    renamed = {mine: tensors[theirs] for theirs, mine in _EMBEDDINGS.items()}
    for number in range(blocks):
        for theirs, mine in _BLOCK.items():
            for part in ("weight", "bias"):
                renamed[f"blk.{number}.{mine}.{part}"] = tensors[f"encoder.layer.{number}.{theirs}.{part}"]
    return renamed


def write_bert(path: Path, vocabulary: list[str], tensors: Tensors, *, heads: int, pooling: int, ctx: int) -> Path:
    """Write a BERT model to ``path``; matrices in float16, the rest in float32."""
    width = tensors["token_embd.weight"].shape[1]
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("blk.")})
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(path.stem)
    writer.add_context_length(ctx)
    writer.add_embedding_length(width)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(tensors["blk.0.ffn_up.weight"].shape[0])
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType(pooling))
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_mark(piece) for piece in vocabulary])
    writer.add_token_types([3 if piece in SPECIAL else 1 for piece in vocabulary])
    writer.add_token_type_count(2)
    for name, piece in {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}.items():
        getattr(writer, f"add_{name}_token_id")(vocabulary.index(piece))
    writer.add_bos_token_id(vocabulary.index("[CLS]"))
    writer.add_eos_token_id(vocabulary.index("[SEP]"))
    for name, tensor in tensors.items():
        whole = tensor.ndim == 1 or name in ("position_embd.weight", "token_types.weight")
        writer.add_tensor(name, np.ascontiguousarray(tensor.astype("<f4" if whole else "<f2")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _mark(piece: str) -> str:
    if piece in SPECIAL:
        return piece
    return piece[2:] if piece.startswith("##") else "▁" + piece


def convert_minilm(weights: Path, vocabulary: Path, path: Path) -> Path:
    """all-MiniLM-L6-v2 as GGUF: 6 layers, 384 numbers a vector, the mean of all tokens."""
    words = vocabulary.read_text().split("\n")
    words = words[:-1] if words[-1] == "" else words
    tensors = rename(read_safetensors(weights), 6)
    return write_bert(path, words, tensors, heads=12, pooling=gguf.PoolingType.MEAN, ctx=512)


def write_tiny_reranker(path: Path, ctx: int = 256) -> Path:
    """A reranker that reads letters and knows nothing: its scores are made up, and the same every time."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!-'"
    vocabulary = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    numbers = np.random.default_rng(7)
    width, hidden = 32, 64

    def made(*shape: int) -> "np.ndarray[Any, Any]":
        return (numbers.standard_normal(shape) * 0.3).astype("<f4")

    tensors: Tensors = {
        "token_embd.weight": made(len(vocabulary), width),
        "position_embd.weight": made(ctx, width),
        "token_types.weight": made(2, width),
        "token_embd_norm.weight": np.ones(width, "<f4"),
        "token_embd_norm.bias": made(width),
        "cls.weight": made(width, width),
        "cls.bias": made(width),
        "cls.output.weight": made(1, width),
        "cls.output.bias": made(1),
    }
    shapes = {"ffn_up": (hidden, width), "ffn_down": (width, hidden)}
    for name in _BLOCK.values():
        shape = shapes.get(name, (width, width))
        norm = name.endswith("norm")
        tensors[f"blk.0.{name}.weight"] = np.ones(width, "<f4") if norm else made(*shape)
        tensors[f"blk.0.{name}.bias"] = made(shape[0])
    return write_bert(path, vocabulary, tensors, heads=2, pooling=gguf.PoolingType.RANK, ctx=ctx)
