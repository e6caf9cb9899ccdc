"""A classifier's record: ranked by its answers, flagged where what was timed is not what is scored."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.audit.recompute import disagreements
from squeeze.probes.samples import Samples
from squeeze.records.items import unpacked
from squeeze.records.record import ENCODES_OTHERWISE, WARMING, Status
from squeeze.records.store import encode
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.runner.results import Scoring
from tests.classified import ITEMS, MODEL, answers, baseline_answers
from tests.runner.attempts import ROUNDS, assembled


def quality(folder: Path, right: np.ndarray, arrays: Mapping[str, np.ndarray], **changes: Any) -> Scoring:
    samples = Samples(folder)
    samples.put_array("sst2_correct", right)
    samples.put_array("sst2_loglik", np.log(np.full((ITEMS, 2), 0.5)))
    samples.put_all({"acc_sst2": float(right.mean()), "acc_sst2_stderr": 0.011, "batch_dependent": False})
    samples.arrays |= arrays
    samples.values |= changes
    samples.write()
    return Scoring(folder)


def candidate(folder: Path, **changes: Any) -> Scoring:
    right = answers(60, 10)
    kl = np.random.default_rng(0).gamma(0.3, 0.06, ITEMS).astype(np.float32)
    apart = {"item_kl": kl, "item_top1": right == baseline_answers()}
    return quality(folder, right, apart, kl_divergence=0.02, top1_agreement=0.9, **changes)


@pytest.fixture
def classified(attempt: Attempt, tmp_path: Path) -> Attempt:
    """The attempt, as one at a classifier."""
    assert attempt.quality_baseline is not None
    attempt.cell = replace(attempt.cell, model={**attempt.cell.model, **MODEL})
    for number, name in enumerate(("candidate", "quality_baseline")):
        member = getattr(attempt, name)
        for values in member.rounds:
            values["encode_s"] = {"1": values.pop("ttft_s")["1"] * 2}
            del values["token_s"]
            values["turns"] = {"encode_s/1": [[0.0, 0.0, 0.0]] * 10}
            values["encode_apart"] = {"1": [1e-8, 1.0]}
        scoring = candidate(tmp_path / "own") if number == 0 else quality(tmp_path / "other", baseline_answers(), {})
        setattr(attempt, name, replace(member, scoring=scoring))
    attempt.speed_baseline = attempt.quality_baseline
    attempt.row = attempt.row._replace(key=attempt.cell.key)
    return attempt


def test_its_answers_and_times_are_in_the_record(classified: Attempt) -> None:
    record, raw = assemble(classified)
    assert (record.status, record.reason, record.block_nll) == (Status.OK, "", ())
    assert np.array_equal(unpacked(record.item_correct), answers(60, 10))
    figures = record.estimates
    assert figures["encode_speedup"].value == pytest.approx(2, rel=0.05)
    assert figures["encode_speedup"].n == ROUNDS
    assert figures["acc_pooled_delta"].value == pytest.approx(-50 / ITEMS)
    assert figures["retained_accuracy"].n == figures["kl_divergence"].n == ITEMS
    assert "mfu" in figures
    assert not {"perplexity", "ttft_ms", "decode_speedup"} & set(figures)
    assert record.realised["encode_gap"] == pytest.approx(1e-4)
    arrays = dict(np.load(io.BytesIO(raw)))
    assert {"sst2_correct", "baseline_sst2_correct", "sst2_loglik", "item_kl", "encode_s_b1"} <= arrays.keys()
    assert list(disagreements(record, arrays)) == []
    encode(record)


@pytest.mark.parametrize(
    "name", ["acc_pooled", "kl_divergence", "kl_p90", "top1_agreement", "encode_ms", "items_per_s"]
)
def test_a_changed_figure_is_found(classified: Attempt, name: str) -> None:
    record, raw = assemble(classified)
    value = record.estimates[name].value * 1.001
    wrong = {**record.estimates, name: replace(record.estimates[name], value=value)}
    [found] = disagreements(replace(record, estimates=wrong), dict(np.load(io.BytesIO(raw))))
    assert found.startswith(f"{name} is ")


def test_a_changed_answer_is_found(classified: Attempt) -> None:
    record, raw = assemble(classified)
    wrong = replace(record, item_correct=f"{record.item_correct[:-2]}00")
    assert "item_correct is not what its samples give" in list(disagreements(wrong, dict(np.load(io.BytesIO(raw)))))


@pytest.mark.parametrize(
    ("apart", "dependent", "flagged"), [(0.01, False, True), (0.01, True, False), (0.2, True, True)]
)
def test_what_is_timed_otherwise_than_scored_is_flagged(
    classified: Attempt, tmp_path: Path, apart: float, dependent: bool, flagged: bool
) -> None:
    scoring = candidate(tmp_path / "again", batch_dependent=dependent)
    classified.candidate = replace(classified.built, scoring=scoring)
    for values in classified.built.rounds:
        values["encode_apart"] = {"1": [apart, 1.0]}
    assert (ENCODES_OTHERWISE in assembled(classified).flags) is flagged


def test_a_classifier_that_warms_up_is_flagged_too(classified: Attempt) -> None:
    for values in classified.built.rounds:
        values["encode_s"]["1"] = (0.05 * np.linspace(1, 1.4, 10)).tolist()
    assert WARMING in assembled(classified).flags


def test_a_diverged_one_has_no_answers(classified: Attempt, tmp_path: Path) -> None:
    scoring = candidate(tmp_path / "diverged", diverged=True, reason="872 of 872 answers are no numbers")
    classified.candidate = replace(classified.built, scoring=scoring)
    record = assembled(classified)
    assert (record.status, record.item_correct) == (Status.DIVERGED, "")
