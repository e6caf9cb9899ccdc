"""Name the layers of a model as llama.cpp names them, and tell in which order it has their rows.

Its rotary embeddings of Llamas turn channels 2i and 2i + 1 of a head together, those of transformers i and i + half a
head: rows of queries and keys lie in another order. Its GPT-NeoX has all queries, then all keys, then all values, where
transformers has the three of each head together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.layout import head_size

EMBEDDING, HEAD = "token_embd", "output"
Order = Callable[[int, int], Tensor]  # (rows, size of a head) -> (rows,) int64


@dataclass(frozen=True)
class Part:
    """Describe a layer as a GGUF has it.

    name: there, such as ``blk.0.attn_q``. module: its full name here. rows: which of its output rows here is each of
    the file's, (out_features,) int64; None: they lie in the same order.
    """

    name: str
    module: str
    rows: Tensor | None = None


@dataclass(frozen=True)
class Family:
    """Describe how llama.cpp calls an architecture, and the layers of its blocks.

    name: its own. block: its name of a layer -> that layer's below a block here. orders: of the layers whose rows it
    has in another order.
    """

    name: str
    block: Mapping[str, str]
    orders: Mapping[str, Order] = field(default_factory=dict)


def in_pairs(rows: int, size: int) -> Tensor:
    """Return the order in which channels that are turned together are neighbours, head by head: (rows,) int64."""
    return torch.arange(rows).view(-1, 2, size // 2).transpose(1, 2).flatten()


def in_sections(rows: int, size: int) -> Tensor:
    """Return the order of all queries, then all keys, then all values, of heads of three times ``size`` rows."""
    return torch.arange(rows).view(-1, 3, size).transpose(0, 1).flatten()


FAMILIES: Mapping[str, Family] = {  # by transformers' model_type
    "llama": Family(
        "llama",
        {
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        },
        {"attn_q": in_pairs, "attn_k": in_pairs},
    ),
    "gpt_neox": Family(
        "gptneox",
        {
            "attn_norm": "input_layernorm",
            "attn_qkv": "attention.query_key_value",
            "attn_output": "attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        {"attn_qkv": in_sections},
    ),
}


def family(model: nn.Module) -> Family:
    """Return how llama.cpp calls a model. Raises Unsupported for an architecture that is not written here."""
    kind = str(model.config.model_type)  # type: ignore[union-attr]
    if kind not in FAMILIES or model.get_output_embeddings() is None:  # type: ignore[operator]
        found = kind if kind not in FAMILIES else f"{kind} without a language-modelling head"
        raise Unsupported(f"{found} is not written as GGUF; expected a language model of {' or '.join(FAMILIES)}")
    return FAMILIES[kind]


def is_tied(model: nn.Module) -> bool:
    """Tell whether the embedding and the head are one table: one layer in both places, or one weight in two."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if embedding is head:
        return True
    one, other = (getattr(layer, "weight", None) for layer in (embedding, head))
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()


def parts(model: nn.Module) -> Iterator[Part]:
    """Yield the layers that a GGUF of a model stores. Raises Unsupported as ``family`` does.

    A head that is tied to the embedding is none of them: llama.cpp takes the embedding where a file has no head.
    """
    known, size = family(model), head_size(model)
    names = {module: name for name, module in model.named_modules()}
    yield Part(EMBEDDING, names[model.get_input_embeddings()])  # type: ignore[operator]
    yield Part("output_norm", names[architecture.final_norm(model)])
    if not is_tied(model):
        yield Part(HEAD, names[architecture.head(model)])
    for number, (block_name, block) in enumerate(architecture.named_blocks(model)):
        for name, path in known.block.items():
            order = known.orders.get(name)
            rows = None if order is None else order(architecture.shape(block.get_submodule(path))[0], size)
            yield Part(f"blk.{number}.{name}", f"{block_name}.{path}", rows)
