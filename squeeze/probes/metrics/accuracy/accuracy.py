"""Count right answers, as a metric of Hugging Face's ``evaluate``, which checks and collects them.

No import of ours, so that ``evaluate.load`` can take the folder as well, which copies this file and runs the copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

CLASS = datasets.Value("int32")


class Accuracy(evaluate.Metric):  # type: ignore[misc] # evaluate has no types, and takes nothing but a subclass
    """Compute ``accuracy``, the share of predicted classes that are the references', and ``correct``, which are."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            features=datasets.Features({"predictions": CLASS, "references": CLASS}),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, Any]:
        correct = [one == other for one, other in zip(predictions, references, strict=True)]
        return {"accuracy": sum(correct) / len(correct), "correct": correct}
