"""Lay a Llama out as a flat list of blocks, and run it: all that a step needs is found once, when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama as llama

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.runtimes.lean_block import Block, Norm, Turn
from squeeze.runtimes.lean_products import Product, alone, products
from squeeze.runtimes.static_cache import KeysAndValues

# The modules whose forward is written out here, and nothing else is.
KNOWN = (llama.LlamaDecoderLayer, llama.LlamaAttention, llama.LlamaMLP, llama.LlamaRMSNorm)
PARTS = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")
# Whose angles are a position's alone, however long the text is.
ROTARIES = ("default", "linear", "llama3", "yarn")
USE = "use runtime=eager"


@dataclass
class Rotary:
    """Keep cosines and signed sines of all positions that were asked for, (positions, channels) each.

    module: what the model makes them with; like: of the dtype that it computes in, on its device.
    """

    module: nn.Module
    like: Tensor
    cos: Tensor = field(init=False)
    sin: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.cos = self.sin = self.like.new_empty((0, 0))

    def upto(self, positions: int) -> tuple[Tensor, Tensor]:
        """Return both for at least so many positions, from the first on."""
        if len(self.cos) < positions:
            cos, sin = self.module(self.like, torch.arange(positions, device=self.like.device)[None])
            first, second = sin[0].chunk(2, dim=-1)
            self.cos, self.sin = cos[0], torch.cat([-first, second], dim=-1)
        return self.cos, self.sin


@dataclass(frozen=True)
class LeanModel:
    """Hold a model's blocks and what lies around them. norm: the one between the last block and the head."""

    embed: nn.Module
    rotary: Rotary
    blocks: tuple[Block, ...]
    norm: Norm
    head: Product

    @classmethod
    def of(cls, subject: Subject) -> LeanModel:
        """Lay out a subject that is ready to run; joined weights lie in its model from then on, as views.

        Raises Unsupported for a model that is no plain Llama with a head, and for one with a cache of its own.
        """
        check(subject)
        model: Any = subject.model
        blocks: list[Any] = architecture.blocks(model)
        qkv, gate_up = (
            products([tuple(block.get_submodule(name) for name in names) for block in blocks])
            for names in (
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                ("mlp.gate_proj", "mlp.up_proj"),
            )
        )
        made = [_block(*each) for each in zip(blocks, qkv, gate_up, strict=True)]
        like = model.model.norm.weight.data
        rotary = Rotary(model.model.rotary_emb, like.new_empty(0))
        return cls(model.get_input_embeddings(), rotary, tuple(made), _norm(model.model.norm), alone(model.lm_head))

    def cache(self, rows: int, positions: int) -> KeysAndValues:
        """Return an empty cache for so many texts of at most so many tokens; their angles are found, all at once."""
        self.rotary.upto(positions)
        heads = [block.kv_heads for block in self.blocks]
        return KeysAndValues.of(heads, rows, positions, self.blocks[0].channels, self.rotary.like)

    def read(
        self,
        token_ids: Tensor,
        cache: KeysAndValues | None = None,
        position_ids: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the states behind the last block, (rows, tokens, hidden), of whole texts: (rows, tokens) int64.

        cache: where their keys and values are kept. position_ids: (rows, tokens), and mask: (rows, 1, tokens, tokens)
        bool, who sees whom; without, each token follows the one before it, and sees all that came.
        """
        rows, tokens = token_ids.shape
        hidden, turn = self._embedded(token_ids), self._turn(tokens, position_ids)
        slots: Sequence[Tensor | None] = [None] * len(self.blocks) if cache is None else cache.slots(0, tokens)
        for block, slot in zip(self.blocks, slots, strict=True):
            block.read(hidden, rows, turn, slot, mask)
        return hidden.view(rows, tokens, -1)

    def step(self, token_ids: Tensor, cache: KeysAndValues, position: int) -> Tensor:
        """Return the states behind the last block, (rows, hidden), of the token at a position: (rows, 1) int64.

        Raises IndexError where the cache has no room for it.
        """
        rows = len(token_ids)
        slots, seen = cache.slots(position, position + 1), cache.seen(position + 1)
        cos, sin = self.rotary.upto(position + 1)
        hidden, turn = self._embedded(token_ids), Turn(cos[position], sin[position])
        for block, slot, kept in zip(self.blocks, slots, seen, strict=True):
            block.step(hidden, rows, turn, slot, kept)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of states behind the last block: (n, hidden) -> (n, vocabulary)."""
        return self.head(self.norm(hidden))

    def _embedded(self, token_ids: Tensor) -> Tensor:
        embedded: Tensor = self.embed(token_ids)
        return embedded.reshape(token_ids.numel(), -1).contiguous()

    def _turn(self, tokens: int, position_ids: Tensor | None) -> Turn:
        if position_ids is None:
            cos, sin = self.rotary.upto(tokens)
            return Turn(cos[:tokens, None], sin[:tokens, None])
        cos, sin = self.rotary.upto(int(position_ids.max()) + 1)
        return Turn(cos[position_ids][:, :, None], sin[position_ids][:, :, None])


def check(subject: Subject) -> None:
    """Raise Unsupported for a subject that the lean path does not compute as transformers does."""
    model: Any = subject.model
    if type(model) is not llama.LlamaForCausalLM:
        raise Unsupported(f"the lean path runs Llama's shape with a head, this is a {type(model).__name__}; {USE}")
    if subject.cache is not None:
        raise Unsupported(f"the lean path keeps all keys and values as they are, this model has its own cache; {USE}")
    if architecture.form(model) is not None:
        raise Unsupported(f"the lean path adds blocks' outputs as they are, a sliced model turns them; {USE}")
    if strange := next((type(part).__name__ for part in _parts(model) if type(part) not in KNOWN), None):
        raise Unsupported(f"the lean path knows nothing of {strange}, which stands in a block; {USE}")
    if (kind := model.model.rotary_emb.rope_type) not in ROTARIES:
        raise Unsupported(f"angles of {kind!r} depend on a text's length; expected {', '.join(ROTARIES)}; {USE}")


def _parts(model: Any) -> Iterator[nn.Module]:
    """Yield the blocks, what they are made of but for linear layers, and the last norm."""
    for block in architecture.blocks(model):
        yield block
        yield from (block.get_submodule(name) for name in PARTS)
    yield model.model.norm


def _block(block: Any, qkv: Product, gate_up: Product) -> Block:
    attention, mlp = block.self_attn, block.mlp
    channels: int = attention.head_dim
    heads, kv_heads = (architecture.shape(layer)[0] // channels for layer in (attention.q_proj, attention.k_proj))
    return Block(
        before_attention=_norm(block.input_layernorm),
        qkv=qkv,
        heads=heads,
        kv_heads=kv_heads,
        channels=channels,
        scale=attention.scaling,
        output=alone(attention.o_proj),
        before_mlp=_norm(block.post_attention_layernorm),
        gate_up=gate_up,
        activation=_activation(mlp.act_fn),
        down=alone(mlp.down_proj),
    )


def _norm(norm: Any) -> Norm:
    return Norm(norm.weight.data, norm.variance_epsilon)


def _activation(module: Any) -> Callable[[Tensor], Tensor]:
    if isinstance(module, SiLUActivation | nn.SiLU):
        return F.silu
    activation: Callable[[Tensor], Tensor] = module
    return activation
