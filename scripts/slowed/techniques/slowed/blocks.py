"""Make a model do more work for the same answers: the slow-down that an audit plants and expects to be found.

Wu, Gan, Ge, Lu, Wang, Feng, Shan, Luo 2024, "LLaMA Pro: Progressive LLaMA with Block Expansion" (arXiv:2401.02415),
section 3.2: a copy of a block whose output projections are zero adds nothing to the residual stream. Its products are
computed all the same, with weights and a cache of its own, so each token takes longer by a known share of its work.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration

OUTPUTS = ("o_proj", "down_proj")  # of attention and MLP in a Llama block: what they return is added to the residual


@dataclass(frozen=True)
class MoreBlocks:
    """Append copies of the last block that compute and add nothing.

    share: of the weights that a token is multiplied with (blocks and head), how many more; met to within half a block.
    """

    share: float

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the slower subject; it claims ``added_blocks`` and the share that they really are, ``added_work``.

        Raises Unsupported for blocks that are no Llama's, and for a share that is less than half a block.
        """
        model: Any = subject.model
        blocks = architecture.blocks(model)
        last = blocks[-1]
        found = {name.rpartition(".")[2] for name in architecture.linears(last)}
        if not set(OUTPUTS) <= found:
            raise Unsupported(f"more_blocks knows the outputs {', '.join(OUTPUTS)}; found {', '.join(sorted(found))}")
        each = _weights(last)
        work = sum(map(_weights, blocks)) + architecture.head(model).weight.numel()  # type: ignore[operator,union-attr]
        added = round(self.share * work / each)
        if added < 1:
            raise Unsupported(f"more_blocks: a share of {self.share:g} is no block; one is {each / work:.3g}")
        for _ in range(added):
            _append(model, last)
        return subject.claiming(added_blocks=added, added_work=added * each / work)


def _weights(block: nn.Module) -> int:
    return sum(architecture.weight(linear).numel() for linear in architecture.linears(block).values())


@torch.no_grad()
def _append(model: Any, block: nn.Module) -> None:
    layers, config = architecture.base_model(model).layers, model.config
    new = copy.deepcopy(block)
    for name, linear in architecture.linears(new).items():
        if name.rpartition(".")[2] in OUTPUTS:
            architecture.weight(linear).zero_()
            if (bias := architecture.bias(linear)) is not None:
                bias.zero_()
    new.self_attn.layer_idx = len(layers)  # type: ignore[union-attr]
    layers.append(new)  # type: ignore[union-attr,operator]
    config.num_hidden_layers = len(layers)  # type: ignore[arg-type]
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types, config.layer_types[-1]]
