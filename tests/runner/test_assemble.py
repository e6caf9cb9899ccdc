"""From an attempt's samples to its record: nothing is lost, nothing is invented, nothing private is kept."""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.audit.recompute import disagreements
from squeeze.core import environment
from squeeze.probes.samples import Samples
from squeeze.records.record import (
    CONTENDED,
    DECODES_OTHERWISE,
    GRID_FLATTERED,
    IMPLAUSIBLE,
    NOT_CAUSAL,
    NOT_REALISED,
    UNSTEADY,
    WARMING,
    Estimate,
    Record,
    Status,
)
from squeeze.records.roofline import Machine
from squeeze.records.store import LARGEST_RECORD, RecordStore, encode
from squeeze.request.cell import Cell
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.runner.jobs.outcome import Failure
from squeeze.runner.results import Artifact, Measured, Process, Scoring
from tests.faults.sweeps import PROTOCOL, cell

ROUNDS, TOKENS = 5, 8192
PLACE = environment.describe()
STEPS = ("load", "prefill", "decode")
HOW = "bfloat16 against itself, read 256 tokens at a time"
TASKS = ("arc_easy", "lambada", "piqa", "sciq")


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """A complete attempt of the size of a real one: five rounds, four tasks."""
    store = RecordStore(tmp_path / "results")
    store.prepare()
    subject = cell("good", protocol={**PROTOCOL, "rounds": ROUNDS, "tasks": list(TASKS)})
    made = Attempt.begin(subject, store, PLACE)
    made.candidate = member(subject, tmp_path / "candidate", pace=0.010, shift=0.1)
    baseline = member(subject.baseline("bfloat16"), tmp_path / "baseline", pace=0.020, shift=0.0)
    made.quality_baseline = made.speed_baseline = baseline
    made.baseline_seconds = 7.0
    made.machine = Machine(threads=2, read_bandwidth=1e10, matmul={"bfloat16": 1e12})
    return made


def member(subject: Cell, folder: Path, pace: float, shift: float) -> Measured:
    scored = Process({"stages": {"start": 1.5, "score": 18.0}}, seconds=20.0)
    return Measured(
        subject,
        folder / "log",
        artifact(folder / "artifact"),
        Scoring(quality(folder / "quality", shift), scored),
        tuple(Process(timing(pace * (1 + 0.01 * number), first=number == 0), 5.0) for number in range(ROUNDS)),
    )


def artifact(folder: Path, **changes: Any) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    info = {"content_hash": "c" * 64, "dtype": "bfloat16", "claims": {"bits": 4}, "grid_flattered": False}
    costs = {"seconds": 5.0, "seconds_marginal": 3.0, "peak_bytes": 2**30}
    return Artifact(folder, "k" * 64, {**info, **costs, **changes}, seconds=3.0)


def quality(folder: Path, shift: float, **changes: Any) -> Path:
    samples = Samples(folder)
    nll = np.random.default_rng(0).normal(2.5, 1.5, TOKENS) + np.random.default_rng(1).normal(shift, 0.1, TOKENS)
    samples.put_array("token_nll", nll)
    for task in TASKS:
        samples.put_array(f"{task}_correct", np.arange(100) % 3 > 0)
        samples.put_all({f"acc_{task}": 0.66, f"acc_{task}_stderr": 0.0471404520791})
    together = np.random.default_rng(2).integers(1000, size=(8, 32), dtype=np.int32)
    samples.put_array("generated", together + np.int32(shift > 0) * (np.arange(32, dtype=np.int32) > 20))
    if not shift:  # a baseline
        samples.put_array("generated_alone", together[:2])
        samples.put_array("floor_kl", np.random.default_rng(3).gamma(0.3, 0.001, 5115).astype(np.float32))
        samples.put_array("floor_top1", np.arange(5115) % 100 > 0)
        samples.put("floor_rounding", HOW)
    if shift:
        samples.put_array("kl", np.random.default_rng(4).gamma(0.3, 0.04, TOKENS).astype(np.float32))
        samples.put_array("top1", np.arange(TOKENS) % 10 > 0)
        samples.put_array("confidence", np.random.default_rng(5).random(TOKENS).astype(np.float16))
        samples.put_all({"kl_divergence": 0.0123456789, "top1_agreement": 0.912345678})
    samples.put("perplexity", float(np.exp(nll.mean())))
    samples.put_all({"bits_per_byte": 0.812345678, "batch_dependent": False, "scored_as": "itself"})
    samples.values |= changes
    samples.write()
    return folder


def timing(pace: float, *, first: bool) -> dict[str, Any]:
    noise = 1 + 0.01 * np.random.default_rng(0).random(32)
    values: dict[str, Any] = {"token_s": {"1": (pace * noise).tolist()}, "ttft_s": {"1": (pace * noise[:5]).tolist()}}
    for step in STEPS:
        for part in ("peak", "rss_anon", "rss_file"):
            values[f"{step}_{part}_bytes"] = 412_345_678
    if first:
        values |= {"bytes": 86_123_456, "bytes_on_disk": 89_123_456, "effective_bits": 5.123456, "mismatches": []}
        values |= {"block_effective_bits": 4.256789, "compression_ratio": 6.234567, "bytes_per_token": 86_123_456}
        values |= {"bytes_real": True, "memory_real": True, "compute_real": True, "arithmetic": "bfloat16"}
        values["prefill_operations"] = {"1": 3.2e10}
        values |= {"sparsity": 0.012345678, "levels": 16, "compressed_share": 1.0}
    values["turns"] = {"token_s/1": [[0.0, 0.0, 0.0]] * 8, "ttft_s/1": [[0.0, 0.0, 0.0]] * 5}
    return {**values, "unsteady": False, "interleaved": True, "stages": {"imports": 0.5, "load": 1.0, "timed": 3.0}}


def assembled(attempt: Attempt) -> Record:
    return assemble(attempt)[0]


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
@pytest.mark.parametrize(("gap", "dependent", "flagged"), [(0.4, False, False), (0.6, False, True), (0.6, True, False)])
def test_tokens_that_the_scored_model_does_not_choose_are_flagged(
    attempt: Attempt, tmp_path: Path, gap: float, dependent: bool, flagged: bool
) -> None:
    folder = quality(tmp_path / "scored", 0.1, batch_dependent=dependent)
    attempt.candidate = replace(attempt.built, scoring=Scoring(folder))
    for values in attempt.built.rounds:
        values["gaps"] = {"token_s/1": [[gap] * 33], "ttft_s/1": [[0.0]]}
    record, raw = assemble(attempt)
    assert (DECODES_OTHERWISE in record.flags) is flagged
    assert record.realised["decode_gap"] == gap
    assert record.realised["decode_gap_allowed"] == (1.0 if dependent else 0.5)
    assert np.load(io.BytesIO(raw))["gaps_token_s_b1"].shape == (ROUNDS, 1, 33)
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
