"""Tell how the speed of one and the same baseline drifted while a sweep was measured.

Every round times the baseline anew, so a sweep holds its own control runs. A verdict needs none of this, for drift
that a round's processes share cancels in their ratio; it tells how much the machine was to be trusted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from squeeze.core.errors import IntegrityError
from squeeze.core.hashing import digest
from squeeze.records.arrays import load
from squeeze.records.record import PROCESS, Estimate, Record, Status
from squeeze.records.statistics import ALPHA
from squeeze.records.store import RecordStore, warn
from squeeze.request.cell import Cell

FEWEST_RUNS = 10  # two blocks of five rounds: fewer say nothing of a trend
CONTROL = "baseline_token_s_b1"

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """Hold how one baseline's time moved on one machine: ``change``, first to last run, ``spread`` about that trend.

    Both are relative (0.01: one per cent slower). The interval of ``change`` is that of a straight line's slope, with
    the runs taken for independent; ``spread`` is the standard deviation of the log times.
    """

    baseline: str
    change: Estimate
    spread: float


def drifts(store: RecordStore, records: Iterable[Record]) -> Iterator[Drift]:
    """Yield the drift of each baseline that was timed often enough.

    Records whose samples are gone, or are none, count nothing; they are named on stderr.
    """
    timed = [record for record in records if record.status is Status.OK and record.isolation == PROCESS]
    series: dict[str, dict[bytes, Array]] = {}
    names = {}
    for record in sorted(timed, key=lambda record: record.started):
        cell = Cell.from_json(record.cell)
        baseline = cell.baseline(str(record.realised.get("speed_baseline")))
        identity = digest([baseline.key, record.beside])
        names[identity] = baseline.label
        if (times := _control_runs(store, record)) is not None:
            series.setdefault(identity, {})[times.tobytes()] = times  # a block's records share them
    for identity, blocks in series.items():
        runs = np.concatenate(list(blocks.values()))
        if runs.size >= FEWEST_RUNS:
            yield trend(names[identity], runs)


def trend(baseline: str, seconds: Array) -> Drift:
    """Fit the drift of control runs, (n,) seconds, in the order in which they were measured."""
    logs, places = np.log(seconds), np.arange(seconds.size)
    line = scipy.stats.linregress(places, logs)
    span = seconds.size - 1
    half = line.stderr * scipy.stats.t.isf(ALPHA / 2, seconds.size - 2)
    value, low, high = np.expm1(span * np.array([line.slope, line.slope - half, line.slope + half])).tolist()
    residuals = logs - line.intercept - line.slope * places
    return Drift(baseline, Estimate(value, low, high, float(line.pvalue), seconds.size), float(residuals.std(ddof=2)))


def _control_runs(store: RecordStore, record: Record) -> Array | None:
    """Return median seconds a token of the baseline's process in each round (rounds,), or None without samples."""
    try:
        arrays = load(store, record)
    except IntegrityError as error:
        warn(store.folder / record.samples["file"], str(error))
        return None
    return np.asarray(np.median(arrays[CONTROL], axis=1)) if CONTROL in arrays else None
