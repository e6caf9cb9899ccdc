"""Hold in float32 what is trained of a model, linear layers or all, and multiply meanwhile in the model's own dtype.

There is one exception: all of a float16 model multiplies in float32 while it is trained, since gradients in float16
vanish unless losses are scaled (Micikevicius et al. 2017, "Mixed Precision Training", arXiv:1710.03740, section 3.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import compressed_layers
from squeeze.layers.master_weights import MasterLinear, mastered, settled
from squeeze.layers.whole_model import in_float32
from squeeze.models import architecture

Scope = Literal["linear", "all"]


@dataclass(frozen=True)
class Held:
    """Hold a model under training. parameters: what is trained, float32. masters: of linear layers, where these alone.

    half: whether its float32 parameters are cast to bfloat16 where it multiplies (autocast: what lies between products,
    such as embeddings, norms and sums, stays float32); masters cast themselves.
    """

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    masters: Mapping[str, MasterLinear]
    half: bool

    def multiplying(self) -> AbstractContextManager[object]:
        """Let the model multiply in its own dtype within the body (all of a float16 one, in float32); gradients pass.

        No cast is kept for a second use: one made for a forward without gradient would be found by one that needs it.
        """
        return self._cast(kept=False)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Let the model multiply likewise, with each weight cast once: for many forwards without gradient."""
        with settled(self.model, self.masters), self._cast(kept=True):
            yield

    def _cast(self, *, kept: bool) -> AbstractContextManager[object]:
        device = self.parameters[0].device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.half, cache_enabled=kept)


def check(technique: str, scope: str, model: nn.Module) -> None:
    """Raise Unsupported for a scope that is none, and as ``check_plain`` does."""
    if scope not in get_args(Scope):
        raise Unsupported(f"{technique} has no scope {scope!r}; expected one of {', '.join(get_args(Scope))}")
    check_plain(technique, model)


def check_plain(technique: str, model: nn.Module) -> None:
    """Raise Unsupported for a model of packed layers (codes, or zeros left out), which only ``recover`` trains."""
    packed = [type(layer).__name__ for layer in compressed_layers(model)]
    packed += [str(each.dtype) for each in model.parameters() if not each.is_floating_point()]
    if packed:
        raise Unsupported(
            f"{technique} trains plain layers, found {len(packed)} that are packed ({packed[0]}); follow with recover,"
            " which trains what is compressed, or put this step before the one that packs"
        )


@contextmanager
def held(model: nn.Module, scope: str) -> Iterator[Held]:
    """Hold in float32, within the body, the linear layers of the blocks ("linear") or all parameters ("all").

    Afterwards all is as it was, with what was learned, in the model's dtype. Raises Unsupported, before anything has
    changed, where there are no linear layers of floats.
    """
    if scope == "linear":
        with mastered(model) as masters:
            yield Held(model, [master.weight for master in masters.values()], masters, half=False)
    else:
        half = architecture.dtype(model) is torch.bfloat16
        with in_float32(model) as parameters:
            yield Held(model, parameters, {}, half)
