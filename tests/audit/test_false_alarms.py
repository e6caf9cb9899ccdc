"""A/A sweeps are read from records as they were measured, and their false alarms counted by the board's own rule."""

import io
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from squeeze.audit import false_alarms
from squeeze.audit.false_alarms import blocks, called_different, describe, different_pairs, resampled, spread, verdicts
from squeeze.core.errors import SqueezeError
from squeeze.records.answers import EQUAL, FAILED
from squeeze.records.record import Status
from squeeze.records.statistics import ALPHA
from squeeze.records.store import RecordStore
from tests.fabricated import MODEL, cell, record
from tests.interleaving import TURN

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "aa"
REPLICATES, ROUNDS, TOKENS, PER_BLOCK = 12, 8, 32, 4
OWN = 0.02  # of a process, in each round anew


def moments(rng, rounds):
    """What all members of a block share, (rounds, tokens): plateaus of the machine, of a turn each."""
    return np.exp(0.3 * rng.standard_normal((rounds, TOKENS // TURN)).repeat(TURN, axis=1))


def times(rng, shared, pace=1.0):
    """Seconds a token (rounds, tokens): what the moment gives, and noise of the process and of the token."""
    noise = OWN * rng.standard_normal((len(shared), 1)) + 0.005 * rng.standard_normal(shared.shape)
    return 0.04 * pace * shared * np.exp(noise)


def keep(store, replicate, own, baseline, **changes):
    buffer, turns = io.BytesIO(), np.zeros((len(own), TOKENS // TURN, 3))
    arrays = {"token_s_b1": own, "turns_token_s_b1": turns, "interleaved": np.ones(len(own), dtype=bool)}
    theirs = {**arrays, "token_s_b1": baseline[: len(own)]}
    np.savez(buffer, **arrays, **{f"baseline_{name}": array for name, array in theirs.items()})
    fields = {"realised": {"speed_baseline": MODEL["dtype"]}, **changes}
    store.write(record(cell("none", "baseline", {}, replicate=replicate), **fields), buffer.getvalue())


@pytest.fixture
def store(tmp_path):
    store = RecordStore(tmp_path)
    store.prepare()
    return store


def measured(store, pace=1.0, rounds=ROUNDS, fewer=0, **changes):
    """A sweep whose last replicate takes ``pace`` times as long, and whose every block's first has ``fewer`` rounds."""
    rng = np.random.default_rng(0)
    for replicate in range(REPLICATES):
        first = replicate % PER_BLOCK == 0
        if first:
            shared = moments(rng, rounds)
            baseline = times(rng, shared)
        own = times(rng, shared, pace if replicate == REPLICATES - 1 else 1.0)
        keep(store, replicate, own[: rounds - fewer] if first else own, baseline, **changes)
    return store.results


def test_replicates_that_shared_a_baseline_make_a_block(store):
    found = blocks(measured(store))
    assert [[len(rounds) for rounds in block.processes] for block in found] == [[ROUNDS] * (1 + PER_BLOCK)] * 3
    assert [len(block.records) for block in found] == [PER_BLOCK] * 3


def test_equal_replicates_raise_few_false_alarms(store):
    sweep = blocks(measured(store))
    assert verdicts(sweep).to_numpy().tolist() == [[EQUAL] * REPLICATES]
    alarms = resampled(sweep, 50)
    assert stats.binomtest(int((alarms > 0).sum()), 50, ALPHA, alternative="greater").pvalue > 0.01
    assert different_pairs(sweep)[1] == 3 * 10


def test_the_deviation_is_that_of_a_round(store):
    """Of processes in turns, whose moments differ by 30 %, only what each has of its own is left."""
    speed_ups = [one.estimates["decode_speedup"] for block in blocks(measured(store)) for one in block.judged()]
    assert np.sqrt(np.mean([spread(one) ** 2 for one in speed_ups])) == pytest.approx(OWN * np.sqrt(2), rel=0.2)


def test_every_round_is_dealt_anew_among_its_own_processes(store):
    [block, *_] = blocks(measured(store, fewer=2))
    rng, orders = np.random.default_rng(0), set()
    for dealt in (block.dealt(rng) for _ in range(20)):
        assert [len(rounds) for rounds in dealt.processes] == [ROUNDS, ROUNDS - 2, ROUNDS, ROUNDS, ROUNDS]
        for number in range(ROUNDS):
            before, after = (
                [id(rounds[number]) for rounds in one.processes if number < len(rounds)] for one in (block, dealt)
            )
            assert sorted(before) == sorted(after)
            orders.add(tuple(map(before.index, after)))
    assert len(orders) > 50
    assert called_different([block]).tolist() == [0]


def test_a_planted_difference_is_counted(store):
    sweep = blocks(measured(store, pace=1.3))
    assert called_different(sweep, sweep).tolist() == [1, 1]
    assert different_pairs(sweep)[0] >= PER_BLOCK
    said = " ".join(describe(sweep, resampled(sweep, 2)))
    assert said.startswith("12 real replicates in 3 blocks: 12 with a verdict, 1 called different, 11 equal within 5%")


def test_a_row_whose_verdict_the_board_withholds_is_no_alarm(store, monkeypatch):
    """The rule is the board's: what its table says is counted, not what a test of our own would."""
    sweep = blocks(measured(store, pace=1.3))
    board = false_alarms.table

    def withholding(records):
        return board(records).assign(decode_speedup_verdict=FAILED)

    monkeypatch.setattr(false_alarms, "table", withholding)
    assert called_different(sweep).tolist() == [0]
    assert next(describe(sweep, np.zeros(1))).endswith("0 with a verdict, 0 called different, 0 equal within 5%")


def test_what_is_no_replicate_of_its_baseline_is_left_out(store):
    rng = np.random.default_rng(0)
    others = [
        {"realised": {"speed_baseline": "float32"}},
        {"isolation": "shared"},
        {"status": Status.CRASHED},
        {"cell": cell("rtn", "quantization", {"bits": 4}).to_json()},
    ]
    for number, changes in enumerate(others):
        shared = moments(rng, ROUNDS)
        keep(store, number, times(rng, shared), times(rng, shared), attempt=f"{number}" * 32, **changes)
    with pytest.raises(SqueezeError, match="no A/A sweep of 5 rounds"):
        blocks(store.results)


def test_four_rounds_support_no_verdict(store):
    with pytest.raises(SqueezeError, match="no A/A sweep of 5 rounds"):
        blocks(measured(store, rounds=4))


@pytest.mark.promise(5)
def test_the_published_sweep_raises_few_false_alarms(figure):
    sweep = blocks(PUBLISHED)
    alarms = resampled(sweep, 200)
    assert alarms.mean() <= ALPHA * verdicts(sweep).size
    figure("; ".join(describe(sweep, alarms)))
