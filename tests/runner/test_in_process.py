"""What is measured in one process becomes records that say so."""

from pathlib import Path

import numpy as np
import pytest

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.probes.samples import Samples
from squeeze.records.record import Status
from squeeze.records.store import RecordStore
from squeeze.runner.in_process import InProcess
from squeeze.runner.jobs.job import Job
from squeeze.runner.results import Artifact, Process
from tests.foreign import offer

REQUEST = ["model=tiny_llama", "technique=rtn", "bits=4", "group_size=32", "dtype=float32", "protocol=smoke"]


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InProcess:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    return InProcess.of(REQUEST, tmp_path / "results")


def measure(job: Job, seconds: float) -> None:
    """Samples as the benches of a stage leave them."""
    collected = Samples(job.out)
    collected.put("stages", {"start": 1.0, "load": 0.5, "timed": 2.0})
    if job.stage == "latency":
        collected.put_all({"ttft_s": {"1": [2 * seconds] * 5}, "token_s": {"1": [seconds] * 8}, "unsteady": False})
        none = [0.0, 0.0, 0.0]
        collected.put_all({"interleaved": False, "turns": {"ttft_s/1": [none] * 5, "token_s/1": [none] * 2}})
        collected.put_all({"bytes": 1000, "effective_bits": 4.5, "load_peak_bytes": 5000})
    else:
        collected.put_all({"perplexity": 100.0, "bits_per_byte": 1.0, "kl_divergence": 0.1, "top1_agreement": 0.9})
        collected.put_array("token_nll", np.full(4096, np.log(100.0)))
    collected.write()


def test_baselines_come_first_and_candidates_know_them(shared: InProcess) -> None:
    jobs = shared.jobs()
    assert [(job.cell.technique["name"], job.stage) for job in jobs] == [
        ("none", "latency"),
        ("none", "quality"),
        ("rtn", "latency"),
        ("rtn", "quality"),
    ]
    baseline, candidate = jobs[1], jobs[3]
    assert (candidate.baseline, candidate.baseline_artifact) == (baseline.out, baseline.artifact)
    assert baseline.baseline is None
    assert [job.baseline_artifact for job in jobs] == [baseline.artifact, None, baseline.artifact, baseline.artifact]
    assert len({job.out for job in jobs}) == 4


def test_an_artifact_is_built_once_and_kept(shared: InProcess) -> None:
    job = shared.jobs()[2]
    shared.build(job)
    built = (job.artifact / "model.safetensors").stat().st_mtime_ns
    shared.build(job)
    assert (job.artifact / "model.safetensors").stat().st_mtime_ns == built


def test_a_measured_cell_becomes_a_record_without_a_verdict(shared: InProcess) -> None:
    for job in shared.jobs():
        shared.build(job)
        measure(job, seconds=0.5 if job.cell.technique["name"] == "rtn" else 1.0)
    [record] = shared.records({})
    assert (record.status, record.isolation) == (Status.OK, "shared")
    assert record.estimates["decode_tokens_per_s"].value == 2.0
    speedup = record.estimates["decode_speedup"]
    assert (speedup.value, speedup.low, speedup.high) == (pytest.approx(2.0), None, None)
    assert [kept.attempt for kept in RecordStore(shared.results).records(lambda *_: None)] == [record.attempt]


def test_its_results_are_those_that_the_runner_reads_from_the_same_folders(shared: InProcess) -> None:
    """One way to a record: samples folders -> results, whoever started the processes; the start-up counts once."""
    for job in shared.jobs():
        shared.build(job)
        measure(job, seconds=1.0)
    latency, quality = (job for job in shared.jobs() if job.cell.technique["name"] == "rtn")
    timing, scored = Process.read(latency.out, 3.5), Process.read(quality.out, None)
    assert (timing.work, timing.overhead) == (2.5, 1.0)
    assert (scored.work, scored.overhead) == (2.5, None)
    [record] = shared.records({})
    assert record.artifact_hash == Artifact.read(latency.cell).hash
    assert record.stages == {"build": 0, "latency": 2.5, "quality": 2.5, "overhead": 1.0, "baseline": 0}
    assert record.estimates["process_overhead_seconds"].n == 1


def test_a_cell_of_which_only_some_benches_ran_has_no_record(shared: InProcess) -> None:
    for job in shared.jobs()[:3]:
        shared.build(job)
        measure(job, seconds=1.0)
    assert list(shared.records({})) == []


def test_a_failure_is_a_record_with_its_reason(shared: InProcess) -> None:
    job = shared.jobs()[2]
    [record] = shared.records({job.out: Unsupported("rtn has no 5-bit codes")})
    assert (record.status, record.stage, record.isolation) == (Status.UNSUPPORTED, "latency", "shared")
    assert "rtn has no 5-bit codes" in record.reason


@pytest.mark.promise(17)
def test_a_full_disk_is_no_failure_of_a_cell(shared: InProcess) -> None:
    job = shared.jobs()[2]
    assert list(shared.records({job.out: OSError(28, "No space left on device")})) == []


def test_an_engine_of_another_environment_is_refused_with_what_to_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path / "site", monkeypatch, {"toy": "toy-engine==1.0"})
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    session = InProcess.of(["model=tiny_llama", "technique=none", "runtime=toy", "protocol=smoke"], tmp_path / "out")
    baseline, *_, toy = session.jobs()
    session.build(baseline)
    with pytest.raises(Unsupported, match="`nox -s runtimes -- toy`") as refused:
        session.build(toy)
    [record] = session.records({toy.out: refused.value})
    assert (record.status, record.environment["engine"]["toy-engine"]) == (Status.UNSUPPORTED, "1.0")
    assert record.beside != record.fingerprint
    session.close()


def test_scratch_files_vanish(shared: InProcess) -> None:
    job = shared.jobs()[0]
    measure(job, seconds=1.0)
    shared.close()
    assert not job.out.exists()


def test_a_wrong_request_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SqueezeError, match="tiny_llama"):
        InProcess.of(["model=tiny_lama"], tmp_path)
