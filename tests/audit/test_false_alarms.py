"""A/A sweeps are read from records as they were measured, and their false alarms counted."""

import io
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from squeeze.audit.false_alarms import blocks, called_different, describe, different_pairs, false_alarms
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Status
from squeeze.records.statistics import ALPHA
from squeeze.records.store import RecordStore
from tests.fabricated import MODEL, cell, record

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "aa"
REPLICATES, ROUNDS, TOKENS, PER_BLOCK = 12, 5, 32, 4


def times(rng, pace=1.0, rounds=ROUNDS):
    """Seconds a token (rounds, tokens): 2 % noise between processes, 0.5 % within; each round is slower."""
    noise = np.exp(0.02 * rng.standard_normal((rounds, 1)) + 0.005 * rng.standard_normal((rounds, TOKENS)))
    return 0.04 * pace * np.linspace(0.5, 1.5, rounds)[:, None] * noise


def keep(store, replicate, own, baseline, **changes):
    buffer = io.BytesIO()
    np.savez(buffer, token_s_b1=own, baseline_token_s_b1=baseline)
    fields = {"realised": {"speed_baseline": MODEL["dtype"]}, **changes}
    store.write(record(cell("none", "baseline", {}, replicate=replicate), **fields), buffer.getvalue())


@pytest.fixture
def store(tmp_path):
    store = RecordStore(tmp_path)
    store.prepare()
    return store


def measured(store, pace=1.0, rounds=ROUNDS):
    """A sweep whose last replicate takes ``pace`` times as long."""
    rng = np.random.default_rng(0)
    for replicate in range(REPLICATES):
        if replicate % PER_BLOCK == 0:
            baseline = times(rng, rounds=rounds)
        keep(store, replicate, times(rng, pace if replicate == REPLICATES - 1 else 1.0, rounds), baseline)
    return store.results


def test_replicates_that_shared_a_baseline_make_a_block(store):
    found = blocks(measured(store))
    assert [block.shape for block in found] == [(1 + PER_BLOCK, ROUNDS)] * 3
    assert np.concatenate(found).mean() == pytest.approx(0.04, rel=0.02)


def test_equal_replicates_raise_few_false_alarms(store):
    sweep = blocks(measured(store))
    assert called_different(sweep) == 0
    assert stats.binomtest(false_alarms(sweep, 400), 400, ALPHA, alternative="greater").pvalue > 0.01
    assert different_pairs(sweep)[1] == 3 * 10


def test_every_round_is_dealt_anew_among_its_own_processes(store, monkeypatch):
    sweep, orders = blocks(measured(store)), set()

    def spy(dealt):
        for block, before in zip(dealt, sweep, strict=True):
            assert (np.sort(block, axis=0) == np.sort(before, axis=0)).all()
            orders.update(tuple(map(list(own).index, new)) for own, new in zip(before.T, block.T, strict=True))
        return 0

    monkeypatch.setattr("squeeze.audit.false_alarms.called_different", spy)
    false_alarms(sweep, 1)
    assert len(orders) > len(sweep)


def test_a_planted_difference_is_counted(store):
    sweep = blocks(measured(store, pace=1.3))
    assert called_different(sweep) == 1
    assert different_pairs(sweep)[0] >= PER_BLOCK
    assert next(describe(sweep, 1)) == "12 real replicates in 3 blocks: 1 called different (Holm)"


def test_what_is_no_replicate_of_its_baseline_is_left_out(store):
    rng = np.random.default_rng(0)
    others = [
        {"realised": {"speed_baseline": "float32"}},
        {"isolation": "shared"},
        {"status": Status.CRASHED},
        {"cell": cell("rtn", "quantization", {"bits": 4}).to_json()},
    ]
    for number, changes in enumerate(others):
        keep(store, number, times(rng), times(rng), attempt=f"{number}" * 32, **changes)
    with pytest.raises(SqueezeError, match="no A/A sweep of 5 rounds"):
        blocks(store.results)


def test_four_rounds_support_no_verdict(store):
    with pytest.raises(SqueezeError, match="no A/A sweep of 5 rounds"):
        blocks(measured(store, rounds=4))


@pytest.mark.promise(5)
def test_the_published_sweep_raises_few_false_alarms(figure):
    sweep = blocks(PUBLISHED)
    assert false_alarms(sweep, 200) <= ALPHA * 200
    figure("; ".join(describe(sweep, 200)))
