"""Count false alarms in A/A sweeps: one cell, measured again and again, must not be called different from itself.

``squeeze run sweep=aa`` times the uncompressed model twelve times over, in blocks that share the processes of a
baseline, which is that very model. Whatever is found to differ there is a false alarm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from squeeze.core.errors import SqueezeError
from squeeze.records.record import PROCESS, Record, Status
from squeeze.records.statistics import ALPHA, FEWEST_ROUNDS, holm, ratio
from squeeze.records.store import RecordStore

DECODING = "token_s_b1"

# (1 + replicates, rounds): median seconds a token of the processes that ran side by side, the baseline's first.
Block = npt.NDArray[np.float64]


def blocks(results: Path) -> list[Block]:
    """Return the blocks of an A/A sweep: uncompressed cells that were timed against their own dtype.

    Raises SqueezeError when there is none or they have too few rounds, IntegrityError for samples that were changed.
    """
    store = RecordStore(results)
    together: dict[bytes, list[Block]] = {}
    for record in filter(_is_aa, store.records()):
        with np.load(store.samples(record), allow_pickle=False) as arrays:
            own, baseline = (np.median(arrays[name], axis=1) for name in (DECODING, f"baseline_{DECODING}"))
        together.setdefault(baseline.tobytes(), [baseline]).append(own)
    found = [np.stack(members) for members in together.values()]
    if not found or min(block.shape[1] for block in found) < FEWEST_ROUNDS:
        raise SqueezeError(
            f"no A/A sweep of {FEWEST_ROUNDS} rounds in {results}: expected uncompressed cells timed against their own "
            "dtype; `squeeze run sweep=aa` measures them (with dtype=float32 where that is the faster one)"
        )
    return found


def called_different(sweep: Sequence[Block]) -> int:
    """Count the replicates that a leaderboard would call faster or slower than their baseline (5 %, Holm)."""
    p_values = [_p_value(own, block[0]) for block in sweep for own in block[1:]]
    return int((holm(p_values) <= ALPHA).sum())


def different_pairs(sweep: Sequence[Block]) -> tuple[int, int]:
    """Count the pairs of series that ran side by side: those with p <= 5 % uncorrected, and all of them."""
    p_values = [_p_value(one, other) for block in sweep for one, other in combinations(block, 2)]
    return sum(p_value <= ALPHA for p_value in p_values), len(p_values)


def false_alarms(sweep: Sequence[Block], resamples: int = 200, seed: int = 0) -> int:
    """Count how many of ``resamples`` sweeps drawn from a real one show any difference.

    In every round, the processes that ran side by side are dealt anew to the baseline and the candidates: they all
    computed the same, so each dealing could have been the sweep (a permutation within rounds, Edgington 1987, ch. 5).
    """
    rng = np.random.default_rng(seed)
    return sum(called_different([rng.permuted(block, axis=0) for block in sweep]) > 0 for _ in range(resamples))


def describe(sweep: Sequence[Block], resamples: int = 200) -> Iterator[str]:
    """Say in words what an A/A sweep shows."""
    replicates = sum(len(block) - 1 for block in sweep)
    few, pairs = different_pairs(sweep)
    alarms = false_alarms(sweep, resamples)
    yield f"{replicates} real replicates in {len(sweep)} blocks: {called_different(sweep)} called different (Holm)"
    yield f"{few} of {pairs} real pairs that ran side by side have p below 0.05, uncorrected"
    yield f"resampled {resamples} times: {alarms / resamples:.1%} of the sweeps show any difference (Holm)"


def _is_aa(record: Record) -> bool:
    uncompressed = record.status is Status.OK and record.isolation == PROCESS and not record.cell["technique"]["steps"]
    return uncompressed and record.realised.get("speed_baseline") == record.cell["model"]["dtype"]


def _p_value(one: Block, other: Block) -> float:
    p_value = ratio(list(1 / one), list(1 / other)).p_value
    assert p_value is not None  # there are rounds enough
    return p_value
