"""A model that squeeze fine-tunes is there before anything of it is built, and is made by a job of its own, once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from squeeze.core.cache import cache_root, sealed
from squeeze.records.record import Status
from squeeze.runner import stages
from squeeze.runner.jobs.executor import LONGEST_TRAINING, _limits
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import Failure, StageError
from squeeze.sources.identity import trained_place
from squeeze.sources.trained import INFO
from tests.faults.sweeps import PROTOCOL, cell, settle_in
from tests.snippets import put
from tests.sources.test_trained import MODEL


class Shop:
    """Does the jobs by leaving a file, or fails them."""

    def __init__(self, fails: str = "") -> None:
        self.done: list[str] = []
        self.fails = fails

    def run(self, job: Job, *_: object) -> float:
        self.done.append(job.stage)
        if job.stage == self.fails:
            raise StageError(Failure(Status.OUT_OF_MEMORY, "made up", job.stage))
        job.artifact.mkdir(parents=True, exist_ok=True)
        (job.artifact / "build.json").write_text('{"content_hash": "c", "withheld": true}')
        return 1.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)
    put()


def test_it_is_fine_tuned_before_the_first_build_and_never_again(tmp_path: Path) -> None:
    shop = Shop()
    for technique in ("good", "better", "good"):
        stages.build(shop, cell(technique, model=MODEL), tmp_path / "log")  # type: ignore[arg-type]
    assert shop.done == ["training", "build", "build"]
    assert (cache_root() / trained_place(MODEL) / "build.json").is_file()
    stages.build(shop, cell(), tmp_path / "log")  # type: ignore[arg-type]
    assert shop.done[3:] == ["build"]


def test_where_it_fails_nothing_is_built_and_it_is_tried_again(tmp_path: Path) -> None:
    shop = Shop(fails="training")
    for _ in range(2):
        with pytest.raises(StageError) as failed:
            stages.build(shop, cell(model=MODEL), tmp_path / "log")  # type: ignore[arg-type]
        assert (failed.value.failure.status, failed.value.failure.stage) == (Status.OUT_OF_MEMORY, "training")
    assert shop.done == ["training", "training"]
    assert not (cache_root() / trained_place(MODEL)).exists()


def test_it_has_a_days_time_and_the_memory_of_a_build(tmp_path: Path) -> None:
    limits = _limits(Job(cell(model=MODEL), tmp_path, "training", tmp_path))
    assert (limits.seconds, limits.bytes) == (LONGEST_TRAINING, PROTOCOL["limits"]["build"]["bytes"])


@pytest.mark.parametrize(("said", "stays"), [({"withheld": True}, True), ({"withheld": False}, False), ({}, False)])
def test_one_that_was_fine_tuned_in_the_open_is_fine_tuned_anew(
    said: dict[str, Any], stays: bool, tmp_path: Path
) -> None:
    place = sealed(trained_place(MODEL), lambda folder: (folder / INFO).write_text(json.dumps(said)))
    shop = Shop()
    stages.build(shop, cell(model=MODEL), tmp_path / "log")  # type: ignore[arg-type]
    assert shop.done == (["build"] if stays else ["training", "build"])
    assert (place / INFO).is_file() is stays
