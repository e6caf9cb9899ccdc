"""Rounds as they would be measured under the noise that real runs had (tests/records/noise.npz, scripts/noise.py).

Whole arrays of trials at a time: the last axis counts rounds, the one before it candidates of one block.
"""

from functools import cache
from pathlib import Path

import numpy as np
from scipy import stats

from squeeze.records.statistics import ALPHA
from squeeze.runner.rounds import order
from tests.interleaving import NARROW, ROUNDS, TURN, TURNS

RUNS = ("smoke", "aa", "quantization", "kv_cache")
OWN = 0.02  # deviation of what a process keeps all its life; live A/A ratios had 0.016 a round in all
AT_ONCE = 500  # trials: bounds the memory of a simulation


@cache
def measured(name):
    with np.load(Path(__file__).parent / "records" / "noise.npz") as arrays:
        return arrays[name].astype(np.float64)


def traces(run):
    """Log seconds a token of each process of a run, (processes, tokens), less the level of its model."""
    logs = np.log(measured(run))
    levels = np.median(logs, axis=2).mean(axis=1)
    return (logs - levels[:, None, None]).reshape(-1, logs.shape[2])


def process_noise(run):
    """Logs of process medians, (processes,), about the mean of their model, which took one of five degrees."""
    rounds = measured(run).shape[1]
    return np.median(traces(run), axis=1) * np.sqrt(rounds / (rounds - 1))


def one_after_the_other(rng, run, trials, slowdown=0.0, candidates=1, rounds=ROUNDS[-1]):
    """Log ratios of a candidate's rate to the baseline's, (trials, candidates, rounds), a process each."""
    logs = rng.choice(process_noise(run), size=(trials, 1 + candidates, rounds))
    return logs[:, :1] - logs[:, 1:] - np.log1p(slowdown)


def in_turns(rng, run, trials, slowdown=0.0, candidates=1, rounds=ROUNDS[-1], own=OWN):
    """The same, (trials, candidates, rounds), of members that take turns of TURN tokens in palindromic order.

    A round's moments are those of measured processes, drawn at random and laid end to end: the jumps between them are
    worse than what would have happened. own: deviation that a process keeps through its turns.
    """
    parts = [min(AT_ONCE, trials - start) for start in range(0, trials, AT_ONCE)]
    return np.concatenate([_in_turns(rng, run, part, slowdown, candidates, rounds, own) for part in parts])


def _in_turns(rng, run, trials, slowdown, candidates, rounds, own):
    pool, members = traces(run), 1 + candidates
    slots = members * TURNS
    drawn = rng.integers(len(pool), size=(trials, rounds, -(-slots * TURN // pool.shape[1])))
    moments = np.median(pool[drawn].reshape(trials, rounds, -1)[..., : slots * TURN].reshape(-1, slots, TURN), axis=-1)
    moments = moments.reshape(trials, rounds, TURNS, members)
    turns = np.empty_like(moments)
    for number in range(rounds):
        for turn in range(TURNS):
            places = order(range(members), number)[:: -1 if turn % 2 else 1]
            turns[:, number, turn, places] = moments[:, number, turn]
    logs = np.median(turns[..., :1] - turns[..., 1:], axis=2)  # (trials, rounds, candidates)
    kept = own * rng.standard_normal((trials, rounds, members))
    return (logs + kept[..., :1] - kept[..., 1:] - np.log1p(slowdown)).swapaxes(1, 2)


def student(logs):
    """p-values and half-widths of the 95 % intervals, both (...,), of log ratios (..., rounds)."""
    rounds = logs.shape[-1]
    error = logs.std(axis=-1, ddof=1) / np.sqrt(rounds)
    p_values = 2 * stats.t.sf(np.abs(logs.mean(axis=-1)) / error, rounds - 1)
    return p_values, stats.t.isf(ALPHA / 2, rounds - 1) * error


def extended(logs):
    """p-values, half-widths and counts of rounds, (trials, candidates) each, by the sequential rule.

    Each candidate is measured on, by pairs of rounds, while its interval is too wide.
    """
    p_values, half = student(logs[..., : ROUNDS[0]])
    counts = np.full(half.shape, ROUNDS[0])
    for rounds in ROUNDS[1:]:
        going = half > np.log(NARROW)
        p_values[going], half[going] = student(logs[going, :rounds])
        counts[going] = rounds
    return p_values, half, counts


def corrected(p_values):
    """Holm's adjusted p-values along the last axis; as ``holm``, for many families at once."""
    p_order = np.argsort(p_values, axis=-1)
    count = p_values.shape[-1]
    stepped = np.maximum.accumulate(np.take_along_axis(p_values, p_order, -1) * np.arange(count, 0, -1), axis=-1)
    adjusted = np.empty_like(stepped)
    np.put_along_axis(adjusted, p_order, np.minimum(stepped, 1.0), -1)
    return adjusted
