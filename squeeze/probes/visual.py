"""Count what a model keeps of a picture, block by block, and what reading one takes. Nothing here believes a technique.

Counted is what lies in the cache of each block once the generation that is timed has read a picture and a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.models import architecture
from squeeze.probes.realised import attention_width, own_bytes
from squeeze.probes.recount import logical_weights, weights_by_layer
from squeeze.records.roofline import prefill_operations
from squeeze.runtimes.contract import TorchEngine
from squeeze.runtimes.pictured import prefix, visual_tokens

CLAIM = "visual_kept"
SEERS = ("vision_tower", "multi_modal_projector")  # what makes tokens of a picture, below the base model


@dataclass(frozen=True)
class Visual:
    """Hold what was counted; of a model that reads no pictures, nothing.

    tokens: of a picture, as the first block reads it. kept: how many of these each block's cache holds, in order.
    operations: of one prefill, the picture's way to the first block included, by batch size. unread: bytes of weights
    that make tokens of pictures, which no decoding step reads.
    """

    tokens: int = 0
    kept: tuple[int, ...] = ()
    operations: Mapping[str, float] = field(default_factory=dict)
    unread: int = 0

    def figures(self) -> dict[str, Any]:
        """Return the sample names and values."""
        if not self.tokens:
            return {}
        return {
            "visual_tokens": self.tokens,
            "visual_tokens_kept": fmean(self.kept),
            "visual_tokens_by_block": list(self.kept),
            "prefill_operations": dict(self.operations),
        }

    def mismatches(self, claims: Mapping[str, Any]) -> list[str]:
        """Return the claim that does not hold, with both numbers: the block that keeps least keeps what is claimed."""
        claimed, found = claims.get(CLAIM, 1.0), min(self.kept, default=0) / max(self.tokens, 1)
        if CLAIM in claims and not self.tokens:
            return [f"claimed to keep {claimed:.1%} of a picture's tokens, found a model that reads no pictures"]
        if self.tokens and abs(claimed - found) * self.tokens > 1:  # a share of whole tokens is rounded
            return [f"claimed to keep {claimed:.1%} of a picture's tokens, found {found:.1%}"]
        return []


@torch.inference_mode()
def visual(engine: TorchEngine, baseline: nn.Module, protocol: Mapping[str, Any], text: Tensor) -> Visual:
    """Count while the engine reads a picture and a text behind it.

    baseline: the uncompressed model, whose shapes alone are read. protocol: its `latency` part. text: (1, tokens)
    int64.
    """
    model = engine.subject.model
    if not architecture.reads_pictures(model):
        return Visual()
    generation: Any = engine.begin(text.shape[1] + 1)
    generation.prefill(text)
    beside = len(prefix(model)) - visual_tokens(model)
    held = [int(layer.get_seq_length()) for layer in generation.cache.layers]
    kept = tuple(tokens - beside - text.shape[1] for tokens in held)
    weights = weights_by_layer(model, baseline)
    return Visual(
        visual_tokens(model),
        kept,
        {
            str(batch): batch * operations(model, weights, kept, beside + protocol["prompt_tokens"])
            for batch in protocol["batch_sizes"]
        },
        sum(sum(own_bytes(seer).values()) for seer in _seers(model)),
    )


def operations(model: nn.Module, weights: Mapping[str, int], kept: tuple[int, ...], text: int) -> float:
    """Return the operations of one prefill: of a picture, and of so many tokens of text, each block of what it keeps.

    weights: of each matrix within the blocks, compressed ones counted as the dense ones they stand for.
    """
    width, names = attention_width(model), [f"{name}." for name, _ in architecture.named_blocks(model)]
    of_blocks = [sum(count for matrix, count in weights.items() if matrix.startswith(name)) for name in names]
    each = (
        prefill_operations(block_weights=own, head_weights=0, attention_width=width, layers=1, tokens=text + visual)
        for own, visual in zip(of_blocks, kept, strict=True)
    )
    return sum(each) + 2 * logical_weights(architecture.head(model)) + _seeing(model)


def _seeing(model: nn.Module) -> float:
    """Return the operations of making tokens of one picture: a product a token of each matrix, and attention to all.

    Its own token for the whole picture, one more, is left out.
    """
    config: Any = model.config
    tokens, tower = visual_tokens(model), config.vision_config
    layers = [layer for seer in _seers(model) for layer in seer.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    products = 2 * tokens * sum(layer.weight.numel() for layer in layers)
    return float(products + 4 * tower.num_hidden_layers * tower.hidden_size * tokens**2)


def _seers(model: nn.Module) -> list[nn.Module]:
    base = architecture.base_model(model)
    return [base.get_submodule(name) for name in SEERS]
