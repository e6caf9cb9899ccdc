"""Keep what real runs measured as noise, small enough to be committed: tests/records/noise.npz, for simulations.

The committed file was made from results/published as of commit 8e7af46, whose processes ran one after the other, so
that each trace is one process alone. The new protocol's are no such traces: its members take turns.
"""

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from squeeze.core.errors import SqueezeError
from squeeze.core.files import write_atomically
from squeeze.records.record import Status
from squeeze.records.store import RecordStore

RUNS = ("smoke", "aa", "quantization", "kv_cache")
TIMES = ("token_s_b1", "baseline_token_s_b1")
NEAR = 0.05  # nats a token: rows further from their baseline are no candidates for an equivalence
ROWS = 6  # of which token losses are kept, 16 kB each

Array = npt.NDArray[np.generic]


def main() -> int:
    """Write the file, and return the exit code: 0, or 2 when a run has no samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("published", nargs="?", type=Path, default=Path("results/published"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("tests/records/noise.npz"), help="(default: %(default)s)")
    options = parser.parse_args()
    buffer = io.BytesIO()
    try:
        np.savez_compressed(buffer, **collect(options.published))  # type: ignore[arg-type]
    except SqueezeError as error:
        print(f"noise: {error}", file=sys.stderr)
        return 2
    write_atomically(options.out, buffer.getvalue())
    return 0


def collect(published: Path) -> dict[str, Array]:
    """Return the noise that the runs of a folder have measured.

    RUN: (members, rounds, tokens) float32, seconds a token of batch 1 in each process, baselines once each.
    nll: (rows, tokens) float16, the token losses less the baseline's, nats, of the ROWS rows of "quantization" that
        are nearest to their baseline without being it. flips: (rows, 3), of the same rows' answers to all tasks
        together: right ones lost, wrong ones won, items.
    Raises SqueezeError when a run has no records, IntegrityError for samples that were changed.
    """
    runs = {run: _samples(RecordStore(published / run)) for run in RUNS}
    found = {run: _times(rows) for run, rows in runs.items()}
    near = sorted(_changes(runs["quantization"]), key=lambda row: abs(row[0]))[:ROWS]
    return found | {"nll": np.stack([nll for _, nll, _ in near]), "flips": np.array([flips for *_, flips in near])}


def _samples(store: RecordStore) -> list[dict[str, Array]]:
    records = sorted(store.require(), key=lambda record: record.attempt)
    found = []
    for record in (record for record in records if record.status is Status.OK):
        with np.load(store.samples(record), allow_pickle=False) as arrays:
            found.append(dict(arrays))
    return found


def _times(rows: list[dict[str, Array]]) -> Array:
    """Return the times of all members; those that candidates share with a baseline, once."""
    members = {arrays[name].tobytes(): arrays[name] for arrays in rows for name in TIMES}
    return np.stack(list(members.values())).astype(np.float32)


def _changes(rows: list[dict[str, Array]]) -> list[tuple[float, Array, tuple[int, int, int]]]:
    found = {}
    for arrays in rows:
        change = arrays["token_nll"].astype(np.float64) - arrays["baseline_token_nll"]
        if 0 < abs(change.mean()) < NEAR:
            found[change.tobytes()] = (float(change.mean()), change.astype(np.float16), _flips(arrays))
    return list(found.values())


def _flips(arrays: Mapping[str, Array]) -> tuple[int, int, int]:
    tasks = [name for name in arrays if name.endswith("_correct") and f"baseline_{name}" in arrays]
    right = np.concatenate([arrays[name] for name in tasks]).astype(bool)
    was_right = np.concatenate([arrays[f"baseline_{name}"] for name in tasks]).astype(bool)
    return int((was_right & ~right).sum()), int((right & ~was_right).sum()), right.size


if __name__ == "__main__":
    sys.exit(main())
