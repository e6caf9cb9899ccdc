"""Store keys and values of earlier tokens in few bits: a cache that attention reads from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from squeeze.layers.packing import pack, unpack


@dataclass(frozen=True)
class QuantizedCache:
    """Make caches whose layers are ``QuantizedKeysAndValues`` of these bits, groups and residual."""

    bits: int
    group_size: int
    residual: int = 0

    @property
    def group(self) -> int:
        """Return the tokens that go through at a time: what is rounded changes where a group ends, nowhere else."""
        return self.group_size

    def __call__(self, config: Any) -> Cache:
        """Return an empty cache for one generation by a model of this configuration."""
        layers = range(config.num_hidden_layers)
        return Cache(layers=[QuantizedKeysAndValues(self.bits, self.group_size, self.residual) for _ in layers])


@dataclass(frozen=True)
class Codes:
    """Store numbers (..., n) as codes of groups of neighbours: x = minimum + scale * q, 0 <= q < 2^bits (section 2).

    packed: (..., n * bits / 8) uint8. scales, minima: (..., groups), in the numbers' dtype: a minimum is exact.
    """

    bits: int
    packed: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor

    @classmethod
    def of(cls, numbers: torch.Tensor, bits: int, group_size: int) -> Codes:
        """Return the nearest codes; numbers: (..., n) floats, n a multiple of group_size."""
        groups = numbers.reshape(*numbers.shape[:-1], -1, group_size)
        minima, maxima = groups.amin(-1), groups.amax(-1)
        scales = ((maxima.float() - minima.float()) / (2**bits - 1)).to(numbers.dtype)
        steps = scales.float().where(scales > 0, 1).unsqueeze(-1)  # a group of equal numbers has codes of 0
        codes = ((groups.float() - minima.float().unsqueeze(-1)) / steps).round_().clamp_(0, 2**bits - 1)
        return cls(bits, pack(codes.to(torch.uint8).flatten(-2), bits), scales, minima)

    def numbers(self) -> torch.Tensor:
        """Return the numbers that the codes stand for: (..., n)."""
        codes = unpack(self.packed, self.bits, self.packed.shape[-1] * 8 // self.bits)
        groups = codes.reshape(*self.scales.shape, -1).to(self.scales.dtype)
        return torch.addcmul(self.minima.unsqueeze(-1), groups, self.scales.unsqueeze(-1)).flatten(-2)

    def followed_by(self, other: Codes, dim: int) -> Codes:
        """Return both, one behind the other along ``dim``."""
        pairs = ((self.packed, other.packed), (self.scales, other.scales), (self.minima, other.minima))
        return Codes(self.bits, *(torch.cat(pair, dim) for pair in pairs))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors that are stored."""
        return self.packed, self.scales, self.minima


class QuantizedKeysAndValues(DynamicLayer):  # type: ignore[misc] # transformers has no types
    """Cache the keys and values of one attention layer, all but the newest tokens in few bits.

    bits: of each code. group_size: G, tokens that share a scale in a channel of the keys. residual: R, a multiple of G.
    The base class's ``keys`` and ``values`` hold the tokens that are not rounded: whole groups are, once R tokens are
    newer, so of n tokens the newest R are kept as they are, and up to G - 1 more: n - G floor((n - R) / G) in all.
    Each token is rounded once (transformers' own QuantizedCache rounds all of them anew whenever its residual is full).
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, bits: int, group_size: int, residual: int = 0) -> None:
        super().__init__()
        self.bits, self.group_size, self.residual = bits, group_size, residual
        # Keys (batch, heads, head_dim, tokens), values (batch, heads, tokens, head_dim).
        self.grouped: tuple[Codes, Codes] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take in new tokens, (batch, heads, tokens, head_dim), and return all there are, to be attended to.

        The new ones, and those not yet rounded, as they are; groups that are then old enough are, for all later calls.
        """
        super().update(key_states, value_states)
        keys, values = self.keys, self.values
        if self.grouped is not None:
            keys = torch.cat([self.grouped[0].numbers().mT, keys], dim=-2)
            values = torch.cat([self.grouped[1].numbers(), values], dim=-2)
        older = self.keys.shape[-2] - self.residual
        if older >= self.group_size:
            self._group(older // self.group_size * self.group_size)
        return keys, values

    def get_seq_length(self) -> int:
        """Count the tokens in the cache."""
        return super().get_seq_length() + self._grouped_tokens  # type: ignore[no-any-return]

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.grouped = None

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors that are stored."""
        grouped = () if self.grouped is None else (*self.grouped[0].tensors(), *self.grouped[1].tensors())
        return (*grouped, self.keys, self.values)

    @property
    def _grouped_tokens(self) -> int:
        return 0 if self.grouped is None else self.grouped[1].packed.shape[-2]

    def _group(self, tokens: int) -> None:
        """Round the first ``tokens`` of those that are not."""
        channels = min(self.group_size, self.values.shape[-1])
        keys = Codes.of(self.keys[..., :tokens, :].mT, self.bits, self.group_size)
        values = Codes.of(self.values[..., :tokens, :], self.bits, channels)
        if self.grouped is not None:
            keys, values = self.grouped[0].followed_by(keys, -1), self.grouped[1].followed_by(values, -2)
        self.grouped = keys, values
        self.keys, self.values = self.keys[..., tokens:, :].clone(), self.values[..., tokens:, :].clone()
