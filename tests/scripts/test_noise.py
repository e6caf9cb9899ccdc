"""The committed noise can be made anew from records: members once each, and the rows nearest to their baseline."""

import io
import sys

import numpy as np
import pytest

from scripts.noise import ROWS, RUNS, collect, main
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record

TOKENS = 64


def samples(rng, baseline, shift):
    """Of a row that loses ``shift`` nats a token and two right answers, and wins one."""
    losses = rng.gamma(1, 2.6, TOKENS)
    was_right = np.arange(10) < 5
    right = np.array([False, False, True, True, True, True, False, False, False, False])
    return {
        "token_s_b1": 0.04 * np.exp(0.1 * rng.standard_normal(baseline.shape)),
        "baseline_token_s_b1": baseline,
        "token_nll": losses + shift,
        "baseline_token_nll": losses,
        "sciq_correct": right,
        "baseline_sciq_correct": was_right,
    }


@pytest.fixture
def published(tmp_path):
    rng = np.random.default_rng(0)
    for run in RUNS:
        store = RecordStore(tmp_path / run)
        store.prepare()
        baseline = 0.04 * np.exp(0.1 * rng.standard_normal((5, 32)))
        for number in range(9):  # the first is the baseline, the last far off
            buffer = io.BytesIO()
            np.savez(buffer, **samples(rng, baseline, 1.0 if number == 8 else -0.001 * number))
            store.write(record(cell("rtn", "quantization", {"bits": 2 + number})), buffer.getvalue())
    return tmp_path


def test_each_member_is_there_once_and_rows_are_the_nearest_ones(published):
    found = collect(published)
    assert {run: found[run].shape for run in RUNS} == dict.fromkeys(RUNS, (1 + 9, 5, 32))
    assert found["nll"].mean(axis=1) == pytest.approx(-0.001 * np.arange(1, 1 + ROWS), abs=1e-5)
    assert found["flips"].tolist() == [[2, 1, 10]] * ROWS


def test_the_file_holds_what_was_collected(published, monkeypatch):
    out = published / "noise.npz"
    monkeypatch.setattr(sys, "argv", ["noise", str(published), "--out", str(out)])
    assert main() == 0
    with np.load(out) as arrays:
        assert {name: arrays[name].shape for name in arrays} == {
            name: array.shape for name, array in collect(published).items()
        }


def test_a_missing_run_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["noise", str(tmp_path), "--out", str(tmp_path / "noise.npz")])
    assert main() == 2
    assert "smoke" in capsys.readouterr().err
