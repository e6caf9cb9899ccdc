"""``squeeze rerun`` with processes that compute nothing; tests/test_end_to_end.py has one in which they do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.audit.rerun import rerun
from squeeze.core.cache import cache_root, nothing_computed
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Record
from squeeze.records.store import RecordStore
from tests.faults.sweeps import PROTOCOL, WORKER, cell, jobs, records, run_made_up, settle_in

CELL = cell("good", protocol={**PROTOCOL, "rounds": 5})
LABEL = CELL.label
pytestmark = pytest.mark.filterwarnings("ignore:Precision loss")  # the made-up times of all processes are alike


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    settle_in(tmp_path, monkeypatch)
    return tmp_path / "results"


def kept(results: Path, record: Record) -> None:
    """Put a record in the place of the one that was made."""
    store = RecordStore(results)
    samples = store.samples(record).read_bytes() if record.samples else b""
    for path in store.folder.iterdir():
        path.unlink()
    store.write(record, samples)


def test_the_same_again_is_no_drift(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_made_up([CELL], results)
    first = jobs()
    assert rerun(results, LABEL, WORKER) == 0
    assert jobs()["build"] >= first["build"] + 2
    assert jobs()["quality"] == 2 * first["quality"]
    shown = capsys.readouterr().out
    assert "decode_speedup" in shown
    assert "x 1.000 [1.000, 1.000]" in shown
    assert shown.splitlines()[-1].startswith(f"{LABEL}, attempt ")
    assert "0 drifted, 2 not judged" in shown  # milliseconds and tokens a second, of other minutes
    assert len(records(results)) == 1
    assert cache_root() == results.parent / "cache"
    [made] = RecordStore(results / "rerun").records()
    kept(results / "rerun", replace(made, attempt="0" * 32))
    assert rerun(results, LABEL.removeprefix("tiny-"), WORKER) == 0
    assert "rerun as 0000" not in capsys.readouterr().out, "a second rerun is judged by its own record"


def test_on_another_machine_or_by_other_code_the_fields_are_named_and_times_not_judged(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_made_up([CELL], results)["good"]
    hardware = {**made.environment["hardware"], "cpu_model": "Another CPU"}
    unlike = {"fingerprint": "0" * 64, "environment": {**made.environment, "hardware": hardware}}
    kept(results, replace(made, artifact_key="0" * 64, **unlike))
    assert rerun(results, LABEL, WORKER) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "they differ in the code, libraries or sources that the artifact is built from; hardware.cpu" in shown
    assert "hardware.cpu_model (Another CPU and " in shown
    assert "0 within the interval, 0 drifted, 7 not judged" in shown
    assert "another machine" in shown


def test_a_failure_is_reproduced_too(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = cell("unsupported@build")
    made = run_made_up([failing], results)["unsupported@build"]
    assert rerun(results, made.attempt[:8], WORKER) == 0
    assert "2 bit-exact" in capsys.readouterr().out
    kept(results, replace(made, status=type(made.status).TIMEOUT))
    assert rerun(results, made.key, WORKER) == 1
    assert "timeout" in capsys.readouterr().out


def test_an_unknown_row_is_an_error(results: Path) -> None:
    run_made_up([CELL], results)
    with pytest.raises(SqueezeError, match=f"did you mean '{LABEL}'"):
        rerun(results, LABEL.replace("good", "goad"), WORKER)


def test_it_waits_for_the_device_as_any_run_does_but_reads_nothing_computed(results: Path) -> None:
    usual = cache_root()
    (usual / "artifacts").mkdir(parents=True)
    with nothing_computed():
        assert (cache_root() / "locks").resolve() == (usual / "locks").resolve()
        assert not (cache_root() / "artifacts").exists()
    assert cache_root() == usual
