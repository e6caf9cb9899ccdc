"""Train a model while it is pruned: what methods share that make their zeros during training.

The teacher is the uncompressed model, as in ``qat``: on the training text there is nothing to be learned that it did
not know, and what is compared is the pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from squeeze.layers.contract import float_linears
from squeeze.layers.master_weights import MasterLinear, same_tensors
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.losses import Objective, distilled
from squeeze.techniques.pruning.selection import check_sparsity, lowest
from squeeze.techniques.training_loop import AfterStep, Loss, Plan, train

View = Callable[[torch.dtype], nn.Module]  # what a master is multiplied as, in this dtype
Masters = Mapping[str, MasterLinear]  # by full name
DIGITS = 3  # of the share of zeros that is claimed


def prune_in_training(
    subject: Subject,
    calibration: Calibration,
    plan: Plan,
    objective: Objective,
    *,
    sparsity: float,
    view: View,
    prepared: Callable[[Masters], AfterStep],
    title: str,
) -> Subject:
    """Return the subject whose blocks' linear layers were trained, and have ``round(sparsity * weights)`` zeros each.

    What training has left beyond zero is cut by magnitude; what it has made zero beyond that stays so, and the claim is
    what was counted. prepared: from the masters to what changes them after each step (``training_loop.train``).
    Raises Unsupported for a model without a head, and for a sparsity outside [0, 1).
    """
    model = subject.model
    architecture.head(model)
    check_sparsity(sparsity)
    names = float_linears(model)
    # Whatever an earlier step has done to the model, it has claimed.
    teacher = calibration.baseline() if subject.claims else same_tensors(model)
    dtype = architecture.dtype(model)
    masters = {name: MasterLinear(model.get_submodule(name), view(dtype)) for name in names}
    for name, master in masters.items():
        architecture.replace(model, name, master)
    parameters = [master.weight for master in masters.values()]
    steps = train(
        parameters,
        _lesson(model, teacher, objective),
        calibration.token_ids,
        plan,
        title=title,
        workplace=calibration.workplace,
        held_out=calibration.held_out,
        after_step=prepared(masters),
    )
    trainable = sum(parameter.numel() for parameter in parameters)
    del teacher, parameters
    zeros = sum(_finish(model, name, masters.pop(name), sparsity, dtype) for name in names)
    return subject.without(*OF_CODES).claiming(
        sparsity=round(zeros / trainable, DIGITS),
        training_tokens=steps * plan.windows * calibration.token_ids.shape[1],
        trainable_parameters=trainable,
    )


def _lesson(model: nn.Module, teacher: nn.Module, objective: Objective) -> Loss:
    return lambda token_ids: distilled(model, teacher, token_ids, objective)


def _finish(model: nn.Module, name: str, master: MasterLinear, sparsity: float, dtype: torch.dtype) -> int:
    """Put the pruned layer in the place of its master; return how many zeros it has."""
    weight = master.weight.detach().to(dtype)
    pruned = lowest(weight.abs().flatten(), sparsity).view_as(weight)
    sparse = SparseLinear.of(weight.masked_fill(pruned, 0), master.bias)
    architecture.replace(model, name, sparse)
    return weight.numel() - sparse.nonzero
