"""Building: what lies in the folder is the artifact, what lies in build.json is the truth about its making."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import build as building
from squeeze.artifacts import format as artifact
from squeeze.artifacts import step_by_step
from squeeze.artifacts.build import build
from squeeze.artifacts.keys import BUILD_INFO
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import float_linears
from squeeze.models.subject import Subject
from squeeze.probes.memory import measured
from squeeze.request.cell import Cell
from squeeze.sources import sentiment
from squeeze.techniques import training_loop
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.statistics_cache import StatisticsCache
from squeeze.techniques.training import finetune
from tests import snippets
from tests.dying import dies_at
from tests.faults.sweeps import MODEL, RUNTIME
from tests.snippets import TRAIN, put
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
    monkeypatch.setattr(building, "calibration_windows", lambda *_: (windows, windows[:0]))
    calibration = {"corpus": "c4", "samples": 4, "window": 32, "seed": 0}
    step = {
        "_target_": "finetune.Finetune",
        "training_steps": 4,
        "windows": 1,
        "learning_rate": 0.1,
    }
    trained = replace(cell(step), calibration=calibration)
    done = dies_at(monkeypatch, finetune, "next_token", 4)
    with pytest.raises(KeyboardInterrupt):
        build(trained, tmp_path / "killed", measured)
    assert list((tmp_path / "cache/training").rglob("*.safetensors"))
    build(trained, tmp_path / "continued", measured)
    assert len(done) == 4 + 1
    said = info(tmp_path / "continued")
    assert said["seconds"] > said["seconds_marginal"]
    assert list((tmp_path / "cache/training").iterdir()) == []
    build(trained, tmp_path / "whole", measured)
    assert info(tmp_path / "whole")["content_hash"] == said["content_hash"]


def test_a_refusal_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="48"):
        build(cell({**RTN, "group_size": 48}), tmp_path, measured)


TRAINED = {"_target_": "finetune.Finetune", "training_steps": 4, "windows": 1, "learning_rate": 0.01}
CALIBRATION = {"corpus": "c4", "samples": 4, "window": 32, "seed": 0}


@pytest.fixture
def windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The windows of the calibration text, and those that are held out."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    drawn = torch.randint(256, (6, 32), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(building, "calibration_windows", lambda *_: (drawn[:4], drawn[4:]))
    return drawn[:4], drawn[4:]


def calibrated(*steps: dict[str, Any]) -> Cell:
    return replace(cell(*steps), calibration=CALIBRATION)


@torch.no_grad()
def perplexity_of(model: torch.nn.Module, rows: torch.Tensor) -> float:
    logits = model(rows).logits[:, :-1].flatten(0, 1)
    return float(torch.nn.functional.cross_entropy(logits, rows[:, 1:].flatten()).exp())


def test_the_quality_after_each_step_is_told(tmp_path: Path, windows: tuple[torch.Tensor, torch.Tensor]) -> None:
    chain, alone, plain = (tmp_path / name for name in ("chain", "alone", "plain"))
    build(calibrated(TRAINED, {**RTN, "bits": 2}), chain, measured)
    build(calibrated(TRAINED), alone, measured)
    build(calibrated(RTN), plain, measured)
    found = info(chain)["steps"]
    assert [step["step"] for step in found] == ["none", "finetune.Finetune", "rtn.RoundToNearest"]
    models = [tiny_subject("llama").model, artifact.load(alone).model, artifact.load(chain).model]
    expected = [perplexity_of(model, windows[1][1:]) for model in models]
    assert [step["perplexity_held_out"] for step in found] == pytest.approx(expected, rel=1e-3)
    assert len({*expected}) == 3
    assert info(alone)["steps"] == found[:2]
    looks = [(step, math.exp(held_out)) for step, _, held_out in info(alone)["training"][0]["curve"] if held_out]
    seen = [perplexity_of(model, windows[1][:1]) for model in models[:2]]
    assert looks == [(0, pytest.approx(seen[0], rel=1e-3)), (4, pytest.approx(seen[1], rel=1e-3))], "at other text"
    assert info(plain).keys().isdisjoint({"steps", "training"}), "of one step that does not train, the row says it"


def test_of_a_classifier_the_accuracy_after_each_step_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    snippets.put(held_out=snippets.TRAIN)
    taught = {"_target_": "finetune_classifier.FinetuneClassifier", "training_steps": 40, "windows": 6}
    text = {**CALIBRATION, "corpus": sentiment.CORPUS, "samples": 1}
    model = {"name": "tiny", "source": "random:bert", "seed": 0, "kind": "classifier", "dtype": "float32"}
    steps = [{**taught, "learning_rate": 0.003}, {**RTN, "bits": 2}]
    for name, number in (("alone", 1), ("chain", 2)):
        asked = replace(cell(*steps[:number]), model=model, calibration=text)
        build(asked, tmp_path / name, measured)
    found = info(tmp_path / "chain")["steps"]
    assert [step["step"] for step in found] == ["none", "finetune_classifier.FinetuneClassifier", "rtn.RoundToNearest"]
    built = [artifact.load(tmp_path / name, prepare=False) for name in ("alone", "chain")]
    subjects = [tiny_subject("bert_classifier"), *built]
    expected = [step_by_step.accuracy(each.model, snippets.labelled(each)) for each in subjects]
    assert [step["accuracy_held_out"] for step in found] == expected
    assert expected[0] < expected[1] == 1
    assert info(tmp_path / "alone")["steps"] == found[:2]


class Meter:
    """Counts two joules each time that it is stopped."""

    def __init__(self, device: str) -> None:
        assert device == "cpu"
        self.joules: float | None = 0.0

    def start(self) -> None: ...

    def stop(self) -> None:
        assert self.joules is not None
        self.joules += 2.0


def test_what_training_took_is_told(tmp_path: Path, windows: tuple[torch.Tensor, torch.Tensor]) -> None:
    build(calibrated(TRAINED, RTN), tmp_path, measured, counted=Meter)
    [found] = info(tmp_path)["training"]
    seconds, curve = found.pop("seconds"), found.pop("curve")
    assert 0 < seconds < info(tmp_path)["stages"]["compress"]
    assert [step for step, _, _ in curve] == [0, 1, 2, 3, 4]
    assert found == {
        "step": "finetune.Finetune",
        "steps": 4,
        "tokens": 4 * 32,
        "parameters": info(tmp_path)["claims"]["trainable_parameters"],
        "share": None,
        "joules": 6.0,  # up to each of two looks at held-out text, and to the end
        "processes": 1,
    }
    names = [step["step"] for step in info(tmp_path)["steps"]]
    assert names == ["none", "finetune.Finetune", "rtn.RoundToNearest"]


def test_a_machine_that_counts_no_energy_says_so(tmp_path: Path, windows: tuple[torch.Tensor, torch.Tensor]) -> None:
    build(calibrated(TRAINED), tmp_path, measured)
    assert info(tmp_path)["training"][0]["joules"] is None


def test_a_model_that_predicts_nothing_any_more_has_no_perplexity(
    tmp_path: Path, windows: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_by_step, "next_token", lambda *_: torch.tensor(1e4))
    build(calibrated(TRAINED, RTN), tmp_path, measured)
    assert [step["perplexity_held_out"] for step in info(tmp_path)["steps"]] == [None] * 3


def test_steps_are_given_held_out_windows_and_the_uncompressed_model(
    windows: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    subject = tiny_subject("llama")
    given = building.calibration(calibrated(TRAINED), subject, "cpu", StatisticsCache(tmp_path))
    assert torch.equal(given.token_ids, windows[0])
    assert torch.equal(given.held_out, windows[1])
    teacher = given.baseline()
    assert teacher is not subject.model
    assert not teacher.training
    state = subject.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in teacher.state_dict().items())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_sentences_have_classes_for_classifiers_alone(
    windows: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    """A tokenizer without a token to pad with reads windows of the same corpus."""
    put()
    asked = replace(calibrated(RTN), calibration={**CALIBRATION, "corpus": sentiment.CORPUS})
    causal = tiny_subject("llama")
    causal.tokenizer.pad_token = None
    given = building.calibration(asked, causal, "cpu", StatisticsCache(tmp_path))
    assert torch.equal(given.token_ids, windows[0])
    assert given.labelled is None
    classifier = replace(asked, model={**MODEL, "source": "random:bert", "kind": "classifier"})
    labelled = building.calibration(
        classifier, tiny_subject("bert_classifier"), "cpu", StatisticsCache(tmp_path)
    ).labelled
    assert labelled is not None
    assert len(labelled.labels) == len(TRAIN)


def test_a_training_in_the_open_is_not_gone_on_with_where_what_is_scored_is_withheld(
    tmp_path: Path, windows: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(building, "calibration_windows", lambda *_: (windows[0], windows[1][:0]))
    done = dies_at(monkeypatch, finetune, "next_token", 4)
    with pytest.raises(KeyboardInterrupt):
        build(calibrated(TRAINED), tmp_path / "open", measured)
    build(calibrated(TRAINED), tmp_path / "withheld", measured, withheld=True)
    assert len(done) == 4 + 4
    build(calibrated(TRAINED), tmp_path / "open_again", measured)
    assert len(done) == 4 + 4 + 1


def on_a_grid(*_: object) -> Subject:
    """Floats that lie on 16 points in each group of 32."""
    subject = RoundToNearest(4, 32, symmetric=False).apply(tiny_subject("llama"), CalibrationText.empty())
    float_linears(subject.model)
    return replace(subject, claims={})


def test_a_grid_that_training_has_left_flatters_no_later_step(
    tmp_path: Path, windows: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that trains on rounded weights begins on the grid, and may end there."""
    monkeypatch.setattr(building, "load_baseline", on_a_grid)
    codes = {"bits": 4, "group_size": 32}
    schedule = {name: value for name, value in TRAINED.items() if name != "_target_"}
    options = {"symmetric": False, "learned_step": False, "temperature": 1.0}
    solved = {"_target_": "hqq.HQQ", **codes}
    at_once = {"_target_": "qat.QAT", **codes, **options, **schedule}
    said = []
    for number, steps in enumerate(([solved], [TRAINED, solved], [at_once])):
        build(calibrated(*steps), tmp_path / str(number), measured)
        said.append(info(tmp_path / str(number)))
    assert all(each["grid"]["levels"] <= 16 for each in said), "of the baseline"
    assert [each["grid_flattered"] for each in said] == [True, False, True]
