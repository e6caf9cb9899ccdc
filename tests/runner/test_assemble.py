"""From an attempt's samples to its record: nothing is lost, nothing is invented, nothing private is kept."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from squeeze.audit.recompute import disagreements
from squeeze.probes.samples import Samples
from squeeze.records.record import (
    Estimate,
    Record,
    Status,
)
from squeeze.records.store import LARGEST_RECORD, RecordStore, encode
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.runner.jobs.outcome import Failure
from squeeze.runner.results import Scoring
from tests.faults.sweeps import cell
from tests.runner.attempts import HOW, PLACE, ROUNDS, TOKENS, artifact, assembled, quality


def test_a_complete_attempt_is_ok(attempt: Attempt) -> None:
    record = assembled(attempt)
    assert (record.status, record.reason, record.flags) == (Status.OK, "", ())
    assert record.key == attempt.cell.key
    assert record.artifact_hash == "c" * 64
    assert record.claimed == {"bits": 4}
    assert record.realised["speed_baseline"] == "bfloat16"
    assert record.realised["bytes_real"] is True
    assert record.estimates["decode_speedup"].value == pytest.approx(2)
    assert record.estimates["decode_speedup"].low is not None
    assert record.estimates["bytes"].value == 86_123_456
    assert record.estimates["load_seconds"] == Estimate(1.0, 1.0, 1.0, n=ROUNDS)  # lost here once, though timed
    assert record.estimates["perplexity_delta"].value > 0
    assert record.estimates["mbu"].value == pytest.approx(0.83, abs=0.05)
    assert len(record.block_nll) == 16


def test_every_leaderboard_column_is_filled(attempt: Attempt) -> None:
    figures = assembled(attempt).estimates
    columns = """effective_bits bytes compression_ratio load_peak_bytes prefill_peak_bytes decode_peak_bytes ttft_ms
        decode_tokens_per_s decode_speedup ttft_speedup perplexity perplexity_delta bits_per_byte kl_divergence
        top1_agreement acc_sciq acc_sciq_stderr build_seconds build_peak_bytes mbu mfu"""
    assert set(columns.split()) <= set(figures)


def test_the_noise_floor_is_the_baselines(attempt: Attempt) -> None:
    record = assembled(attempt)
    floor = np.random.default_rng(3).gamma(0.3, 0.001, 5115).mean()
    assert record.estimates["kl_floor"].value == pytest.approx(floor, rel=1e-5)
    assert record.estimates["top1_floor"].value == pytest.approx(0.99, abs=1e-3)
    assert record.realised["noise_floor"] == HOW
    assert record.estimates["divergent_share"].value == pytest.approx(11 / 32, rel=1e-5)
    assert record.estimates["divergent_floor"].value == 0


def test_nearness_follows_from_what_is_kept(attempt: Attempt) -> None:
    """Of the row as of its baseline: each estimate computed from samples is the record's own."""
    for member in (attempt.candidate, attempt.quality_baseline):
        attempt.candidate = member
        record, raw = assemble(attempt)
        arrays = dict(np.load(io.BytesIO(raw)))
        assert list(disagreements(record, arrays)) == []
        assert {"kl_floor", "divergent_share", "acc_pooled_delta"} <= record.estimates.keys()
        assert "floor_kl" not in arrays
        for name in ("kl_floor", "kl_p99", "kl_confident", "divergent_share", "acc_pooled_delta"):
            if name in record.estimates:
                value = record.estimates[name].value + 0.01
                wrong = {**record.estimates, name: replace(record.estimates[name], value=value)}
                assert len(list(disagreements(replace(record, estimates=wrong), arrays))) == 1, name


def test_a_real_record_is_small(attempt: Attempt) -> None:
    assert len(encode(assembled(attempt))) < LARGEST_RECORD


def test_raw_samples_are_kept(attempt: Attempt) -> None:
    raw = np.load(io.BytesIO(assemble(attempt)[1]))
    assert raw["token_s_b1"].shape == raw["baseline_token_s_b1"].shape == (ROUNDS, 32)
    assert raw["ttft_s_b1"].shape == (ROUNDS, 5)
    assert raw["turns_token_s_b1"].shape == raw["baseline_turns_token_s_b1"].shape == (ROUNDS, 8, 3)
    assert raw["interleaved"].tolist() == raw["baseline_interleaved"].tolist() == [True] * ROUNDS
    assert raw["token_nll"].shape == raw["baseline_token_nll"].shape == (TOKENS,)
    assert raw["baseline_sciq_correct"].dtype == bool
    assert raw["token_s_b1"].dtype == np.float64
    assert "baseline_kl" not in raw


def test_stages_add_up_to_what_the_cell_took(attempt: Attempt) -> None:
    assert assembled(attempt).stages == {
        "build": 3.0,
        "quality": 18.0,
        "latency": 20.0,
        "overhead": 7.0,
        "baseline": 7.0,
    }
    assert assembled(attempt).estimates["process_overhead_seconds"].value == 1.0


def test_an_encoder_has_speed_and_size_but_no_losses(attempt: Attempt, tmp_path: Path) -> None:
    assert attempt.quality_baseline is not None
    for name in ("candidate", "quality_baseline"):
        Samples(tmp_path / name).write()
        scored = replace(getattr(attempt, name), scoring=Scoring(tmp_path / name))
        for values in scored.rounds:
            values.pop("token_s", None)
        setattr(attempt, name, scored)
    record = assembled(attempt)
    assert (record.status, record.block_nll) == (Status.OK, ())
    assert "ttft_speedup" in record.estimates
    assert not {"perplexity", "decode_speedup", "mbu"} & set(record.estimates)


def test_the_baseline_against_itself_shows_no_change(attempt: Attempt) -> None:
    assert attempt.quality_baseline is not None
    attempt.candidate = replace(attempt.built, scoring=Scoring(attempt.quality_baseline.quality))
    figures = assembled(attempt).estimates
    assert figures["kl_divergence"].value == 0
    assert figures["top1_agreement"].value == 1
    assert (figures["perplexity_delta"].value, figures["perplexity_delta"].p_value) == (0, 1)


@pytest.mark.parametrize("perplexity", [math.nan, math.inf, 5e4])
def test_divergence(attempt: Attempt, tmp_path: Path, perplexity: float) -> None:
    why = "guessing gives 49,152"
    folder = quality(tmp_path / "diverged", 0.1, perplexity=perplexity, diverged=True, reason=why)
    attempt.candidate = replace(attempt.built, scoring=Scoring(folder))
    record = assembled(attempt)
    assert (record.status, record.stage) == (Status.DIVERGED, "quality")
    assert record.reason == why
    assert record.block_nll == ()
    assert "decode_speedup" in record.estimates
    encode(record)


def test_processes_that_began_otherwise_than_the_baselines_make_an_invalid_record(attempt: Attempt) -> None:
    assert attempt.speed_baseline is not None
    for values in (*attempt.built.rounds, *attempt.speed_baseline.rounds):
        values["state"] = {"threads to compute with": "2", "oneDNN": "True"}
    assert assembled(attempt).status is Status.OK
    attempt.built.rounds[2]["state"] = {"threads to compute with": "4", "oneDNN": "True"}
    record = assembled(attempt)
    assert (record.status, record.stage) == (Status.INVALID, "latency")
    assert record.reason == "its processes began otherwise than the baseline's: threads to compute with"


@pytest.mark.parametrize("spoil", ["missing", "short", "torn", "nan"])
def test_samples_that_do_not_fit_make_an_invalid_record(attempt: Attempt, spoil: str) -> None:
    timings, folder = attempt.built.rounds, attempt.built.quality
    if spoil == "missing":
        del timings[2]["token_s"]
    elif spoil == "short":
        timings[2]["token_s"]["1"].pop()
    elif spoil == "nan":
        timings[2]["token_s"]["1"] = [math.nan] * 32
    else:
        (folder / "samples.npz").write_bytes((folder / "samples.npz").read_bytes()[:1000])
    record, raw = assemble(attempt)
    assert (record.status, record.stage) == (Status.INVALID, "assemble")
    assert record.reason.startswith("samples do not fit together")
    assert (record.estimates, raw) == ({}, b"")


def test_a_failure_is_told_with_what_was_spent(attempt: Attempt) -> None:
    record, raw = assemble(attempt, Failure(Status.TIMEOUT, "too long", "latency", "last words"))
    assert (record.status, record.reason, record.stage) == (Status.TIMEOUT, "too long", "latency")
    assert record.log_tail == "last words"
    assert record.stages["quality"] == 18.0
    assert (record.estimates, record.block_nll, raw) == ({}, (), b"")


def test_a_cell_that_was_never_built_has_a_record_too(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "results")
    record, _ = assemble(Attempt.begin(cell("good"), store, PLACE), Failure(Status.CRASHED, "no network", "fetch"))
    assert record.artifact_hash is None
    encode(record)


def test_nothing_private_is_kept(attempt: Attempt, tmp_path: Path) -> None:
    text = encode(assembled(attempt)).decode()
    assert str(tmp_path) not in text
    assert str(Path.home()) + "/" not in text


def test_what_the_build_says_of_its_steps_is_kept(attempt: Attempt, tmp_path: Path) -> None:
    steps = [{"step": "none", "perplexity_held_out": 20.5}, {"step": "a.A", "perplexity_held_out": None}]
    trained = {"step": "a.A", "tokens": 2048, "parameters": 900, "seconds": 3.5, "joules": 20.0, "curve": []}
    made = artifact(tmp_path / "trained", steps=steps, training=[trained])
    attempt.candidate = replace(attempt.built, artifact=made)
    record = assembled(attempt)
    assert record.realised["steps"] == steps
    assert record.realised["training_energy"] == "counted"
    assert record.estimates["training_tokens"].value == 2048
    assert record.estimates["training_joules"].value == 20
    assert Record.from_json(json.loads(encode(record))).realised == record.realised
    made = artifact(tmp_path / "trained", training=[{**trained, "joules": None}])
    attempt.candidate = replace(attempt.built, artifact=made)
    record = assembled(attempt)
    assert record.realised["training_energy"] == "not available"
    assert "training_joules" not in record.estimates
    assert "steps" not in record.realised


def test_a_row_that_was_not_trained_says_nothing_of_training(attempt: Attempt) -> None:
    record = assembled(attempt)
    assert not [name for name in (*record.estimates, *record.realised) if "train" in name or name == "steps"]
