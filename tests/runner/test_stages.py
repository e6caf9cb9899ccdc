"""What a cached quality depends on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeeze.artifacts import keys
from squeeze.core.cache import sealed
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Status
from squeeze.request import steps
from squeeze.request.cell import Cell
from squeeze.runner import equipment
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.outcome import StageError
from squeeze.runner.results import Artifact, Measured
from squeeze.runner.stages import build, quality_key
from squeeze.runtimes.environments import Environment
from squeeze.sources import corpora, prompts, tasks
from squeeze.sources.corpora import corpus_hash
from tests.faults.conftest import own_places  # noqa: F401 - a fixture
from tests.faults.sweeps import PROTOCOL, RUNTIME, cell, settle_in
from tests.foreign import offer

STEP = """
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Step:
    environment: ClassVar[str] = "{}"

    def apply(self, subject, calibration): ...
"""


def key(**changes: Any) -> str:
    subject = cell("good", protocol={**PROTOCOL, **changes})
    return quality_key(Measured(subject, Path("log"), Artifact(Path(), "k" * 64, {"content_hash": "c" * 64})), None)


@pytest.mark.parametrize(
    "changes", [{"generations": {"prompts": 8, "tokens": 32}}, {"items": 7}, {"token_budget": 7}, {"seed": 7}]
)
def test_a_quality_is_that_of_what_was_asked(changes: dict[str, Any]) -> None:
    assert key(**changes) != key()


@pytest.mark.parametrize(("said", "again"), [({"withheld": False}, 1), ({"withheld": True}, 0), ({}, 0)])
def test_what_was_built_in_the_open_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, bool], again: int
) -> None:
    settle_in(tmp_path, monkeypatch)
    subject, built = cell("good"), []

    def write(folder: Path, info: dict[str, bool]) -> None:
        folder.mkdir()
        (folder / keys.BUILD_INFO).write_text(json.dumps({"content_hash": "c" * 64, **info}))

    class Shop:
        def run(self, job: Job, *_: object) -> float:
            built.append(job.stage)
            write(job.artifact, {"withheld": True})
            return 1.0

    keys.made(keys.artifact_key(subject), lambda folder: write(folder, said))
    for _ in range(2):
        build(Shop(), subject, tmp_path / "log")  # type: ignore[arg-type]
    assert built == ["build"] * again


def test_a_draft_is_built_before_its_cell_and_on_its_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(prompts, "fetch", lambda: fetched.append(1))
    step = {"_target_": "speculative.Speculative", "drafted_tokens": 4}
    plain = cell("good")
    subject = replace(plain, technique={**plain.technique, "steps": [step], "draft": plain.technique["steps"]})
    built: list[str] = []
    fetched: list[int] = []

    class Shop:
        def run(self, job: Job, *_: object) -> float:
            built.append(keys.artifact_key(job.cell))
            job.artifact.mkdir()
            (job.artifact / keys.BUILD_INFO).write_text(json.dumps({"content_hash": "c" * 64, "withheld": True}))
            return 3.0

    made = build(Shop(), subject, tmp_path / "log")  # type: ignore[arg-type]
    assert built == [keys.artifact_key(plain), keys.artifact_key(subject)], "that of the plain row, and then the whole"
    assert (made.key, made.seconds) == (keys.artifact_key(subject), 6.0)
    assert fetched == [1], "what its prompts need, and of the draft nothing"
    assert build(Shop(), subject, tmp_path / "log").seconds == 0.0  # type: ignore[arg-type]
    assert len(built) == 2


@pytest.mark.parametrize("corpus", ["wikipedia_eval", "c4"])
def test_a_cell_that_is_calibrated_on_what_is_scored_is_invalid_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str
) -> None:
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(corpora, "text", lambda _: " ".join(map(str, range(100))))
    subject = cell("good", calibration={"name": "own", "corpus": corpus, "samples": 1, "window": 1, "seed": 0})
    with pytest.raises(StageError) as failed:
        build(None, subject, tmp_path / "log")  # type: ignore[arg-type]
    assert (failed.value.failure.status, failed.value.failure.stage) == (Status.INVALID, "fetch")
    assert failed.value.failure.reason.startswith(f"calibration on {corpus}: ")
    assert "1%" in failed.value.failure.reason


def test_how_often_a_row_is_timed_is_no_part_of_its_quality() -> None:
    assert key(rounds=7, name="another") == key()


def put_text(folder: Path, text: str, patch: pytest.MonkeyPatch) -> None:
    """Let the cache be one whose evaluation text is this."""
    patch.setenv("SQUEEZE_CACHE", str(folder))
    name = PROTOCOL["perplexity"]["corpus"]

    def write(made: Path) -> None:
        (made / "text.txt").write_text(text)

    sealed(f"corpora/{name}-{corpus_hash(name)[:16]}", write)


@pytest.mark.promise(17)
def test_a_quality_is_that_of_the_text_as_it_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for folder, text in (("a", "One text."), ("b", "Another."), ("c", "One text.")):
        put_text(tmp_path / folder, text, monkeypatch)
        keys.append(key())
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.promise(17)
def test_a_quality_is_that_of_the_tasks_gold_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task's definition is the same all the time."""
    data, definition = tmp_path / "data.jsonl", f"task: own\ndataset_kwargs: {{data_files: {tmp_path}/data.jsonl}}\n"
    (tmp_path / "own.yaml").write_text(f"include: _shared.yml\n{definition}")
    (tmp_path / "_shared.yml").write_text("custom_dataset: !function squeeze.sources.questions.questions\n")
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    keys = []
    for gold in (0, 1, 0):
        data.write_text(f'{{"gold": {gold}}}')
        keys.append(key(tasks=["own"]))
    assert keys[0] == keys[2] != keys[1]


def test_the_packages_of_its_engine_are_part_of_a_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = offer(tmp_path / "site", monkeypatch, {"toy": "toy-engine==1.0"})
    settle_in(tmp_path, monkeypatch)
    toy = cell("good", runtime={**RUNTIME, "name": "toy", "_target_": "toys:toy.Toy"})
    subject = Measured(toy, Path("log"), Artifact(Path(), "k" * 64, {"content_hash": "c" * 64}))
    before = quality_key(subject, None)
    (folder / "runtimes" / "requirements" / "toy.txt").write_text("toy-engine==1.1")
    assert quality_key(subject, None) != before


def test_no_environment_is_made_for_a_device_that_its_engine_does_not_run_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle_in(tmp_path, monkeypatch)
    monkeypatch.setattr(Environment, "made", lambda self: pytest.fail(f"made {self.name}"))
    asked = cell("good", runtime={**RUNTIME, "name": "vllm", "_target_": "vllm.Vllm"})
    with pytest.raises(StageError) as refused:
        build(None, asked, tmp_path / "log")  # type: ignore[arg-type]
    assert (refused.value.failure.status, refused.value.failure.stage) == (Status.UNSUPPORTED, "environment")
    assert "vllm runs on cuda alone, asked for cpu; use device=cuda, or runtime=eager" in refused.value.failure.reason


def test_a_step_may_want_an_environment_and_two_of_them_not_another_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its artifact is built there; what is measured of it runs where its runtime lies."""
    folder = offer(tmp_path / "site", monkeypatch, {"toy": "toy-engine==1.0", "game": "toy-engine==2.0"})
    for name in ("toy", "game"):
        (folder / "techniques" / f"{name}_step.py").write_text(STEP.format(name))
    monkeypatch.setattr(Environment, "made", lambda self: Path(self.name))
    steps.find.cache_clear()

    def asked(*names: str) -> Cell:
        recipe = [{"_target_": f"toys:{name}_step.Step"} for name in names]
        return replace(cell("good"), technique={"name": "own", "family": "made_up", "steps": recipe})

    jobs = [Job(asked("toy", "toy"), tmp_path, stage, tmp_path) for stage in ("build", "latency", "quality", "machine")]
    assert [equipment.interpreter(job) for job in jobs] == [Path("toy"), None, None, None]
    assert [each.name for each in equipment.wanted(asked("toy"))] == ["toy"]
    with pytest.raises(SqueezeError, match="the environments game and toy, expected one"):
        equipment.wanted(asked("toy", "game"))
