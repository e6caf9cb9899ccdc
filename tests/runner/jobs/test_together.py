"""`squeeze build` makes the artifact that `squeeze run` looks for, also in several processes that train together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from squeeze.artifacts import keys
from squeeze.cli import main
from squeeze.core import cache
from squeeze.request.expand import cells
from squeeze.sources.corpora import corpus_hash
from tests.planted import place
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


def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: list[str], count: int) -> dict[str, Any]:
    """Builds with so many processes, in a cache of its own; what build.json says, and the weights."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / f"cache_{count}"))
    for name in ("wikipedia_eval", "speeches"):  # what rows are scored on lies there: it is fetched before it is closed
        cache.sealed(
            f"corpora/{name}-{corpus_hash(name)[:16]}", lambda folder: (folder / "text.txt").write_text("A text.\n")
        )
    arguments = ["-m", "squeeze.cli", "build", *request, "--config-dir", str(tmp_path / "conf")]
    assert [process.wait(timeout=300) for process in started(count, *arguments)] == [0] * count
    (cell,) = cells(request, tmp_path / "conf")
    folder = keys.folder(keys.artifact_key(cell))
    assert not list(folder.parent.parent.glob(".*rank*")), "what the others made is gone"
    assert not list(cache.cache_root().joinpath("training").rglob("*.safetensors"))
    return {**json.loads((folder / keys.BUILD_INFO).read_text()), "weights": load_file(folder / "model.safetensors")}


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


def test_several_processes_have_nothing_to_share_where_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["build", "model=tiny_llama", "technique=rtn"]) == 2
    assert "2 processes were started for tiny_llama-rtn-4-g64, which has no training" in capsys.readouterr().err


def test_one_cell_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "model=tiny_llama", "technique=rtn", "bits=8,4"]) == 2
    assert "2 cells are named, expected 1" in capsys.readouterr().err
