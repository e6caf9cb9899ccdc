"""What a job stands on is remembered, and missed."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from squeeze.core.errors import TransientError
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.surroundings import Surroundings, explained
from tests.faults.sweeps import cell

pytestmark = pytest.mark.promise(17)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    artifact, out = tmp_path / "cache" / "artifacts" / "k" / "artifact", tmp_path / "out"
    for folder in (artifact, out):
        folder.mkdir(parents=True)
    (artifact / "model.safetensors").touch()
    return Job(cell(), artifact, "latency", out)


def made_again(job: Job) -> None:
    shutil.rmtree(job.out)
    job.out.with_name("beside").mkdir()  # takes the inode that became free, should the file system use it at once
    job.out.mkdir()


@pytest.mark.parametrize(
    "remove",
    [
        lambda job: shutil.rmtree(job.artifact.parents[2]),
        lambda job: shutil.rmtree(job.artifact),
        lambda job: (job.artifact / "model.safetensors").unlink(),
        lambda job: shutil.rmtree(job.out),
        made_again,
    ],
    ids=["cache", "artifact", "a file of it", "output", "output, made again"],
)
def test_what_is_removed_is_missed(job: Job, remove: Callable[[Job], None]) -> None:
    before = Surroundings.of([job])
    before.check()
    remove(job)
    with pytest.raises(TransientError, match=r"was removed while a run was at work on it.*`squeeze resume`"):
        before.check()


def test_what_a_job_adds_is_not(job: Job) -> None:
    before = Surroundings.of([job])
    (job.out / "samples.json").touch()
    (job.artifact.parents[1] / "another").mkdir()
    before.check()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "job.json"), "disk full: job.json could not be written"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk full: a process"),
        (FileNotFoundError(errno.ENOENT, "No such file", "RESULTS/logs/a.log"), "a.log was removed"),
    ],
)
def test_errors_of_the_system_come_in_words(tmp_path: Path, error: OSError, words: str) -> None:
    if error.filename:
        error.filename = error.filename.replace("RESULTS", str(tmp_path))
    with pytest.raises(TransientError, match=words) as caught, explained(tmp_path):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "I/O error"), FileNotFoundError(errno.ENOENT, "", "/usr/bin/git"), FileNotFoundError()]
)
def test_other_errors_pass(error: OSError) -> None:
    with pytest.raises(type(error)) as caught, explained():
        raise error
    assert caught.value is error
