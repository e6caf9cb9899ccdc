"""Say where the blocks of each architecture have their channels and heads, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture


@dataclass(frozen=True)
class Coupled:
    """Name, below a block, the layers that channels run between: cut from one of them, they are cut from all.

    makers: their outputs are the channels, in ``sections`` that each go through all of them (3 where queries, keys and
    values of all heads lie one after the other). reader: its inputs are the channels.
    """

    makers: tuple[str, ...]
    reader: str
    sections: int = 1


@dataclass(frozen=True)
class Layout:
    """Name, below a block, the layers that make and read its channels and heads.

    up: those whose outputs are the MLP's channels; down: the one that reads them; channels: what the configuration
    calls their number. heads: those that make the heads; output: what reads the heads' outputs; sections: see
    ``Coupled``. says_head_size: whether the configuration has a size of a head of its own; elsewhere that is
    hidden size / heads, and no configuration describes a model with fewer heads of the same size.
    """

    up: tuple[str, ...]
    down: str
    channels: str
    heads: tuple[str, ...]
    output: str
    sections: int = 1
    says_head_size: bool = False

    @property
    def mlp(self) -> Coupled:
        """Return what the MLP's channels run between."""
        return Coupled(self.up, self.down)

    @property
    def attention(self) -> Coupled:
        """Return what the heads run between."""
        return Coupled(self.heads, self.output, self.sections)


_LLAMA = Layout(
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    channels="intermediate_size",
    heads=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    says_head_size=True,
)
LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gpt2": Layout(("mlp.c_fc",), "mlp.c_proj", "n_inner", ("attn.c_attn",), "attn.c_proj", sections=3),
    "opt": Layout(
        ("fc1",),
        "fc2",
        "ffn_dim",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.out_proj",
    ),
    "gpt_neox": Layout(  # query, key and value of one head lie together
        ("mlp.dense_h_to_4h",),
        "mlp.dense_4h_to_h",
        "intermediate_size",
        ("attention.query_key_value",),
        "attention.dense",
    ),
    "bert": Layout(
        ("intermediate.dense",),
        "output.dense",
        "intermediate_size",
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
    ),
}


@dataclass(frozen=True)
class Sizes:
    """Hold the sizes that a model's own layers show, whatever its configuration says.

    layers: blocks. hidden: of the states between them. channels: of a block's MLP. attention: channels of all heads of
    queries of a block together. Where blocks differ in the last two, they are the mean of all blocks.
    """

    layers: int
    hidden: int
    channels: float
    attention: float


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
    readers = {
        name: [architecture.shape(block.get_submodule(name)) for block in blocks] for name in (where.down, where.output)
    }
    channels, attention = (mean(inputs for _, inputs in shapes) for shapes in readers.values())
    return Sizes(len(blocks), readers[where.down][0][0], channels, attention)


def shares(before: Sizes, after: Sizes, claims: Mapping[str, Any]) -> dict[str, float]:
    """Return what a step has left of each size, as claims: of the uncompressed model, if earlier steps have cut, too.

    before, after: sizes around the step. claims: of the steps before it. What no step has changed is left out.
    """
    left = {claim: getattr(after, name) / getattr(before, name) for claim, (name, _) in SHARES.items()}
    return {claim: claims.get(claim, 1.0) * share for claim, share in left.items() if share != 1 or claim in claims}


def head_size(model: nn.Module) -> int:
    """Return the channels of a head, as the configuration has them."""
    config = architecture.text_config(model)
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def group_size(model: nn.Module) -> int:
    """Return the channels of a group of heads: of a head of keys and values, those of all queries that read it."""
    config = architecture.text_config(model)
    heads: int = config.num_attention_heads
    return heads // (getattr(config, "num_key_value_heads", None) or heads) * head_size(model)


def head_groups(model: nn.Module) -> int:
    """Return how many groups of heads a block has: its heads of keys and values, each with the queries that read it."""
    return int(sizes(model).attention) // group_size(model)
