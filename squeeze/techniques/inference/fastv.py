"""Prune the visual tokens of a model that reads pictures (FastV): behind a block, those that got least attention.

Chen, Zhao, Liu, Liu, Bai, Lin, Zhou, Chang 2024, "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference
Acceleration for Large Vision-Language Models" (arXiv:2403.06764).
"""

from __future__ import annotations

from dataclasses import dataclass

from squeeze.layers.visual_pruning import VisualPruning
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration


@dataclass(frozen=True)
class FastV:
    """Let the blocks behind the first ``after`` see a share of a picture's tokens alone; weights stay as they are.

    visual_kept: that share, above 0 and at most 1: 1 - R of section 4.1. after: K; the paper's is 2.

    Tokens are ranked as the paper says, by the attention that they receive in block K from all tokens, averaged over
    heads (its authors' code counts the attention of the last token alone).
    """

    visual_kept: float
    after: int = 2

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject that leaves visual tokens out.

        Raises Unsupported for a model that reads no pictures, or is not known, for a share that is none, and for a
        block that is none or the last.
        """
        VisualPruning(self.after, self.visual_kept).shape(subject.model)
        return subject.claiming(visual_kept=self.visual_kept)
