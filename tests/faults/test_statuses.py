"""Promise 2: each requested cell ends in exactly one record, with the status that this table says.

What is no verdict, such as a kill from outside, is in test_transient.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from squeeze.records.record import Record, Status
from tests.faults.sweeps import MODEL, cell, limited, run_made_up, settle_in

TABLE = {
    "good": (Status.OK, "", ""),
    "raise@build": (Status.CRASHED, "build", "ValueError: a weight went missing from secret.safetensors"),
    "raise@quality": (Status.CRASHED, "quality", "ValueError"),
    "raise@latency": (Status.CRASHED, "latency", "ValueError"),
    "exit@build": (Status.CRASHED, "build", "exit code 3"),
    "exit@latency": (Status.CRASHED, "latency", "exit code 3"),
    "segfault@build": (Status.CRASHED, "build", "SIGSEGV"),
    "segfault@quality": (Status.CRASHED, "quality", "SIGSEGV"),
    "hang@build": (Status.TIMEOUT, "build", "limit of 3 s"),
    "hang@latency": (Status.TIMEOUT, "latency", "limit of 3 s"),
    "hog@build": (Status.OUT_OF_MEMORY, "build", ""),
    "memory_error@quality": (Status.OUT_OF_MEMORY, "quality", "MemoryError"),
    "no_memory@latency": (Status.OUT_OF_MEMORY, "latency", "can't allocate memory"),
    "cuda_out_of_memory@latency": (Status.OUT_OF_MEMORY, "latency", "CUDA out of memory"),
    "unsupported@build": (Status.UNSUPPORTED, "build", "group size 128 does not divide 576; 64 does"),
    "empty@quality": (Status.INVALID, "quality", "samples cannot be read"),
    "truncated@quality": (Status.INVALID, "quality", "samples cannot be read"),
    "truncated@latency": (Status.INVALID, "latency", "samples cannot be read"),
    "nan@quality": (Status.DIVERGED, "quality", "perplexity nan: guessing gives 260"),
}


pytestmark = pytest.mark.promise(2)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """One sweep of all rows: the failures of some must not touch the others."""
    folder = tmp_path_factory.mktemp("statuses")
    with pytest.MonkeyPatch.context() as patch:
        settle_in(folder, patch)
        found = run_made_up([cell(name, protocol=limited(3, 400 * 2**20)) for name in TABLE], folder / "results")
        assert len(list((folder / "results" / "records").glob("*.json"))) == len(TABLE)
        return found


@pytest.mark.parametrize("name", TABLE)
def test_status(outcome: dict[str, Record], name: str) -> None:
    status, stage, reason = TABLE[name]
    record = outcome[name]
    assert (record.status, record.stage) == (status, stage)
    assert reason in record.reason
    assert "\n" not in record.reason


def test_each_cell_has_one_record(outcome: dict[str, Record], figure: Callable[[str], None]) -> None:
    assert outcome.keys() == TABLE.keys()
    counts = Counter(str(record.status) for record in outcome.values())
    assert counts.keys() == set(Status)
    words = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    figure(f"{len(TABLE)} cells, most of which go wrong in a way of their own: {len(outcome)} records, {words}")


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row[0] not in (Status.OK, Status.DIVERGED)])
def test_a_failure_has_no_figures(outcome: dict[str, Record], name: str) -> None:
    assert outcome[name].estimates == {}
    assert outcome[name].samples == {}


def test_a_crash_shows_the_end_of_its_log(outcome: dict[str, Record]) -> None:
    assert "ValueError: a weight went missing" in outcome["raise@build"].log_tail
    assert "Segmentation fault" in outcome["segfault@build"].log_tail
    for record in outcome.values():
        assert "/home" not in record.reason + record.log_tail
        assert len(record.log_tail) <= 1000


def test_memory_at_death_is_named(outcome: dict[str, Record]) -> None:
    assert "MiB)" in outcome["hang@latency"].reason


def test_a_diverged_model_keeps_its_speed_and_size(outcome: dict[str, Record]) -> None:
    estimates = outcome["nan@quality"].estimates
    assert "decode_speedup" in estimates
    assert "bytes" in estimates
    assert "perplexity" not in estimates


def test_a_baseline_that_fails_fails_its_candidates(tmp_path: Path) -> None:
    for stage in ("build", "quality", "latency"):
        model = {**MODEL, "name": f"raise@{stage}", "source": f"random:{stage}"}
        found = run_made_up([cell("a", model=model), cell("b", model=model)], tmp_path / stage)
        for record in found.values():
            assert (record.status, record.stage) == (Status.CRASHED, stage)
            assert record.reason.startswith("baseline: ValueError")
