"""Building: what lies in the folder is the artifact, what lies in build.json is the truth about its making."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import build as building
from squeeze.artifacts import format as artifact
from squeeze.artifacts.build import build
from squeeze.artifacts.keys import BUILD_INFO
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models.subject import Subject
from squeeze.probes.memory import measured
from squeeze.request.cell import Cell
from squeeze.techniques import training_loop
from squeeze.techniques.training import finetune
from tests.faults.sweeps import MODEL, RUNTIME
from tests.tiny import tiny_subject

RTN = {"_target_": "rtn.RoundToNearest", "bits": 4, "group_size": 32, "symmetric": True}


def cell(*steps: dict[str, Any], dtype: str = "float32") -> Cell:
    technique = {"name": "made_up", "family": "made_up", "steps": list(steps)}
    return Cell(model={**MODEL, "dtype": dtype}, technique=technique, runtime=RUNTIME, protocol={})


def info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / BUILD_INFO).read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_without_steps_the_model_is_the_baseline(tmp_path: Path, dtype: str) -> None:
    build(cell(dtype=dtype), tmp_path, measured)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        built = artifact.load(tmp_path).model(tokens).logits
        assert torch.equal(built, tiny_subject("llama", dtype).model(tokens).logits)
    assert info(tmp_path)["dtype"] == dtype


def test_what_is_said_of_the_making(tmp_path: Path) -> None:
    build(cell(RTN), tmp_path, measured)
    said = info(tmp_path)
    assert said["content_hash"] == artifact.content_hash(tmp_path)
    assert said["claims"]["bits"] == 4
    assert set(said["stages"]) == {"load", "calibration", "compress", "save"}
    assert said["seconds"] == said["seconds_marginal"] == pytest.approx(sum(said["stages"].values()))
    assert said["peak_bytes"] > 10 * 2**20
    assert said["grid"] is None
    assert said["grid_flattered"] is False


def test_the_same_cell_gives_the_same_content(tmp_path: Path) -> None:
    for name in ("one", "two"):
        build(cell(RTN), tmp_path / name, measured)
    assert info(tmp_path / "one")["content_hash"] == info(tmp_path / "two")["content_hash"]


def test_steps_are_taken_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    class Step:
        def __init__(self, name: str):
            self.name = name

        def apply(self, subject: Subject, _: object) -> Subject:
            taken.append(self.name)
            return subject.claiming(**{self.name: len(taken)})

    monkeypatch.setattr(building, "resolve_step", lambda step: Step(step["name"]))
    build(cell({"name": "first"}, {"name": "second"}), tmp_path, measured)
    assert taken == ["first", "second"]
    assert info(tmp_path)["claims"] == {"first": 1, "second": 2}


def test_nothing_is_loaded_for_a_step_that_may_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "load_baseline", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(SqueezeError, match="refused"):
        build(cell({"_target_": "os.system", "command": "true"}), tmp_path, measured)


def test_a_killed_training_goes_on_and_its_cost_is_counted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    windows = torch.arange(128).reshape(4, 32)
    monkeypatch.setattr(building, "calibration_tokens", lambda *_: windows)
    calibration = {"corpus": "c4", "samples": 4, "window": 32, "seed": 0}
    step = {
        "_target_": "finetune.Finetune",
        "training_steps": 4,
        "windows": 1,
        "learning_rate": 0.1,
    }
    trained = replace(cell(step), calibration=calibration)
    real, done = finetune.next_token, []

    def deadly(*arguments: Any) -> torch.Tensor:
        done.append(1)
        if len(done) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(finetune, "next_token", deadly)
    with pytest.raises(KeyboardInterrupt):
        build(trained, tmp_path / "killed", measured)
    assert list((tmp_path / "cache/training").rglob("*.safetensors"))
    build(trained, tmp_path / "continued", measured)
    assert len(done) == 4 + 1
    said = info(tmp_path / "continued")
    assert said["seconds"] > said["seconds_marginal"]
    assert not list((tmp_path / "cache/training").rglob("*.safetensors"))
    build(trained, tmp_path / "whole", measured)
    assert info(tmp_path / "whole")["content_hash"] == said["content_hash"]


def test_a_refusal_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="48"):
        build(cell({**RTN, "group_size": 48}), tmp_path, measured)
