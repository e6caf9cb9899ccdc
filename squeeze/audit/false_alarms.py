"""Count false alarms in A/A sweeps: one cell, measured again and again, must not be called different from itself.

``squeeze run sweep=aa`` times the uncompressed model twelve times over, in blocks that share the processes of a
baseline, which is that very model. Whatever a leaderboard finds to differ there is a false alarm: its own verdicts are
counted, on the figures that a record would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from squeeze.boards.table import table
from squeeze.core.errors import SqueezeError
from squeeze.records.answers import EQUAL, FAILED, SPEED, Margins
from squeeze.records.estimates import Values, known, speeds
from squeeze.records.record import PROCESS, Estimate, Record, Status
from squeeze.records.rows import Side
from squeeze.records.statistics import ALPHA, FEWEST_ROUNDS
from squeeze.records.store import RecordStore
from squeeze.records.turns import processes

SPEED_UP = "decode_speedup"


@dataclass(frozen=True)
class Block:
    """Hold replicates that were timed beside one baseline: their records, and what each process of theirs measured.

    processes: (1 + replicates) times rounds, the baseline's first; a replicate may have had fewer rounds than it.
    """

    records: tuple[Record, ...]
    processes: tuple[tuple[Values, ...], ...]

    def dealt(self, rng: np.random.Generator) -> Block:
        """Return the block with each round's processes dealt anew to those that were measured in that round."""
        members = [list(rounds) for rounds in self.processes]
        for number in range(len(members[0])):
            there = [rounds for rounds in members if number < len(rounds)]
            drawn = [there[place][number] for place in rng.permutation(len(there))]
            for rounds, process in zip(there, drawn, strict=True):
                rounds[number] = process
        return replace(self, processes=tuple(map(tuple, members)))

    def judged(self) -> list[Record]:
        """Return the records with the speed-ups that the processes give."""
        baseline, *replicates = self.processes
        return [
            replace(record, estimates=known(speeds(own, baseline[: len(own)])))
            for record, own in zip(self.records, replicates, strict=True)
        ]


def blocks(results: Path) -> list[Block]:
    """Return the blocks of an A/A sweep: uncompressed cells that were timed against their own dtype.

    Raises SqueezeError when there is none or they have too few rounds, IntegrityError for samples that were changed.
    """
    store = RecordStore(results)
    together: dict[str, list[tuple[Record, Sequence[Values], Sequence[Values]]]] = {}
    for record in filter(_is_aa, store.records()):
        arrays = Side.of(store, record).arrays
        own, baseline = processes(arrays), processes(arrays, "baseline_")
        together.setdefault(repr(baseline[0]), []).append((record, own, baseline))
    found = [_block(members) for members in together.values()]
    if not found or min(len(own) for block in found for own in block.processes) < FEWEST_ROUNDS:
        raise SqueezeError(
            f"no A/A sweep of {FEWEST_ROUNDS} rounds in {results}: expected uncompressed cells timed against their own "
            "dtype; `squeeze run sweep=aa` measures them (with dtype=float32 where that is the faster one)"
        )
    return found


def verdicts(*sweeps: Sequence[Block]) -> pd.DataFrame:
    """Return what a leaderboard of each sweep says of the speed of each of its replicates: (sweeps, replicates)."""
    apart = (
        replace(record, fingerprint=f"{number:064}")  # what no two boards share
        for number, sweep in enumerate(sweeps)
        for block in sweep
        for record in block.judged()
    )
    said = table(apart).groupby("fingerprint")[f"{SPEED_UP}_verdict"].apply(list)
    return pd.DataFrame(said.tolist())


def called_different(*sweeps: Sequence[Block]) -> npt.NDArray[np.int64]:
    """Count the replicates of each sweep that its leaderboard calls faster or slower than their baseline."""
    return verdicts(*sweeps).isin([SPEED.lower, SPEED.higher]).sum(axis=1).to_numpy()


def resampled(sweep: Sequence[Block], resamples: int = 200, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return how many replicates are called different in each of ``resamples`` sweeps drawn from a real one.

    In every round, the processes that ran side by side are dealt anew to the baseline and the candidates: they all
    computed the same, so each dealing could have been the sweep (a permutation within rounds, Edgington 1987, ch. 5).
    """
    rng = np.random.default_rng(seed)
    return called_different(*([block.dealt(rng) for block in sweep] for _ in range(resamples)))


def different_pairs(sweep: Sequence[Block]) -> tuple[int, int]:
    """Count the pairs of series that ran side by side: those with p <= 5 % uncorrected, and all of them."""
    p_values = []
    for block in sweep:
        for one, other in combinations(block.processes, 2):
            rounds = min(len(one), len(other))
            p_values.append(speeds(one[:rounds], other[:rounds])[SPEED_UP].p_value)
    return sum(p_value is not None and p_value <= ALPHA for p_value in p_values), len(p_values)


def half_width(speed_up: Estimate) -> float:
    """Return half the 95 % interval of a speed-up, in logarithms: about the share by which it may be off."""
    assert speed_up.low is not None
    assert speed_up.high is not None
    return float(np.log(speed_up.high / speed_up.low)) / 2


def spread(speed_up: Estimate) -> float:
    """Return the standard deviation of a round's log ratio, which the interval was made of (Student's t)."""
    assert speed_up.n is not None
    return half_width(speed_up) * float(np.sqrt(speed_up.n) / scipy.stats.t.isf(ALPHA / 2, speed_up.n - 1))


def describe(sweep: Sequence[Block], alarms: npt.NDArray[np.int64]) -> Iterator[str]:
    """Say in words what an A/A sweep shows; alarms: what ``resampled`` found."""
    [said] = verdicts(sweep).to_numpy().tolist()
    replicates, judged = len(said), sum(answer != FAILED for answer in said)
    [different] = called_different(sweep)
    yield (
        f"{replicates} real replicates in {len(sweep)} blocks: {judged} with a verdict, {different} called different, "
        f"{said.count(EQUAL)} equal within {Margins().speed:.0%}"
    )
    speed_ups = [record.estimates[SPEED_UP] for block in sweep for record in block.judged()]
    deviation = np.sqrt(np.mean([spread(one) ** 2 for one in speed_ups]))
    halves = [half_width(one) for one in speed_ups]
    yield (
        f"a round's log ratio has a standard deviation of {deviation:.3f}, the speed-up half-widths of "
        f"{min(halves):.1%} to {max(halves):.1%} after {_counts(speed_ups)} rounds"
    )
    few, pairs = different_pairs(sweep)
    yield f"{few} of {pairs} real pairs that ran side by side have p below 0.05, uncorrected"
    yield (
        f"resampled {len(alarms)} times: {alarms.mean() / replicates:.1%} of the rows are called different "
        f"by the board's rule (Holm), in {(alarms > 0).mean():.1%} of the sweeps at least one"
    )


def _block(members: Sequence[tuple[Record, Sequence[Values], Sequence[Values]]]) -> Block:
    longest = max((baseline for _, _, baseline in members), key=len)
    return Block(tuple(record for record, _, _ in members), (tuple(longest), *(tuple(own) for _, own, _ in members)))


def _is_aa(record: Record) -> bool:
    uncompressed = record.status is Status.OK and record.isolation == PROCESS and not record.cell["technique"]["steps"]
    if record.beside != record.fingerprint:  # in another runtime it is another model
        return False
    return uncompressed and record.realised.get("speed_baseline") == record.cell["model"]["dtype"]


def _counts(speed_ups: Sequence[Estimate]) -> str:
    counts = sorted({one.n for one in speed_ups if one.n is not None})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
