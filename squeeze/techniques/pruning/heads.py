"""Remove heads of attention: as many in each block, in whole groups of queries that share keys and values.

Ma, Fang, Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models" (arXiv:2305.11627): a head is a
group of coupled weights, the rows that make its queries, keys and values, and the columns that read what it attends to.
How groups are scored: ``importance``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import own_sizes
from squeeze.models.layout import group_size, head_groups, layout, shares, sizes
from squeeze.models.subject import Subject
from squeeze.models.surgery import check_alike, check_float, cut_heads, highest, keep_heads, why_undescribed
from squeeze.techniques.contract import Calibration
from squeeze.techniques.pruning.importance import check_criterion, importance


@dataclass(frozen=True)
class Heads:
    """Keep a share of the heads of each block; nothing is trained, and no weight that stays is changed.

    heads_kept: share of the heads that stay, above 0, at most 1, rounded to whole groups, at least one. by: what a
    group is worth (``importance``).
    """

    heads_kept: float
    by: Literal["first_order", "wanda", "magnitude"]

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the subject with fewer heads; where no configuration describes it, it loads with squeeze alone.

        Raises Unsupported for another share, for an architecture that is not known, for compressed layers, and as
        ``check_criterion`` does; SqueezeError where there is no text.
        """
        model: Any = subject.model
        count = self._kept(model)
        check_criterion(model, calibration, self.by)
        before, parameters = sizes(model), subject.claims.get("parameters", count_parameters(model))
        scores = importance(model, layout(model).attention, group_size(model), calibration, self.by)
        cut = cut_heads if why_undescribed(model, count, model.config.hidden_size) else keep_heads
        cut(model, [highest(each, count) for each in scores])
        left = shares(before, sizes(model), subject.claims)
        loads = own_sizes.claims(model)  # of an earlier cut it need not hold any more
        return subject.without("loads_with").claiming(parameters=parameters, **left, **loads)

    def _kept(self, model: nn.Module) -> int:
        """Return how many groups of heads stay in each block, checked."""
        if not 0 < self.heads_kept <= 1:
            raise Unsupported(f"heads cannot keep a share of {self.heads_kept}; expected more than 0, at most 1")
        where = layout(model)
        check_alike(model)
        check_float(model, (*where.heads, where.output))
        return max(1, round(self.heads_kept * head_groups(model)))
