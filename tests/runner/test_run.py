"""Who is run, when, how often and in which order; with processes that compute nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from squeeze.core import environment
from squeeze.core.errors import SqueezeError
from squeeze.core.interpreters import environment_with
from squeeze.records.record import Status
from squeeze.records.store import RecordStore
from squeeze.runner.jobs.executor import device_lock
from squeeze.runner.run import run
from tests.faults.conftest import own_places  # noqa: F401 - a fixture
from tests.faults.sweeps import (
    JOBS,
    MODEL,
    PROTOCOL,
    WORKER,
    cell,
    jobs,
    run_made_up,
    start_in_the_background,
    wait_until,
)

ROUNDS = PROTOCOL["rounds"]
PILOT = 2  # processes of each dtype: the difference is obvious
REPOSITORY = Path(__file__).parents[2]


def log() -> list[tuple[str, str, int, int]]:
    """Stage, label, round and process of every job so far."""
    lines = [line.split() for line in Path(os.environ[JOBS]).read_text().splitlines()]
    return [(stage, label, int(number), int(process)) for stage, label, number, process in lines]


def timed_labels(number: int) -> list[str]:
    """Who was timed in one round of the only block, in order; without the pilot, which comes before."""
    labels = [label for stage, label, found, _ in log() if stage == "latency" and found == number]
    return labels[-3:]


def test_every_job_has_a_process_of_its_own(tmp_path: Path) -> None:
    run_made_up([cell("a"), cell("b")], tmp_path / "results")
    processes = [process for _, _, _, process in log()]
    assert len(set(processes)) == len(processes)
    assert os.getpid() not in processes


def test_rounds_alternate_and_share_the_baseline(tmp_path: Path) -> None:
    run_made_up([cell("a"), cell("b")], tmp_path / "results")
    first = ["tiny-none-bfloat16", "tiny-a-4", "tiny-b-4"]
    assert timed_labels(0) == first
    assert timed_labels(1) == first[::-1]


def test_the_faster_dtype_is_the_one_to_beat_and_only_that_choice_is_kept(tmp_path: Path) -> None:
    """The made-up float32 model takes 1.5 times as long: the pilot needs two processes of each, once."""
    first = run_made_up([cell("a")], tmp_path / "results")["a"]
    assert first.realised["speed_baseline"] == "bfloat16"
    timed = Counter(label for stage, label, _, _ in log() if stage == "latency")
    assert timed == {
        "tiny-none-float32": PILOT,
        "tiny-none-bfloat16": PILOT + ROUNDS,
        "tiny-a-4": ROUNDS,
    }
    run_made_up([cell("b")], tmp_path / "results")
    again = Counter(label for stage, label, _, _ in log() if stage == "latency") - timed
    assert again == {"tiny-none-bfloat16": ROUNDS, "tiny-b-4": ROUNDS}


def test_a_block_has_at_most_four_candidates_and_a_baseline_of_its_own(tmp_path: Path) -> None:
    run_made_up([cell(f"t{number}") for number in range(5)], tmp_path / "results")
    assert (
        sum(label == "tiny-none-bfloat16" for stage, label, _, _ in log() if stage == "latency") == PILOT + 2 * ROUNDS
    )
    assert jobs()["build"] == 5 + 2


def test_quality_is_scored_once_per_artifact(tmp_path: Path) -> None:
    run_made_up([cell("a", replicate=number) for number in range(3)], tmp_path / "results")
    scored = Counter(label for stage, label, _, _ in log() if stage == "quality")
    assert scored == {"tiny-none-bfloat16": 1, "tiny-a-4": 1}


def test_what_the_cache_had_took_no_seconds(tmp_path: Path) -> None:
    run_made_up([cell("a", replicate=number) for number in range(2)], tmp_path / "results")
    found = RecordStore(tmp_path / "results").records()
    first, second = sorted(found, key=lambda record: record.cell["replicate"])
    assert first.stages["build"] > 0
    assert {"quality", "latency"} <= first.stages.keys()
    assert second.stages["build"] == 0
    assert "quality" not in second.stages
    processes = [record.estimates["process_overhead_seconds"].n for record in (first, second)]
    assert processes == [1 + ROUNDS, ROUNDS]


def test_the_baseline_is_the_one_of_the_same_dtype(tmp_path: Path) -> None:
    run_made_up([cell("a", model={**MODEL, "dtype": "float32"})], tmp_path / "results")
    assert [label for stage, label, _, _ in log() if stage == "quality"] == ["tiny-none-float32", "tiny-a-4"]


def test_an_uncompressed_cell_is_timed_against_itself(tmp_path: Path) -> None:
    """A real A/A comparison: two processes a round of the same artifact, quality scored once."""
    uncompressed = cell().baseline("bfloat16")
    run([uncompressed], tmp_path / "results", command=WORKER)
    counts = Counter(stage for stage, _, _, _ in log())
    assert (counts["quality"], counts["latency"]) == (1, 2 * PILOT + 2 * ROUNDS)


def test_one_that_fails_is_left_out_of_further_rounds(tmp_path: Path) -> None:
    found = run_made_up([cell("raise@latency"), cell("good")], tmp_path / "results")
    assert found["good"].status is Status.OK
    assert sum(label == "tiny-raise@latency-4" for stage, label, _, _ in log() if stage == "latency") == 1


def test_each_attempt_has_its_log(tmp_path: Path) -> None:
    record = run_made_up([cell("raise@build")], tmp_path / "results")["raise@build"]
    text = (tmp_path / "results" / "logs" / f"tiny-raise_build-4-{record.attempt}.log").read_text()
    assert "tiny-raise@build-4: build" in text
    assert "ValueError" in text


def test_two_runs_do_not_time_each_other(tmp_path: Path) -> None:
    """While another run holds the device, building goes on and measuring waits."""
    with device_lock("cpu"):
        runner = start_in_the_background([cell("a")], tmp_path / "results")
        assert wait_until(lambda: jobs()["build"] == 3, 60)
        assert not wait_until(lambda: jobs()["quality"] > 0, 1)
    assert runner.wait(60) == 0
    assert jobs()["latency"] > 0
    assert "waiting for another run that measures on cpu" in (tmp_path / "stderr").read_text()


def test_nothing_is_begun_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(SqueezeError, match="not writable"):
        run_made_up([cell("a")], tmp_path / "results")
    assert not jobs()


def test_a_worker_that_cannot_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SqueezeError, match=r"did not start \(exit code 2\)"):
        run([cell("a")], tmp_path / "results", command=(sys.executable, str(tmp_path / "absent.py")))


def test_every_stage_is_told_in_a_plain_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_made_up([cell("a"), cell("unsupported@build")], tmp_path / "results")
    told = capsys.readouterr()
    assert told.out == ""
    assert "tiny-a-4: build: 0." in told.err
    assert "2 models side by side: latency, round 2: 0." in told.err
    assert "tiny-unsupported@build-4: unsupported in build: Unsupported: group size 128 does not" in told.err
    assert "[2/2] tiny-a-4: ok\n" in told.err


def test_records_know_their_environment(tmp_path: Path) -> None:
    record = run_made_up([cell("a")], tmp_path / "results")["a"]
    assert record.environment["hardware"] == environment.hardware()
    assert record.environment["machine"]["read_bandwidth"] == 1e10
    assert {"state", "state_after", "code"} <= set(record.environment)
    assert record.fingerprint == environment.fingerprint(record.environment, cell("a").runtime)


def test_the_runner_never_imports_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.faults.sweeps import *;"
        "run_made_up([cell('a')], Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "results")]
    subprocess.run(command, cwd=REPOSITORY, env=environment_with({}), check=True, capture_output=True)
