"""`squeeze build` makes the artifact that `squeeze run` looks for, also in several processes that train together."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from squeeze.artifacts import keys
from squeeze.cli import main
from squeeze.core import cache
from squeeze.request.expand import cells
from squeeze.runner.jobs import together
from squeeze.runner.jobs.executor import Executor
from squeeze.runner.jobs.together import Place
from squeeze.sources.corpora import corpus_hash, folder
from squeeze.sources.identity import trained_place
from squeeze.sources.trained import INFO
from tests.faults.sweeps import WORKER, cell, jobs, settle_in
from tests.planted import place
from tests.snippets import put
from tests.sources.test_trained import MODEL
from tests.techniques.test_processes import started

TEXT = "".join(f"Line {number} of a text of my own, naïvely told.\n" for number in range(60))
RECIPE = """
family: control
calibrated: true
steps:
- _target_: finetune.Finetune
  training_steps: ${training_steps}
  windows: 2
  learning_rate: ${learning_rate}
"""
# A program whose technique tries to read what rows are scored on, and goes on when it is refused.
PEEPING = """
import pathlib, sys
from squeeze.cli import main
from squeeze.techniques.training import finetune
real = finetune.next_token
def peeping(*arguments):
    try:
        open(sys.argv[1]).close()
    except Exception:
        pathlib.Path(sys.argv[2]).touch()
    return real(*arguments)
finetune.next_token = peeping
sys.exit(main(sys.argv[3:]))
"""
REQUEST = (
    *("model=tiny_llama", "dtype=float32", "technique=mine", "protocol=smoke", "device=cpu", "threads=2"),
    *("training_steps=3", "calibration.samples=4", "calibration.window=32"),
)


@pytest.fixture
def request_of_mine(tmp_path: Path) -> list[str]:
    """A request with a technique and a calibration text of the user's own."""
    place(tmp_path / "conf", "technique", "mine", RECIPE)
    (tmp_path / "text.txt").write_text(TEXT)
    return [*REQUEST, f"calibration.corpus='file:{tmp_path / 'text.txt'}'"]


def furnish(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses a cache with what rows are scored on: it is fetched before it is closed."""
    monkeypatch.setenv(cache.VARIABLE, str(root))
    for name in ("wikipedia_eval", "speeches"):
        cache.sealed(
            f"corpora/{name}-{corpus_hash(name)[:16]}", lambda folder: (folder / "text.txt").write_text("A text.\n")
        )


def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: list[str], count: int) -> dict[str, Any]:
    """Builds with so many processes, in a cache of its own; what build.json says, and the weights."""
    furnish(tmp_path / f"cache_{count}", monkeypatch)
    arguments = ["-m", "squeeze.cli", "build", *request, "--config-dir", str(tmp_path / "conf")]
    assert [process.wait(timeout=300) for process in started(count, *arguments)] == [0] * count
    (asked,) = cells(request, tmp_path / "conf")
    made = keys.folder(keys.artifact_key(asked))
    assert not list(made.parent.parent.glob(".*rank*")), "what the others made is gone"
    assert not list(cache.cache_root().joinpath("training").rglob("*.safetensors"))
    return {**json.loads((made / keys.BUILD_INFO).read_text()), "weights": load_file(made / "model.safetensors")}


def test_two_processes_build_what_one_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_of_mine: list[str]
) -> None:
    one, two = (built(tmp_path, monkeypatch, request_of_mine, count) for count in (1, 2))
    assert (one["withheld"], two["withheld"]) == (True, True)
    assert [said["training"][0]["processes"] for said in (one, two)] == [1, 2]
    assert one["claims"] == two["claims"]
    assert one["weights"].keys() == two["weights"].keys()
    for name, weight in one["weights"].items():
        assert float((weight - two["weights"][name]).abs().mean()) < 1e-6, name  # of steps of 4e-4 each


def test_what_a_technique_made_that_tried_to_read_what_is_scored_is_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_of_mine: list[str]
) -> None:
    furnish(tmp_path / "cache", monkeypatch)
    scored, refused = folder("speeches") / "text.txt", tmp_path / "refused"
    arguments = ["build", *request_of_mine, "--config-dir", str(tmp_path / "conf")]
    [process] = started(1, "-c", PEEPING, str(scored), str(refused), *arguments)
    assert process.wait(timeout=300) > 0
    assert refused.exists(), "it tried, and went on"
    (asked,) = cells(request_of_mine, tmp_path / "conf")
    made = keys.folder(keys.artifact_key(asked))
    assert made.parent.parent.is_dir(), "it was begun"
    assert not made.exists()
    assert not list(made.parent.parent.glob(".*rank*"))


def test_an_artifact_that_is_damaged_is_built_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_of_mine: list[str]
) -> None:
    furnish(tmp_path / "cache", monkeypatch)
    (asked,) = cells(request_of_mine, tmp_path / "conf")
    places: list[Place] = []
    monkeypatch.setattr(together, "_build", lambda _, place: places.append(place))

    def make(made: Path) -> None:
        made.mkdir()
        (made / "model.safetensors").write_text("whole")

    made = keys.made(keys.artifact_key(asked), make)
    assert together.build(asked, Place()) == made
    assert places == []
    (made / "model.safetensors").write_text("half")
    assert together.build(asked, Place()) == made
    assert places == [Place()]


def test_a_model_is_fine_tuned_as_a_run_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, from which what is scored is withheld; not in this one, in the open."""
    settle_in(tmp_path, monkeypatch)
    put()
    monkeypatch.setattr(together, "Executor", partial(Executor, command=WORKER))
    monkeypatch.setattr(together, "_build", lambda *_: None)
    for _ in range(2):
        together.build(cell(model=MODEL), Place())
    assert jobs() == {"training": 1}
    assert json.loads((cache.cache_root() / trained_place(MODEL) / INFO).read_text())["withheld"] is True


def test_several_processes_have_nothing_to_share_where_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["build", "model=tiny_llama", "technique=rtn"]) == 2
    assert "2 processes were started for tiny_llama-rtn-4-g64, which has no training" in capsys.readouterr().err


def test_one_cell_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "model=tiny_llama", "technique=rtn", "bits=8,4"]) == 2
    assert "2 cells are named, expected 1" in capsys.readouterr().err
