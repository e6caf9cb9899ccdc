"""Run one block of a Llama as a short list of tensor operations, without modules.

    h += W_o attention(R q, R k, v),  [q k v] = W_qkv norm(h)
    h += W_down (silu(g) * u),        [g u] = W_gate_up norm(h)

R turns each pair of channels by an angle that grows with the position (Su et al. 2021, "RoFormer: Enhanced Transformer
with Rotary Position Embedding", arXiv:2104.09864, eq. 34): x * cos + swapped(x) * sin, the sine's first half negative.
A head of keys and values serves ``heads / kv_heads`` heads of queries (Ainslie et al. 2023, arXiv:2305.13245).

Sums are those that transformers makes, and in float32 so are the roundings but for the order in which products are
summed. In 16 bits fewer of them are: the norm, and the turn, round once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from squeeze.runtimes.lean_products import Product
from squeeze.runtimes.static_cache import Seen


@dataclass(frozen=True, slots=True)
class Norm:
    """Divide by the root mean square (Zhang, Sennrich 2019, arXiv:1910.07467, eq. 4). weight: (hidden,)."""

    weight: Tensor
    eps: float

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return the normed states: (..., hidden) -> (..., hidden)."""
        return torch.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


@dataclass(frozen=True, slots=True)
class Turn:
    """Hold the cosine and the signed sine of positions, which broadcast against (rows, tokens, heads, channels)."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class Block:
    """Hold what one block multiplies by. heads, kv_heads: of queries, of keys and of values; channels: of a head.

    qkv: queries, then keys, then values of all heads. gate_up: the MLP's gate, then its way up. scale: of attention.
    Hidden states are changed in place.
    """

    before_attention: Norm
    qkv: Product
    heads: int
    kv_heads: int
    channels: int
    scale: float
    output: Product
    before_mlp: Norm
    gate_up: Product
    activation: Callable[[Tensor], Tensor]
    down: Product

    def read(self, hidden: Tensor, rows: int, turn: Turn, slot: Tensor | None, mask: Tensor | None) -> None:
        """Read whole texts from their beginning, each token seeing those before it: (rows * tokens, hidden).

        slot: where their keys and values are kept, if anywhere. mask: who sees whom instead, (rows, 1, tokens, tokens)
        bool.
        """
        made = self._made(hidden, rows, turn, slot)
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        queries, keys, values = torch.split(made.transpose(1, 2), sizes, dim=1)
        found = F.scaled_dot_product_attention(
            queries, keys, values, mask, is_causal=mask is None, scale=self.scale, enable_gqa=True
        )
        self._add(hidden, found.transpose(1, 2).reshape(len(hidden), -1))

    def step(self, hidden: Tensor, rows: int, turn: Turn, slot: Tensor, seen: Seen) -> None:
        """Read one further token of each text, (rows, hidden). seen: all keys and values, those in ``slot`` among them.

        The queries that share a head of keys and values are given as if they were so many tokens: nothing is repeated.
        """
        made = self._made(hidden, rows, turn, slot)
        queries = made.narrow(2, 0, self.heads).view(rows, self.kv_heads, -1, self.channels)
        found = F.scaled_dot_product_attention(queries, *seen, scale=self.scale)
        self._add(hidden, found.reshape(rows, -1))

    def _made(self, hidden: Tensor, rows: int, turn: Turn, slot: Tensor | None) -> Tensor:
        """Return queries, keys and values, (rows, tokens, heads + 2 * kv_heads, channels), and keep the latter two."""
        of_all = self.qkv(self.before_attention(hidden))
        made = of_all.view(rows, -1, self.heads + 2 * self.kv_heads, self.channels)
        turned = made.narrow(2, 0, self.heads + self.kv_heads)
        swapped = turned.roll(self.channels // 2, -1)
        turned.mul_(turn.cos).addcmul_(swapped, turn.sin)
        if slot is not None:
            slot.copy_(made.narrow(2, self.heads, 2 * self.kv_heads))
        return made

    def _add(self, hidden: Tensor, attended: Tensor) -> None:
        """Add what the block makes of what was attended to, (rows * tokens, heads * channels), to the states."""
        hidden.add_(self.output(attended))
        gate, up = self.gate_up(self.before_mlp(hidden)).chunk(2, -1)
        hidden.add_(self.down(self.activation(gate).mul_(up)))
