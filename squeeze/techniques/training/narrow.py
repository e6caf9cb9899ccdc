"""Begin a student that is narrower than its teacher: it takes over the teacher's most important weights.

Muralidharan, Sreenivas, Joshi, Chochowski, Patwary, Shoeybi, Catanzaro, Kautz, Molchanov 2024, "Compact Language Models
via Pruning and Knowledge Distillation" (Minitron, arXiv:2407.14679), section 2: rank channels of the MLP, heads and
hidden channels by what calibration text makes of them, cut all at once, distil afterwards. The paper ranks by norms of
activations; here the weights that read them count as well, as in Wanda's score (Sun et al. 2023, arXiv:2306.11695,
eq. 1) for whole columns: ``output_energy``. The hidden size is projected, not cut: ``projection`` (SliceGPT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.layout import group_size, head_groups, layout, shares, sizes
from squeeze.models.projection import check_projection, norms, project_hidden
from squeeze.models.subject import Subject
from squeeze.models.surgery import check_alike, check_float, check_heads, highest, keep_channels, keep_heads
from squeeze.techniques.contract import Calibration
from squeeze.techniques.hessian import principal_directions

TOKENS = 2048  # that go through the model at once


@dataclass(frozen=True)
class Narrow:
    """Keep a share of the width; nothing is trained.

    channels: share of the MLP's channels, chosen in each block. heads: share of the heads, in whole groups of the
    queries that share keys and values, chosen in each block; 1 where a configuration has no size of a head of its own.
    hidden: share of the hidden size, a multiple of the heads; 1 for other models than Llama's. Each above 0, at most 1,
    and rounded to whole ones. Steps that quantize in groups want widths that the groups divide.
    """

    channels: float
    heads: float = 1.0
    hidden: float = 1.0

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the narrower subject.

        Raises Unsupported for other shares, for an architecture that is not known, where no configuration describes
        the result (``surgery.check_heads``, ``projection.check_projection``), and for compressed layers.
        """
        model = subject.model
        channels, groups, hidden = self._kept(model)
        where, before = layout(model), sizes(model)
        parameters = subject.claims.get("parameters", count_parameters(model))
        kept_channels: list[list[int]] = []
        kept_groups: list[list[int]] = []
        for _, block, inputs in calibration.input_statistics(model):
            for name, size, kept, count in (
                (where.down, 1, kept_channels, channels),
                (where.output, group_size(model), kept_groups, groups),
            ):
                weight = architecture.weight(block.get_submodule(name))
                kept.append(highest(output_energy(weight, inputs[name].hessian, size), count))
        basis = None if hidden == before.hidden else principal(model, calibration.token_ids, hidden)
        keep_heads(model, kept_groups)
        keep_channels(model, kept_channels)
        if basis is not None:
            project_hidden(model, basis)
        return subject.claiming(parameters=parameters, **shares(before, sizes(model), subject.claims))

    def _kept(self, model: nn.Module) -> tuple[int, int, int]:
        """Return how many channels and groups of heads stay in each block, and the hidden size, all checked."""
        for name in ("channels", "heads", "hidden"):
            if not 0 < getattr(self, name) <= 1:
                raise Unsupported(f"narrow cannot keep {name}={getattr(self, name)}; expected more than 0, at most 1")
        where, before, all_groups = layout(model), sizes(model), head_groups(model)
        check_alike(model)
        channels = max(1, round(self.channels * before.channels))
        groups = max(1, round(self.heads * all_groups))
        hidden = max(1, round(self.hidden * before.hidden))
        check_float(model, (*where.up, where.down))
        if groups < all_groups:
            for size in (before.hidden, hidden):
                check_heads(model, groups, size)
        if hidden < before.hidden:
            config: Any = model.config
            check_projection(model, hidden, config.num_attention_heads // all_groups * groups)
        return channels, groups, hidden


def output_energy(weight: Tensor, hessian: Tensor, size: int) -> Tensor:
    """Return the mean of |W_g x_g|^2 for each group g of ``size`` neighbouring inputs: (groups,) float32.

    It is what a layer's output loses, in squares, when the group's inputs alone are taken away. weight:
    (out_features, in_features). hessian: (in_features, in_features), the mean of x x^T; so it is tr(W_g H_gg W_g^T).
    For single inputs that is |W_:j|^2 E[x_j^2], the square of Wanda's score for a whole column.
    """
    parts = weight.float().reshape(len(weight), -1, size)  # (out_features, groups, size)
    groups = parts.shape[1]
    own = hessian.reshape(groups, size, groups, size).diagonal(dim1=0, dim2=2)  # (size, size, groups)
    seen = torch.einsum("ogi,ijg->ogj", parts, own) if size > 1 else parts * own[0].T
    energy: Tensor = (seen * parts).sum(dim=(0, 2))
    return energy


@torch.no_grad()
def principal(model: nn.Module, token_ids: Tensor, count: int) -> Tensor:
    """Return the directions that hold most of the hidden states: (hidden, count) float32, orthonormal columns.

    They are the first eigenvectors of the mean of x x^T / |x|^2 over all tokens and all norms that read the states:
    norms see directions alone. token_ids: (samples, window) int64.
    """
    moments: list[Tensor] = []

    def note(_: nn.Module, inputs: Sequence[Tensor]) -> None:
        states = inputs[0].flatten(0, -2).float()
        states = states / states.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        if moments:
            moments[0].addmm_(states.T, states)
        else:
            moments.append(states.T @ states)

    handles = [norm.register_forward_pre_hook(note) for norm in norms(model)]
    try:
        for windows in torch.split(token_ids, max(TOKENS // token_ids.shape[1], 1)):
            architecture.base_model(model)(input_ids=windows, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return principal_directions(moments[0], count)
