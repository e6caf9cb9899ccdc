"""A complete attempt, made up, of the size of a real one: what records are assembled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from squeeze.core import environment
from squeeze.probes.samples import Samples
from squeeze.records.record import Record
from squeeze.records.roofline import Machine
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.assemble import assemble
from squeeze.runner.attempt import Attempt
from squeeze.runner.results import Artifact, Measured, Process, Scoring
from tests.faults.sweeps import PROTOCOL, cell

ROUNDS, TOKENS = 5, 8192
PLACE = environment.describe()
STEPS = ("load", "prefill", "decode")
HOW = "bfloat16 against itself, read 256 tokens at a time"
TASKS = ("arc_easy", "lambada", "piqa", "sciq")


def complete(folder: Path) -> Attempt:
    """Five rounds, four tasks."""
    store = RecordStore(folder / "results")
    store.prepare()
    subject = cell("good", protocol={**PROTOCOL, "rounds": ROUNDS, "tasks": list(TASKS)})
    made = Attempt.begin(subject, store, PLACE)
    made.candidate = member(subject, folder / "candidate", pace=0.010, shift=0.1)
    baseline = member(subject.baseline("bfloat16"), folder / "baseline", pace=0.020, shift=0.0)
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
