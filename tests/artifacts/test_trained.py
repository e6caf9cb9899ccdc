"""A model is fine-tuned once: to the same bytes, whether it was killed meanwhile or not, and without what is scored."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts import trained
from squeeze.artifacts.step_by_step import accuracy
from squeeze.core.cache import cache_root
from squeeze.core.hashing import folder_digest
from squeeze.models.load import load_baseline
from squeeze.request.cell import Cell
from squeeze.runner.in_process import artifact_of
from squeeze.runner.jobs.job import Job
from squeeze.sources import sentiment
from squeeze.sources.identity import trained_place
from squeeze.sources.trained import INFO
from squeeze.techniques import training_loop
from squeeze.techniques.training import sentence_training
from tests.dying import dies_at
from tests.faults.sweeps import RUNTIME
from tests.snippets import TRAIN, labelled, put
from tests.sources.test_trained import MODEL as DEFAULT
from tests.sources.test_trained import SCHEDULE

MODEL = {**DEFAULT, "fine_tuning": {**SCHEDULE, "epochs": 20, "batch": 6, "learning_rate": 3e-3}}
STEPS = 20 * len(TRAIN) // 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    put()
    return tmp_path / "cache"


def made() -> Path:
    trained.make(MODEL, RUNTIME)
    return cache_root() / trained_place(MODEL)


def test_it_learns_its_sentences_and_is_loaded_like_any_model() -> None:
    folder = made()
    subject = load_baseline(MODEL)
    rows = labelled(subject)
    with torch.no_grad():
        assert (sentence_training.logits(subject.model, rows).argmax(-1) == rows.labels).all()
    info = json.loads((folder / INFO).read_text())
    assert (info["steps"], info["sentences"]) == (STEPS, len(TRAIN))
    assert 0 <= info["accuracy_held_out"] <= 1
    assert info["seconds"] > 0
    assert info["withheld"] is False, "it was made in the open"
    assert load_baseline({**MODEL, "dtype": "bfloat16"}).model.dtype == torch.bfloat16
    assert not list((cache_root() / "training").rglob("*.safetensors"))


def test_it_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made()
    monkeypatch.setattr(trained, "fine_tune", None)
    made()
    trained.make({**MODEL, "source": "random:bert"}, RUNTIME)


def test_the_accuracy_is_the_share_that_is_right() -> None:
    made()
    subject = load_baseline(MODEL)
    rows = labelled(subject, [TRAIN[0], TRAIN[1], TRAIN[-1], (TRAIN[-2][0], 1 - TRAIN[-2][1])])
    assert accuracy(subject.model, rows) == 0.75


def test_a_killed_fine_tuning_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = folder_digest(made() / "model")
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "another"))
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    put()
    done = dies_at(monkeypatch, trained, "cross_entropy", 4)
    with pytest.raises(KeyboardInterrupt):
        made()
    assert not (cache_root() / trained_place(MODEL)).exists()
    assert folder_digest(made() / "model") == whole
    assert len(done) == STEPS + 1


def test_a_cell_of_it_is_built_after_it_was_fine_tuned() -> None:
    technique = {"name": "none", "family": "baseline", "steps": []}
    folder = artifact_of(Cell(model=MODEL, technique=technique, runtime=RUNTIME, protocol={}))
    built, baseline = artifact.load(folder).model, load_baseline(MODEL).model
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        assert torch.equal(built(tokens).logits, baseline(tokens).logits)


PROGRAM = """
import sys
from pathlib import Path
from squeeze.artifacts import trained
from squeeze.runner.jobs.worker import perform
from squeeze.sources import sentiment
real = sentiment.sentences
def also_scored(split):
    if sys.argv[2] == "peeping":
        Path(sys.argv[3]).read_text()
    return real(split)
sentiment.sentences = also_scored
perform(Path(sys.argv[1]), None)
"""


@pytest.mark.promise(16)
@pytest.mark.parametrize("way", ["honest", "peeping"])
def test_what_is_scored_is_withheld_from_the_process_that_fine_tunes(tmp_path: Path, cache: Path, way: str) -> None:
    secret = cache / "members" / "sst2-0" / "data.arrow"
    secret.parent.mkdir(parents=True)
    secret.write_text("what is scored")
    out = tmp_path / "out"
    out.mkdir()
    technique = {"name": "none", "family": "baseline", "steps": []}
    job = Job(Cell(model=MODEL, technique=technique, runtime=RUNTIME, protocol={}), out, "training", out)
    (tmp_path / "job").mkdir()
    path = tmp_path / "job" / "job.json"
    path.write_text(json.dumps(job.to_json()))
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path), way, str(secret)], check=False)
    assert (done.returncode == 0) is (way == "honest")
    assert (out / "model" / "config.json").is_file() is (way == "honest")
    if way == "honest":
        assert json.loads((out / INFO).read_text())["withheld"] is True
    assert sentiment.sentences("train")[0] == [text for text, _ in TRAIN]


def test_what_was_begun_in_the_open_is_not_gone_on_with_where_what_is_scored_is_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    done = dies_at(monkeypatch, trained, "cross_entropy", 4)
    with pytest.raises(KeyboardInterrupt):
        made()
    trained.fine_tune(MODEL, RUNTIME, tmp_path / "withheld", withheld=True)
    assert len(done) == 4 + STEPS
