"""A tiny GGUF, written as llama.cpp would; and what lies in one, as the ``gguf`` package reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tokenizers import pre_tokenizers

HIDDEN, INNER = 64, 96
# Bytes, the token that a digit after a blank must not become, and the end of a text.
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġ1", "<|endoftext|>"]


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """A one-layer Llama with Q4_1 matrices, and its tensors as they were before; its tokenizer can say 'Ġ1'."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // 4)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(TOKENS) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(["Ġ 1"])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        add(len(TOKENS) - 1)
    random = np.random.default_rng(0)
    matrices = {
        "token_embd": (len(TOKENS), HIDDEN),
        **{f"blk.0.attn_{part}": (HIDDEN, HIDDEN) for part in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{part}": (INNER, HIDDEN) for part in ("gate", "up")},
        "blk.0.ffn_down": (HIDDEN, INNER),
    }
    tensors = {name: random.standard_normal(shape, dtype=np.float32) for name, shape in matrices.items()}
    for name, tensor in tensors.items():
        packed = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.Q4_1)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_1)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def kinds(path: Path) -> dict[str, str]:
    """The type of each tensor of a GGUF."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def values(path: Path) -> dict[str, np.ndarray]:
    """The values of each tensor of a GGUF, float32, widened by the package."""
    tensors = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type) for tensor in tensors}


def entry(path: Path, name: str) -> Any:
    """What a GGUF says under a name; None where it says nothing."""
    field = gguf.GGUFReader(path).get_field(name)
    return None if field is None else field.contents()
