"""Estimate how near a row is to the model that was compressed, and how near that model is to itself, from raw samples.

The unit of replication is a run of consecutive tokens for distances, a prompt for generations, an item for answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.records.record import Estimate
from squeeze.records.statistics import (
    FEWEST_ITEMS,
    accuracy_change,
    block_mean,
    retained_accuracy,
    student_mean,
    token_blocks,
)

PERCENTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}
BANDS = {"unsure": (0.0, 0.5), "likely": (0.5, 0.9), "confident": (0.9, np.inf)}  # of the baseline's likeliest token
GENERATED = ("generated", "generated_alone")  # together in batches, or each prompt alone
NGRAM = 4
ANSWERS = "_correct"

Arrays = Mapping[str, npt.NDArray[Any]]
Estimates = dict[str, Estimate]


def fidelity(arrays: Arrays, baseline: Arrays) -> Estimates:
    """Return what the arrays of a row's quality and of its baseline's give of the names below; of others nothing.

    kl_divergence, top1_agreement; kl_median, kl_p90, kl_p99; kl_unsure, kl_likely, kl_confident;
    kl_floor, kl_floor_median, kl_floor_p99, top1_floor;
    divergent_share, divergent_floor, first_divergence, repetition, baseline_repetition.
    """
    near = {**distances(arrays), **class_distances(arrays)}
    return {**near, **noise_floor(baseline), **generations(arrays, baseline)}


def distances(arrays: Arrays) -> Estimates:
    """Return the distances of kl, nats, and top1, (tokens,) in text order; by confidence, (tokens,), in its bands.

    Means have 95 % intervals (``block_mean``), ``n`` of a percentile and of a band counts tokens.
    """
    found = {}
    if "top1" in arrays:
        found["top1_agreement"] = block_mean(arrays["top1"], token_blocks(arrays["top1"].size), 0.0, 1.0)
    if "kl" in arrays:
        found["kl_divergence"] = block_mean(arrays["kl"], token_blocks(arrays["kl"].size), 0.0)
        found |= {f"kl_{name}": _quantile(arrays["kl"], share) for name, share in PERCENTILES.items()}
    if {"kl", "confidence"} <= arrays.keys():
        for name, (low, high) in BANDS.items():
            within = arrays["kl"][(arrays["confidence"] >= low) & (arrays["confidence"] < high)]
            if within.size:
                found[f"kl_{name}"] = Estimate(float(within.mean(dtype=np.float64)), n=within.size)
    return found


def class_distances(arrays: Arrays) -> Estimates:
    """Return the distances of item_kl, nats, and item_top1, (items,): of the classes that the same texts are put into.

    Means have Student's 95 % interval over the items, which ``n`` counts.
    """
    if "item_kl" not in arrays:
        return {}
    kl = arrays["item_kl"]
    return {
        "kl_divergence": student_mean(kl, 0.0),
        "top1_agreement": student_mean(arrays["item_top1"], 0.0, 1.0),
        **{f"kl_{name}": _quantile(kl, share) for name, share in PERCENTILES.items()},
    }


def noise_floor(baseline: Arrays) -> Estimates:
    """Return how far the baseline is from itself under another rounding: what lies below is no loss.

    baseline: its floor_kl, nats, and floor_top1, (tokens,), the text's first ones. ``n`` counts tokens.
    """
    if "floor_kl" not in baseline:
        return {}
    kl, top1 = baseline["floor_kl"], baseline["floor_top1"]
    return {
        "kl_floor": Estimate(float(kl.mean(dtype=np.float64)), n=kl.size),
        "kl_floor_median": _quantile(kl, PERCENTILES["median"]),
        "kl_floor_p99": _quantile(kl, PERCENTILES["p99"]),
        "top1_floor": Estimate(float(top1.mean()), n=top1.size),
    }


def generations(arrays: Arrays, baseline: Arrays) -> Estimates:
    """Compare greedy continuations of the same prompts, (prompts, tokens), with the baseline's made in the same way.

    divergent_share: of tokens that are not the baseline's at their place, the last included, with a 95 % interval by
    prompts (Student's t, from 16 on). first_divergence: tokens before the first of them, the median over prompts; all
    where there is none. repetition: share of 4-grams that their text had before. divergent_floor: the share of the
    baseline's own, generated together and alone. ``n`` counts prompts.
    """
    name = next((name for name in GENERATED if name in arrays and name in baseline), None)
    if name is None:
        return {}
    differs = arrays[name] != baseline[name]
    prompts, tokens = differs.shape
    first = np.where(differs.any(axis=1), differs.argmax(axis=1), tokens)
    found = {
        "divergent_share": student_mean(differs.mean(axis=1), 0.0, 1.0),
        "first_divergence": Estimate(float(np.median(first)), n=prompts),
        "repetition": Estimate(_repetition(arrays[name]), n=prompts),
        "baseline_repetition": Estimate(_repetition(baseline[name]), n=prompts),
    }
    if baseline.keys() >= set(GENERATED):
        together, alone = (baseline[each] for each in GENERATED)
        own = float((together[: len(alone)] != alone).mean())
        found["divergent_floor"] = Estimate(own, n=len(alone))
    return found


def pooled(arrays: Arrays, baseline: Arrays, fewest: int = FEWEST_ITEMS) -> Estimates:
    """Return the accuracy over the items of all tasks together, and what it lost: more items show smaller losses.

    arrays, baseline: TASK_correct, (items,) bool, of the same items. acc_pooled_delta has the interval and the p-value
    of ``statistics.accuracy_change``. retained_accuracy is a one-sided 95 % bound, from ``fewest`` items on. Nothing
    without tasks. Raises ValueError where items are not paired.
    """
    names = sorted(name for name in arrays if name.endswith(ANSWERS))
    if not names:
        return {}
    own, other = (np.concatenate([each[name] for name in names]).astype(bool) for each in (arrays, baseline))
    found = {"acc_pooled": Estimate(float(own.mean()), n=own.size), "acc_pooled_delta": accuracy_change(own, other)}
    if (kept := retained_accuracy(own, other, fewest)) is not None:
        found["retained_accuracy"] = Estimate(kept, n=own.size)
    return found


def _quantile(values: npt.NDArray[Any], share: float) -> Estimate:
    return Estimate(float(np.quantile(values.astype(np.float64), share)), n=values.size)


def _repetition(token_ids: npt.NDArray[Any]) -> float:
    """Return the share of a text's 4-grams that it had before, averaged over texts (texts, tokens)."""
    if token_ids.shape[1] < NGRAM:
        return 0.0
    grams = np.lib.stride_tricks.sliding_window_view(token_ids, NGRAM, axis=1)
    return float(np.mean([1 - len(np.unique(each, axis=0)) / len(each) for each in grams]))
