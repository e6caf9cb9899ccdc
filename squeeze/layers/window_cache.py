"""Keep the keys and values of a text's first and newest tokens, and forget those between them (StreamingLLM).

Xiao, Tian, Chen, Han, Lewis 2023, "Efficient Streaming Language Models with Attention Sinks" (arXiv:2309.17453).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from squeeze.core.errors import Unsupported
from squeeze.layers.cache_budget import Budget

STEADY = ("linear", "llama3", "yarn")  # kinds of rotary angles that do not hang on how long the text has become


@dataclass(frozen=True)
class WindowCache:
    """Make caches whose layers are ``SinksAndWindow`` of these sizes. cache_tokens, piece: see ``cache_budget``."""

    cache_tokens: int
    sinks: int
    piece: int

    @property
    def group(self) -> int:
        """Return the tokens that go through at a time: tokens are forgotten where a piece ends, nowhere else."""
        return self.piece

    @property
    def prompt_group(self) -> int:
        """Return the tokens of a prompt that are read at a time: it, too, sees no more than the cache has room for."""
        return self.piece

    def __call__(self, config: Any) -> Cache:
        """Return an empty cache for one generation by a model of this configuration."""
        budget, frequencies = Budget(self.cache_tokens, self.piece), rotary_frequencies(config)
        layers = range(config.num_hidden_layers)
        return Cache(layers=[SinksAndWindow(budget, self.sinks, frequencies) for _ in layers])


class SinksAndWindow(DynamicLayer):  # type: ignore[misc] # transformers has no types
    """Cache the keys and values of one attention layer: of the first tokens, the sinks, and of the newest ones.

    frequencies: of a rotary embedding (``rotary_frequencies``). With them, positions are places in the cache, as the
    paper has them (section 3.2): those behind a gap move up, so no distance is greater than the cache is long. Keys
    are held turned to their positions, and are turned back where these change. None: a position is learned and stands
    in the token's own embedding, so it stays that of the text.
    """

    is_croppable = False
    keys: Tensor
    values: Tensor

    def __init__(self, budget: Budget, sinks: int, frequencies: Tensor | None) -> None:
        super().__init__()
        self.budget, self.sinks, self.frequencies = budget, sinks, frequencies
        self.read = 0

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Take in new tokens, (batch, heads, tokens, head_dim), and return all there are, to be attended to.

        What is then too much is forgotten for all later calls. Raises SqueezeError as ``Budget.check`` does.
        """
        self.budget.check(self.read, key_states.shape[-2])
        keys, values = super().update(key_states, value_states)
        self.read += key_states.shape[-2]
        if gone := keys.shape[-2] - self.budget.held(self.read):
            self._forget(gone)
        return keys, values

    def get_seq_length(self) -> int:
        """Return the position of the next token."""
        return self.read if self.frequencies is None else self._held

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many tokens are attended to, and the position of the first as a mask counts them."""
        return self._held + query_length, self.get_seq_length() - self._held

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.read = 0

    @property
    def _held(self) -> int:
        return super().get_seq_length()  # type: ignore[no-any-return]

    def _forget(self, gone: int) -> None:
        """Forget so many tokens behind the sinks."""
        newest = self.keys[..., self.sinks + gone :, :]
        if self.frequencies is not None:
            newest = turned(newest, -gone * self.frequencies.to(newest.device))
        self.keys = torch.cat([self.keys[..., : self.sinks, :], newest], dim=-2)
        self.values = torch.cat([self.values[..., : self.sinks, :], self.values[..., self.sinks + gone :, :]], dim=-2)


def rotary_frequencies(config: Any) -> Tensor | None:
    """Return by how many radians the next position turns each pair of a head's channels: (pairs,) float32.

    None for a model without rotary embeddings. Raises Unsupported for angles that change as a text grows.
    """
    rotary = getattr(config, "rope_parameters", None)
    if rotary is None:
        return None
    kind = rotary["rope_type"]
    if kind in STEADY:
        return ROPE_INIT_FUNCTIONS[kind](config)[0]  # type: ignore[no-any-return]
    if kind != "default":
        raise Unsupported(
            f"rotary embeddings of kind {kind!r} cannot be moved; expected default or {', '.join(STEADY)}"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(head_dim * rotary.get("partial_rotary_factor", 1.0))
    frequencies: Tensor = rotary["rope_theta"] ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    return frequencies


def turned(keys: Tensor, angles: Tensor) -> Tensor:
    """Return keys (..., head_dim) whose pairs of channels are turned by angles, (pairs,) float32, in radians.

    As transformers has them, a pair is a channel of the first half of those that turn, and its like of the second
    half; channels beyond these stay as they are.
    """
    pairs = len(angles)
    first, second, rest = keys[..., :pairs].float(), keys[..., pairs : 2 * pairs].float(), keys[..., 2 * pairs :]
    cos, sin = angles.cos(), angles.sin()
    moved = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return torch.cat([moved.to(keys.dtype), rest], dim=-1)
