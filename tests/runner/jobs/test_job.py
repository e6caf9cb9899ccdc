"""A job reaches its process as it was written."""

import json
from pathlib import Path

import pytest

from squeeze.core.errors import IntegrityError
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job

CELL = Cell(model={"name": "tiny"}, technique={"name": "none", "family": "baseline", "steps": []})


@pytest.mark.parametrize("baseline", [None, Path("/b")])
def test_it_survives_its_file(tmp_path: Path, baseline: Path | None) -> None:
    job = Job(CELL, Path("/a"), "quality", tmp_path, 3, baseline, baseline)
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job.to_json()))
    assert Job.read(path) == job


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"cell": {}, "artifact": "a", "out": "o", "stage": "latency"}'])
def test_what_is_no_job_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(IntegrityError, match="not a job file"):
        Job.read(tmp_path / "job.json")
