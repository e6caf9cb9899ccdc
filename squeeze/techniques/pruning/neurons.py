"""Remove neurons of the MLPs: as many in each block, so that what is left is a plain, narrower model.

Ma, Fang, Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models" (arXiv:2305.11627): a neuron is a
group of coupled weights, the rows that make it and the column that reads it. How groups are scored: ``importance``. The
paper spares the first and the last blocks; here all blocks have one width, which a configuration can say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models.layout import layout, shares, sizes
from squeeze.models.subject import Subject
from squeeze.models.surgery import check_alike, check_float, highest, keep_channels
from squeeze.techniques.contract import Calibration
from squeeze.techniques.pruning.importance import check_criterion, importance


@dataclass(frozen=True)
class Neurons:
    """Keep a share of the neurons of each block's MLP; nothing is trained, and no weight that stays is changed.

    neurons_kept: share of the neurons that stay, above 0, at most 1. by: what a neuron is worth (``importance``);
    measured on the text of one task, it is what the neuron knows of that task. multiple: the number that stays is
    rounded to a multiple of this, at least one: kernels like it, and groups of weights that share a scale need it.
    """

    neurons_kept: float
    by: Literal["first_order", "wanda", "magnitude"]
    multiple: int = 8

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with fewer neurons.

        Raises Unsupported for another share or multiple, for an architecture that is not known, for compressed layers,
        and as ``check_criterion`` does; SqueezeError where there is no text.
        """
        model = subject.model
        count = self._kept(model)
        check_criterion(model, calibration, self.by)
        before, parameters = sizes(model), subject.claims.get("parameters", count_parameters(model))
        scores = importance(model, layout(model).mlp, 1, calibration, self.by)
        keep_channels(model, [highest(each, count) for each in scores])
        return subject.claiming(parameters=parameters, **shares(before, sizes(model), subject.claims))

    def _kept(self, model: nn.Module) -> int:
        """Return how many neurons stay in each block, checked."""
        if not 0 < self.neurons_kept <= 1:
            raise Unsupported(f"neurons cannot keep a share of {self.neurons_kept}; expected more than 0, at most 1")
        where, before = layout(model), int(sizes(model).channels)
        check_alike(model)
        check_float(model, (*where.up, where.down))
        if not 1 <= self.multiple <= before:
            raise Unsupported(f"neurons: multiple is {self.multiple}, expected 1 to the {before} neurons of a block")
        return rounded(self.neurons_kept * before, self.multiple, before)


def rounded(wanted: float, multiple: int, most: int) -> int:
    """Return the multiple that is nearest to what is wanted, at least one; where that is all or more, ``most``."""
    return most if wanted >= most else min(max(1, round(wanted / multiple)) * multiple, most)
