"""Made-up records of classifiers, which look like those of a real run, and made-up labelled texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from squeeze.records.items import packed
from squeeze.records.record import Estimate, Record
from squeeze.records.statistics import FEWEST_TEXTS, accuracy_change, retained_accuracy
from squeeze.request.cell import Cell
from tests.fabricated import cell, record

ITEMS = 872
MODEL = {"name": "minilm_sst2", "source": "random:bert", "seed": 0, "kind": "classifier", "dtype": "float32"}
PROTOCOL = {"name": "classify", "rounds": 8, "block": 6, "seed": 0, "tasks": ["sst2"], "ranked_by": "accuracy"}
TASK = "sst2"

# name, family, step, bytes (MB), texts/s, speed-up, answers of the baseline that are lost, and won.
ROWS = (
    ("none", "baseline", {}, 90.9, 100.0, None, 0, 0),
    ("rtn", "quantization", {"bits": 8}, 58.0, 110.0, 1.1, 2, 3),
    ("rtn", "quantization", {"bits": 4}, 53.0, 112.0, 1.12, 60, 10),
    ("wanda", "pruning", {"sparsity": 0.5}, 90.0, 99.0, 0.99, 200, 20),
)


def of_classifier(technique: str, family: str, step: dict[str, Any], **changes: Any) -> Cell:
    """A cell of the sweep; ``changes`` replace its parts."""
    return cell(technique, family, step, **{"model": MODEL, "protocol": PROTOCOL, **changes})


def baseline_answers() -> np.ndarray:
    return np.random.default_rng(0).random(ITEMS) < 0.88


def answers(lost: int, won: int, seed: int = 1) -> np.ndarray:
    """The baseline's answers, of which so many right ones are wrong now, and wrong ones right."""
    before, rng = baseline_answers(), np.random.default_rng(seed)
    right = before.copy()
    right[rng.choice(np.flatnonzero(before), lost, replace=False)] = False
    right[rng.choice(np.flatnonzero(~before), won, replace=False)] = True
    return right


def row(technique: str, family: str, step: dict[str, Any], right: np.ndarray, **changes: Any) -> Record:
    """The record of a row that answered these items right; ``changes`` replace its fields, or add estimates."""
    before = baseline_answers()
    kept = retained_accuracy(right, before, FEWEST_TEXTS)
    assert kept is not None
    estimates = {
        f"acc_{TASK}": Estimate(float(right.mean())),
        "acc_pooled": Estimate(float(right.mean()), n=ITEMS),
        "acc_pooled_delta": accuracy_change(right, before),
        "retained_accuracy": Estimate(kept, n=ITEMS),
        "kl_divergence": Estimate(0.02, 0.015, 0.025, n=ITEMS),
        "top1_agreement": Estimate(float((right == before).mean()), 0.9, 1.0, n=ITEMS),
        **{f"kl_{name}": Estimate(0.01, n=ITEMS) for name in ("median", "p90", "p99")},
        **changes.pop("estimates", {}),
    }
    subject = changes.pop("subject", None) or of_classifier(technique, family, step)
    return record(subject, estimates, item_correct=packed(right), **changes)


def records() -> list[Record]:
    """One record for each of ROWS."""
    return [_of(*each, number) for number, each in enumerate(ROWS)]


def _of(
    name: str, family: str, step: dict[str, Any], size: float, rate: float, speedup: float | None, *flips: int
) -> Record:
    *counts, number = flips
    timed = {
        "bytes": Estimate(int(size * 1e6)),
        "encode_ms": Estimate(1000 / rate, 990 / rate, 1010 / rate, n=8),
        "items_per_s": Estimate(rate, 0.99 * rate, 1.01 * rate, n=8),
        "items_per_s_b8": Estimate(4 * rate, 3.9 * rate, 4.1 * rate, n=8),
    }
    if speedup is not None:
        timed["encode_speedup"] = Estimate(speedup, speedup - 0.02, speedup + 0.02, 1e-6, 8)
    realised = {"effective_bits": size * 8 / 22.7, "bytes_real": True, "memory_real": True, "compute_real": True}
    return row(name, family, step, answers(*counts, seed=number), estimates=timed, realised=realised)
