"""The whole way with nothing faked: build, score, time and record a tiny model, by the official runner."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.artifacts.keys import BUILD_INFO, artifact_key
from squeeze.audit.rerun import rerun
from squeeze.core.cache import sealed
from squeeze.probes import samples
from squeeze.records.record import Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.jobs.executor import worker_variables
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.launcher import WORKER, Launcher, Task
from squeeze.runner.jobs.limits import Limits
from squeeze.runner.run import run
from squeeze.sources.corpora import corpus_hash
from tests.faults.sweeps import MODEL, PROTOCOL, RUNTIME

pytestmark = pytest.mark.timed

CORPUS = "wikipedia_eval"
LIMIT = {"seconds": 120, "bytes": 4 * 2**30}
SMALL: dict[str, Any] = {
    **PROTOCOL,
    "latency": {**PROTOCOL["latency"], "prompt_tokens": 16},
    "perplexity": {"corpus": CORPUS, "tokens": 2048, "window": 256, "stride": 256},
    "tasks": [],
    "limits": {"build": LIMIT, "quality": LIMIT, "latency": LIMIT},
}
RTN = {"_target_": "rtn.RoundToNearest", "bits": 4, "group_size": 32, "symmetric": True}


def cell(*steps: dict[str, Any]) -> Cell:
    technique = {"name": "rtn" if steps else "none", "family": "quantization", "steps": list(steps)}
    return Cell(model=MODEL, technique=technique, runtime=RUNTIME, protocol=SMALL)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which a text lies ready, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("cache")
    words = np.random.default_rng(0).choice(["one", "two", "three", "a", "longer", "word", "\n"], 20_000)

    def write(corpus: Path) -> None:
        (corpus / "text.txt").write_text(" ".join(words))

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQUEEZE_CACHE", str(folder))
        sealed(f"corpora/{CORPUS}-{corpus_hash(CORPUS)[:16]}", write)
        yield folder


@pytest.fixture(scope="module")
def results(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    assert run([cell(), cell(RTN)], folder) == 0
    return folder


@pytest.fixture(scope="module")
def records(results: Path) -> dict[str, Record]:
    found = RecordStore(results).records(lambda path, why: pytest.fail(f"{path}: {why}"))
    return {record.cell["technique"]["name"]: record for record in found}


def test_both_cells_have_their_record(records: dict[str, Record]) -> None:
    """A random model predicts worse than guessing, which is what the records must say."""
    assert {name: record.status for name, record in records.items()} == dict.fromkeys(("none", "rtn"), Status.DIVERGED)
    assert all("guessing gives 260" in record.reason for record in records.values())


def test_the_quantized_model_is_smaller_and_another(records: dict[str, Record]) -> None:
    figures = records["rtn"].estimates
    assert figures["bytes"].value < records["none"].estimates["bytes"].value
    assert 4 < figures["block_effective_bits"].value < 5
    assert figures["kl_divergence"].value > 0
    assert figures["top1_agreement"].value < 1
    assert records["none"].estimates["kl_divergence"].value == 0
    assert records["rtn"].realised["bytes_real"] is True
    assert "claimed != realised" not in records["rtn"].flags


def test_speed_and_memory_were_measured(records: dict[str, Record]) -> None:
    for record in records.values():
        figures = record.estimates
        assert figures["decode_tokens_per_s"].value > 1
        assert figures["decode_speedup"].n == SMALL["rounds"]
        assert figures["decode_peak_bytes"].value > 100 * 2**20
        assert figures["itl_p50_ms"].n == SMALL["rounds"]
        assert figures["context_fixed_bytes"].value > 100 * 2**20
        assert figures["context_bytes_per_token"].value >= figures["cache_bytes_per_token"].value
        assert figures["positions"].value == 2048
        assert 0 < figures["mbu"].value < 1
        assert record.realised["speed_baseline"] in ("float32", "bfloat16")


def test_members_of_a_round_took_turns(results: Path, records: dict[str, Record]) -> None:
    """By the real clock of each turn: there and back again, or back and there again."""
    record = records["rtn"]
    assert record.realised["timing"] == "interleaved"
    with np.load(RecordStore(results).samples(record)) as stored:
        own, baseline = stored["turns_token_s_b1"][..., 0], stored["baseline_turns_token_s_b1"][..., 0]
    assert own.shape == baseline.shape == (SMALL["rounds"], 4)  # 8 tokens in turns of 2
    for mine, its in zip(own, baseline, strict=True):
        who = "".join(name for _, name in sorted([*((at, "c") for at in mine), *((at, "b") for at in its)]))
        assert who in ("bccbbccb", "cbbccbbc")


def test_energy_is_counted_or_said_not_to_be(records: dict[str, Record]) -> None:
    for record in records.values():
        figure = record.estimates.get("energy_j_per_token")
        assert record.realised["energy"] == ("not available" if figure is None else "counted")
        assert figure is None or figure.value > 0


def test_little_time_passes_outside_model_work(records: dict[str, Record]) -> None:
    """2 s a measuring process is the aim; 8 s the bound, on whatever machine runs this."""
    assert all(record.estimates["process_overhead_seconds"].value < 8 for record in records.values())


def test_a_repeated_run_has_nothing_to_do(results: Path) -> None:
    start = time.monotonic()
    assert run([cell(), cell(RTN)], results) == 0
    assert time.monotonic() - start < 10
    assert len(list((results / "records").glob("*.json"))) == 2


@pytest.mark.promise(13)
def test_three_processes_give_the_same_numbers(
    results: Path, cache: Path, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """Two forked ones and a fresh interpreter: the same artifact, the same tokens, the same losses, bit for bit."""
    official = cache / "artifacts" / artifact_key(cell(RTN)) / "artifact"
    hashes, losses = {json.loads((official / BUILD_INFO).read_text())["content_hash"]}, []
    with (
        Launcher(tmp_path / "forks.log", worker_variables(RUNTIME), (*WORKER, "--fork")) as forks,
        Launcher(tmp_path / "spawns.log", worker_variables(RUNTIME), WORKER) as spawns,
    ):
        for number, launcher in enumerate((forks, forks, spawns)):
            artifact, out = tmp_path / f"artifact{number}", tmp_path / f"out{number}"
            for stage in ("build", "quality"):
                job = Job(cell(RTN), artifact, stage, out)
                (tmp_path / "job.json").write_text(json.dumps(job.to_json()))
                [end] = launcher.run([Task(tmp_path / "job.json", tmp_path / "log", Limits(**LIMIT))])
                assert end.code == 0, (tmp_path / "log").read_text()
            hashes.add(json.loads((artifact / BUILD_INFO).read_text())["content_hash"])
            losses.append(samples.read(out).arrays["token_nll"])
    assert len(hashes) == 1
    assert np.array_equal(losses[0], losses[1])
    assert np.array_equal(losses[0], losses[2])
    figure(f"built and scored in 3 processes of their own: {losses[0].size:,} token losses and the artifact identical")


def test_a_rerun_computes_everything_anew_and_finds_what_was_changed_in_a_record(
    results: Path, records: dict[str, Record], cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One figure and a single bit of the samples, hashed anew: only these drift, all else is the same to the bit."""
    record, store = records["rtn"], RecordStore(tmp_path)
    store.prepare()
    with np.load(RecordStore(results).samples(record)) as stored:
        arrays = dict(stored)
    arrays["token_nll"][7] = np.nextafter(arrays["token_nll"][7], np.float32(0))
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    wrong = replace(record.estimates["bits_per_byte"], value=1.0)
    store.write(replace(record, estimates={**record.estimates, "bits_per_byte": wrong}, samples={}), buffer.getvalue())
    computed = _computed(cache)
    assert rerun(tmp_path, record.key[:8]) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert {line[0] for line in lines[:-1] if "drifted" in line} == {"bits_per_byte", "samples.token_nll"}
    exact = {line[0] for line in lines if line[-1] == "bit-exact"}
    assert exact >= {"artifact_hash", "perplexity", "kl_divergence", "bytes", "samples.kl"}
    [made] = RecordStore(tmp_path / "rerun").records()
    assert min(made.stages["build"], made.stages["quality"]) > 0, "it was taken from the cache"
    assert _computed(cache) == computed
    assert os.environ["SQUEEZE_CACHE"] == str(cache)


def _computed(cache: Path) -> dict[Path, int]:
    """Return when each file that a run computes was written; which baseline is the faster one is shared by reruns."""
    return {
        path: path.stat().st_mtime_ns
        for kind in ("artifacts", "quality")
        for path in (cache / kind).rglob("*")
        if path.is_file()
    }
