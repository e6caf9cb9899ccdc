"""Say where the blocks of each architecture have their channels and heads, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import Unsupported
from squeeze.models import architecture


@dataclass(frozen=True)
class Layout:
    """Name, below a block, the layers that make and read its channels and heads.

    up: those whose outputs are the MLP's channels; down: the one that reads them; channels: what the configuration
    calls their number. output: what reads the heads' outputs. queries, keys_and_values: the layers that make the heads,
    where the configuration has a size of a head of its own; elsewhere that is hidden size / heads, and no configuration
    describes a model with fewer heads of the same size.
    """

    up: tuple[str, ...]
    down: str
    channels: str
    output: str
    queries: str = ""
    keys_and_values: tuple[str, ...] = ()


_LLAMA = Layout(
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    channels="intermediate_size",
    output="self_attn.o_proj",
    queries="self_attn.q_proj",
    keys_and_values=("self_attn.k_proj", "self_attn.v_proj"),
)
LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Layout(("mlp.c_fc",), "mlp.c_proj", "n_inner", "attn.c_proj"),
    "opt": Layout(("fc1",), "fc2", "ffn_dim", "self_attn.out_proj"),
    "gpt_neox": Layout(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", "intermediate_size", "attention.dense"),
    "bert": Layout(("intermediate.dense",), "output.dense", "intermediate_size", "attention.output.dense"),
}


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes that a model's own layers show, whatever its configuration says.

    layers: blocks. hidden: of the states between them. channels: of a block's MLP. attention: channels of all heads of
    queries of a block together.
    """

    layers: int
    hidden: int
    channels: int
    attention: int


# Of each claim of a student, the size that it is a share of (in the uncompressed model), and that size in words.
SHARES: Mapping[str, tuple[str, str]] = {
    "layers_kept": ("layers", "blocks"),
    "channels_kept": ("channels", "channels of the MLP"),
    "heads_kept": ("attention", "heads"),
    "hidden_kept": ("hidden", "hidden size"),
}


def layout(model: nn.Module) -> Layout:
    """Return where this model's blocks have what can be cut.

    Raises Unsupported for an architecture that is not known here.
    """
    config: Any = model.config
    if config.model_type not in LAYOUTS:
        known = ", ".join(LAYOUTS)
        raise Unsupported(f"channels and heads of {config.model_type} models are not known; those known: {known}")
    return LAYOUTS[config.model_type]


def sizes(model: nn.Module) -> Sizes:
    """Return a model's sizes; its layers may be compressed. Raises Unsupported as ``layout`` does."""
    where, blocks = layout(model), architecture.blocks(model)
    hidden, channels = shape(blocks[0].get_submodule(where.down))
    return Sizes(len(blocks), hidden, channels, shape(blocks[0].get_submodule(where.output))[1])


def shares(before: Sizes, after: Sizes, claims: Mapping[str, Any]) -> dict[str, float]:
    """Return what a step has left of each size, as claims: of the uncompressed model, if earlier steps have cut, too.

    before, after: sizes around the step. claims: of the steps before it. What no step has changed is left out.
    """
    left = {claim: getattr(after, name) / getattr(before, name) for claim, (name, _) in SHARES.items()}
    return {claim: claims.get(claim, 1.0) * share for claim, share in left.items() if share != 1 or claim in claims}


def head_groups(model: nn.Module) -> int:
    """Return how many groups of heads a block has: its heads of keys and values, each with the queries that read it."""
    config: Any = model.config
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def shape(layer: Any) -> tuple[int, int]:
    """Return a linear layer's (out_features, in_features), compressed or not."""
    return (layer.nf, layer.nx) if isinstance(layer, Conv1D) else (layer.out_features, layer.in_features)
