"""A sweep's own control runs tell how the machine moved meanwhile."""

import io
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from squeeze.boards.drift import drifts, trend
from squeeze.boards.terminal import show
from squeeze.core.hashing import digest
from squeeze.records.record import Status
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record

BLOCKS, ROUNDS, SHARED = 6, 5, 4


def sweep(results, drift, noise=0.01, blocks=BLOCKS, **changes):
    """Blocks of four records that share their control runs; the machine gets slower by ``drift`` in all."""
    store = RecordStore(results)
    store.prepare()
    rng = np.random.default_rng(0)
    count = blocks * ROUNDS
    runs = 0.04 * (1 + drift) ** np.linspace(0, 1, count) * np.exp(noise * rng.standard_normal(count))
    for number in range(blocks * SHARED):
        block = number // SHARED
        times = runs[block * ROUNDS : (block + 1) * ROUNDS, None] * np.ones((1, 8))
        buffer = io.BytesIO()
        np.savez(buffer, baseline_token_s_b1=times)
        moment = f"2026-01-01T{block:02}:00:00+00:00"
        fields = {"started": moment, "realised": {"speed_baseline": "bfloat16"}, "stages": {"latency": 1.0}}
        kept = record(cell("rtn", "quantization", {"bits": 4}, replicate=number), **fields | changes)
        attempt = digest([kept.attempt, str(changes)])[:32]
        store.write(replace(kept, attempt=attempt), buffer.getvalue())
    return store


def found(store):
    return list(drifts(store, store.records(lambda _, why: pytest.fail(why))))


def test_a_drift_is_found_in_the_order_of_time(tmp_path):
    [drift] = found(sweep(tmp_path, 0.10))
    assert drift.baseline == "smollm2_135m-none-bfloat16"
    assert drift.change.n == BLOCKS * ROUNDS  # each run once, though four records hold it
    assert drift.change.low < 0.10 < drift.change.high
    assert drift.change.p_value < 1e-6
    assert drift.spread == pytest.approx(0.01, rel=0.4)


def test_a_calm_machine_shows_none(tmp_path):
    [drift] = found(sweep(tmp_path, 0.0))
    assert drift.change.low < 0 < drift.change.high


def test_a_getting_faster_is_negative():
    assert trend("x", 0.04 * 0.9 ** np.linspace(0, 1, 20)).change.value == pytest.approx(-0.1)


def test_the_interval_is_that_of_the_slope():
    seconds = 0.04 * np.exp(0.02 * np.random.default_rng(1).standard_normal(12))
    (slope, _), covariance = np.polyfit(np.arange(12), np.log(seconds), 1, cov=True)
    half = stats.t.isf(0.025, 10) * np.sqrt(covariance[0, 0])
    change = trend("x", seconds).change
    assert [change.low, change.high] == pytest.approx(np.expm1(11 * np.array([slope - half, slope + half])))


def test_every_baseline_has_a_trend_of_its_own(tmp_path):
    sweep(tmp_path, 0.10, blocks=2)
    sweep(tmp_path, -0.10, blocks=2, fingerprint="another machine")
    sweep(tmp_path, 0.50, blocks=2, realised={"speed_baseline": "float32"})
    for left_out in ({"isolation": "shared"}, {"status": Status.CRASHED, "reason": "killed"}):
        sweep(tmp_path, 0.9, blocks=2, noise=0.02, **left_out)
    apart = {(drift.baseline, round(drift.change.value, 1)): drift.change.n for drift in found(RecordStore(tmp_path))}
    name = "smollm2_135m-none"
    assert apart == {(f"{name}-bfloat16", 0.1): 10, (f"{name}-bfloat16", -0.1): 10, (f"{name}-float32", 0.5): 10}


def test_too_few_runs_and_lost_samples_say_nothing(tmp_path):
    store = sweep(tmp_path, 0.10)
    for path in store.folder.glob("*.npz"):
        path.unlink()
    assert found(store) == []


def test_the_board_shows_it_with_the_costs(tmp_path, capsys):
    show(sweep(tmp_path, 0.10).results, costs=True)
    line = next(line for line in capsys.readouterr().out.splitlines() if "control runs" in line)
    assert line.startswith("smollm2_135m-none-bfloat16: 30 control runs, ")
    assert "% from first to last" in line
