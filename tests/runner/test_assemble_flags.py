"""What is flagged, and what is not: each flag at the edge of what it allows."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from squeeze.audit.recompute import disagreements
from squeeze.records import decoded
from squeeze.records.record import (
    CONTENDED,
    DECODES_OTHERWISE,
    GRID_FLATTERED,
    IMPLAUSIBLE,
    NOT_CAUSAL,
    NOT_REALISED,
    UNSTEADY,
    WARMING,
    Status,
)
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.runner.results import Scoring
from tests.runner.attempts import ROUNDS, artifact, assembled, quality


@pytest.mark.parametrize("who", ["candidate", "baseline"])
@pytest.mark.parametrize(("unsteady", "flagged"), [(2, False), (3, True)])
def test_unsteady_is_a_flag_on_an_ok_row(attempt: Attempt, who: str, unsteady: int, flagged: bool) -> None:
    assert attempt.speed_baseline is not None
    for values in (attempt.built if who == "candidate" else attempt.speed_baseline).rounds[:unsteady]:
        values["unsteady"] = True
    record = assembled(attempt)
    assert record.status is Status.OK
    assert (UNSTEADY in record.flags) is flagged


@pytest.mark.parametrize(("stalled", "flagged"), [(0.04, False), (0.06, True), (math.nan, False)])
def test_other_work_beside_the_timing_is_flagged(attempt: Attempt, stalled: float, flagged: bool) -> None:
    for values in attempt.built.rounds:
        values["turns"] = {
            name: [[at, 0.0, stalled * at] for at in range(len(turns))] for name, turns in values["turns"].items()
        }
    assert (CONTENDED in assembled(attempt).flags) is flagged


def test_a_baseline_that_was_disturbed_flatters_and_is_flagged(attempt: Attempt) -> None:
    assert attempt.speed_baseline is not None
    for values in attempt.speed_baseline.rounds:
        values["turns"] = {
            name: [[at, 0.0, 0.5 * at] for at in range(len(turns))] for name, turns in values["turns"].items()
        }
    assert CONTENDED in assembled(attempt).flags


@pytest.mark.parametrize("who", ["candidate", "baseline"])
@pytest.mark.parametrize(("signs", "flagged"), [((-1, -1, -1), True), ((1, 1, 1), True), ((1, -1, 1), False)])
def test_a_trend_within_every_process_is_warming(
    attempt: Attempt, who: str, signs: tuple[int, ...], flagged: bool
) -> None:
    """All one way, it is no noise: the model had not settled. Too small, or in all processes but one, it is."""
    assert attempt.speed_baseline is not None
    rounds = (attempt.built if who == "candidate" else attempt.speed_baseline).rounds
    ramp = np.linspace(1, 1.4, 32)
    for values, sign in zip(rounds, itertools.cycle(signs), strict=False):
        values["token_s"]["1"] = (0.05 * ramp[::sign]).tolist()
    assert (WARMING in assembled(attempt).flags) is flagged
    for values in rounds:
        values["token_s"]["1"] = (0.05 * np.linspace(1, 1.08, 32)).tolist()
    assert WARMING not in assembled(attempt).flags


def test_other_flags(attempt: Attempt, tmp_path: Path) -> None:
    attempt.candidate = replace(attempt.built, artifact=artifact(tmp_path / "flattered", grid_flattered=True))
    attempt.candidate.rounds[0]["mismatches"] = ["claimed 4 bits, stored 16.00 a weight (100% left dense)"]
    record = assembled(attempt)
    assert record.flags == (GRID_FLATTERED, NOT_REALISED)
    assert record.realised["mismatches"] == ["claimed 4 bits, stored 16.00 a weight (100% left dense)"]


def test_a_row_that_predicts_the_text_too_well_is_flagged(attempt: Attempt, tmp_path: Path) -> None:
    better = Scoring(quality(tmp_path / "better", -1.0), attempt.built.scoring and attempt.built.scoring.process)
    attempt.candidate = replace(attempt.built, scoring=better)
    assert assembled(attempt).flags == (IMPLAUSIBLE,)


@pytest.mark.promise(19)
@pytest.mark.parametrize(
    ("gap", "dependent", "arithmetic", "flagged"),
    [
        (0.005, False, "bfloat16", False),
        (0.02, False, "bfloat16", True),
        (0.02, True, "bfloat16", False),
        (0.02, False, "int8", False),
        (0.4, True, "int8", True),
    ],
)
def test_tokens_that_the_scored_model_does_not_choose_are_flagged(
    attempt: Attempt, tmp_path: Path, gap: float, dependent: bool, arithmetic: str, flagged: bool
) -> None:
    folder = quality(tmp_path / "scored", 0.1, batch_dependent=dependent)
    attempt.candidate = replace(attempt.built, scoring=Scoring(folder))
    for values in attempt.built.rounds:
        values |= {"gaps": {"token_s/1": [[gap] * 64], "ttft_s/1": [[0.0]]}, "arithmetic": arithmetic}
    record, raw = assemble(attempt)
    assert (DECODES_OTHERWISE in record.flags) is flagged
    assert record.realised["decode_gap"] == gap
    allowed = decoded.allowed(dependent or arithmetic == "int8", worse=float(np.exp(0.1)))
    assert record.realised["decode_gap_allowed"] == pytest.approx(allowed, rel=0.05)
    assert np.load(io.BytesIO(raw))["gaps_token_s_b1"].shape == (ROUNDS, 1, 64)
    assert list(disagreements(record, dict(np.load(io.BytesIO(raw))))) == []


def test_a_layer_that_decodes_otherwise_and_a_model_that_looks_ahead_are_flagged(
    attempt: Attempt, tmp_path: Path
) -> None:
    folder = quality(tmp_path / "scored", 0.1, causal=False, causal_difference=3.0)
    attempt.candidate = replace(attempt.built, scoring=Scoring(folder))
    attempt.candidate.rounds[0]["mismatches"] = ["decode != score: lm_head gives few rows 0.5 from many, rounding 0.05"]
    record = assembled(attempt)
    assert record.flags == (NOT_REALISED, DECODES_OTHERWISE, NOT_CAUSAL)
    assert record.realised["causal_difference"] == 3.0
