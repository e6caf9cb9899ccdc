"""A row that drafts: whole generations count, its guesses are in the record, and its samples bear both out."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from squeeze.audit.recompute import disagreements
from squeeze.records.record import WARMING, Status
from squeeze.records.store import LARGEST_RECORD, encode
from squeeze.runner import timing
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.sources.prompts import KINDS
from tests.runner.attempts import ROUNDS, artifact, assembled

CALLS = ([1] + [0] * 4 + [1] * 3) * 4  # 32 tokens by a call of five and three of one, each call of 20 ms


@pytest.fixture
def drafted(attempt: Attempt) -> Attempt:
    """The attempt as one that drafts would leave it: 32 tokens in 16 calls, the baseline's in 32 as long."""
    assert attempt.speed_baseline is not None
    for number, values in enumerate(attempt.built.rounds):
        drift = 1 + 0.01 * number
        values["token_s"]["1"] = [drift * (0.004 if at % 8 < 5 else 0.020) for at in range(32)]
        values["calls"] = {"1": CALLS}
        values["steps"] = {"1": [[4, 4], [4, 0], [4, 0], [4, 0]] * 4}
        figures = {"plain_s": 0.02 * drift, "drafted_s": 0.01 * drift, "steps": 16, "drafted": 64, "accepted": 32}
        values["drafting"] = dict.fromkeys(KINDS, figures)
    for number, values in enumerate(attempt.speed_baseline.rounds):
        values["token_s"]["1"] = [0.020 * (1 + 0.01 * number)] * 32
    return attempt


def test_whole_generations_are_compared_and_the_samples_bear_it_out(drafted: Attempt) -> None:
    record, raw = assemble(drafted)
    assert record.status is Status.OK, record.reason
    found, arrays = record.estimates, dict(np.load(io.BytesIO(raw)))
    assert found["decode_speedup"].value == pytest.approx(2.0)
    assert found["decode_tokens_per_s"].value == pytest.approx(100 / 1.02, rel=1e-5)
    assert (found["accepted_tokens"].value, found["acceptance"].value) == (1.0, 0.25)
    assert {kind: found[f"drafting_speedup_{kind}"].value for kind in KINDS} == dict.fromkeys(KINDS, 2.0)
    assert {kind: found[f"accepted_tokens_{kind}"].value for kind in KINDS} == dict.fromkeys(KINDS, 2.0)
    assert (arrays["calls_b1"].shape, arrays["calls_b1"].dtype) == ((ROUNDS, 32), bool)
    assert arrays["drafting_code"].shape == (ROUNDS, 5)
    assert not {"baseline_calls_b1", "baseline_drafting_code"} & arrays.keys()
    assert list(disagreements(record, arrays)) == []
    assert len(encode(record)) < LARGEST_RECORD


def test_a_figure_that_its_samples_do_not_give_is_named(drafted: Attempt) -> None:
    record, raw = assemble(drafted)
    arrays = dict(np.load(io.BytesIO(raw)))
    better = replace(record.estimates["drafting_speedup_code"], value=3.0)
    changed = replace(record, estimates={**record.estimates, "drafting_speedup_code": better})
    [said] = disagreements(changed, arrays)
    assert said.startswith("drafting_speedup_code is 3")
    del arrays["calls_b1"]  # as if its tokens had come one by one: the median is that of a call's fifth
    assert any(said.startswith("decode_tokens_per_s is ") for said in disagreements(record, arrays))


def test_guesses_that_become_right_more_often_are_no_warming_up(drafted: Attempt) -> None:
    ramp = np.linspace(1.4, 1.0, 32)
    for values in drafted.built.rounds:
        values["token_s"]["1"] = (0.02 * ramp).tolist()
    assert WARMING not in assembled(drafted).flags
    for values in drafted.built.rounds:
        del values["calls"]
    assert WARMING in assembled(drafted).flags


def test_a_process_has_room_for_its_draft(attempt: Attempt, tmp_path: Path) -> None:
    alone = artifact(tmp_path / "alone", parameters=10**9)
    both = artifact(tmp_path / "both", parameters=10**9, draft={"parameters": 5 * 10**8, "dtype": "float32"})
    one, other = (timing.need(replace(attempt.built, artifact=each)) for each in (alone, both))
    assert other - one == 2 * 5 * 10**8 * 4
