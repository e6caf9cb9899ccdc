import json
import sys
from pathlib import Path

import pytest
import yaml

from squeeze.artifacts.build import resolve_step
from squeeze.core import paths, plugins
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.request import steps
from squeeze.request.expand import cells
from tests.planted import place, planned
from tests.plugins import install

RESULTS = Path(__file__).resolve().parents[2] / "results"

SOURCE = """
import os
from dataclasses import dataclass, field
from typing import Literal
import dataclasses
import torch

@dataclass(frozen=True)
class Halve:
    "Halves."
    bits: int
    group_size: int | None = 64
    rate: float = 1.0
    def apply(self, subject, calibration):
        return subject

@dataclasses.dataclass
class Double:
    def apply(self, subject, calibration):
        return subject

@dataclass
class Choosy:
    bits: Literal[8, 4]
    only: Literal["one"] = "one"
    group_size: Literal[32, 64] | None = None
    free: Literal[1] | int = 5
    flag: Literal[True] = True
    def apply(self, subject, calibration):
        return subject

class Plain:
    def apply(self, subject, calibration):
        return subject

@dataclass
class Data:
    bits: int

class Layer(torch.nn.Linear):
    pass

@dataclass
class Swapped:
    def apply(self, subject, calibration):
        return subject

Alias = Halve
Swapped = os.system
"""


@pytest.fixture
def techniques(tmp_path, monkeypatch):
    """A plugin's techniques, and whether they have been imported."""
    install(tmp_path, "mine", {"techniques/halving.py": SOURCE, "techniques/pruning/deep.py": SOURCE}, "mine_package")
    monkeypatch.syspath_prepend(tmp_path)
    steps.find.cache_clear()
    yield lambda: "mine_package" in sys.modules
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine_package"]:
        del sys.modules[name]
    steps.find.cache_clear()


def step(name, **fields):
    return {"_target_": f"mine:halving.{name}", **fields}


def published_steps():
    texts = (path.read_text() for path in (RESULTS / "published").glob("*/records/*.json"))
    return [step for text in texts for step in json.loads(text)["cell"]["technique"]["steps"]]


def test_file_names_are_unique_over_all_families():
    names = [path.stem for path in plugins.modules("techniques").values()]
    assert sorted(names) == sorted(set(names))
    assert "gptq" in names
    assert not {"contract", "losses", "block_walk"} & set(names), "machinery, which lies beside the families"


def test_what_is_published_still_names_its_technique():
    published = published_steps()
    assert len(published) > 30
    for step in published:
        made = type(resolve_step(step))
        assert plugins.name_of(made) == steps.find(step["_target_"]).found.name
        assert step["_target_"].endswith(plugins.name_of(made))


@pytest.mark.parametrize(
    "spelling",
    ["gptq.GPTQ", "squeeze.techniques.gptq.GPTQ", "squeeze.techniques.quantization.gptq.GPTQ"],
)
def test_every_spelling_of_a_technique_is_one_cell(tmp_path, spelling):
    text = (paths.conf() / "technique" / "gptq.yaml").read_text()
    place(tmp_path, "technique", "mine", text.replace("name: gptq", "name: mine").replace("gptq.GPTQ", spelling))
    (cell,) = cells(["model=tiny_llama", "technique=mine"], tmp_path)
    assert cell.technique["steps"][0]["_target_"] == "gptq.GPTQ"
    assert cell.key == cells(["model=tiny_llama", "technique=gptq"])[0].key


def test_the_family_of_every_choice_is_a_folder_or_says_why_there_is_none():
    folders = {path.name for path in (paths.PACKAGE / "techniques").iterdir() if any(path.glob("[!_]*.py"))}
    assert {"quantization", "pruning", "training", "inference"} <= folders
    for path in (paths.conf() / "technique").glob("*.yaml"):
        choice = yaml.safe_load(path.read_text())
        assert choice["family"] in folders | {*steps.NO_FOLDER}, path
        for each in choice["steps"]:
            assert choice["family"] in (steps.find(each["_target_"]).family, steps.TRAINING, *steps.NO_FOLDER), path


@pytest.mark.parametrize(
    ("family", "target", "reason"),
    [
        ("prunning", "mine:halving.Double", "'prunning' is not allowed; did you mean 'pruning'?"),
        ("quantization", "mine:deep.Double", "expected 'pruning', where mine:deep.Double lies, or 'combined'"),
        ("quantization", "magnitude.Magnitude, sparsity: 0.5", "expected 'pruning', where magnitude.Magnitude"),
    ],
)
def test_another_family_is_refused(own, techniques, family, target, reason):
    place(own, "technique", "odd", f"family: {family}\nsteps:\n- {{_target_: {target}}}")
    with pytest.raises(SqueezeError) as caught:
        planned(own, "technique=odd")
    assert reason in str(caught.value)
    place(own, "technique", "odd", f"family: combined\nsteps:\n- {{_target_: {target}}}")
    assert planned(own, "technique=odd")


def test_a_recipe_of_several_folders_is_training_where_a_step_of_it_trains(own, techniques):
    train = "{_target_: finetune.Finetune, training_steps: 2, windows: 1, learning_rate: 0.1}"
    text = "family: training\ncalibrated: true\nsteps:\n- {_target_: 'mine:deep.Double'}\n- "
    place(own, "technique", "chain", text + train)
    (cell,) = planned(own, "technique=chain")
    assert cell.technique["family"] == "training"
    assert cell.training is not None
    place(own, "technique", "chain", text + "{_target_: magnitude.Magnitude, sparsity: 0.5}")
    with pytest.raises(SqueezeError, match="'training' is not allowed; expected 'pruning'"):
        planned(own, "technique=chain")
    place(own, "technique", "chain", text.replace("training", "pruning") + train)
    with pytest.raises(SqueezeError, match="'pruning' is not allowed; expected 'training'"):
        planned(own, "technique=chain")


def test_a_step_becomes_the_technique_that_it_names(techniques):
    made = resolve_step(step("Halve", bits=4, group_size=None))
    assert (type(made).__name__, made.bits, made.group_size) == ("Halve", 4, None)
    assert type(resolve_step(step("Double"))).__name__ == "Double"


def test_a_check_imports_nothing(techniques):
    target = steps.check_step(step("Halve", bits=4))
    assert target.fields == {"bits": True, "group_size": False, "rate": False}
    assert target.floats == {"rate"}
    assert not techniques()


def test_what_a_field_is_declared_to_allow_is_read_without_an_import(techniques):
    target = steps.check_step(step("Choosy", bits=4, group_size=None, free=7))
    assert target.allowed == {"bits": (8, 4), "only": ("one",), "group_size": (32, 64, None), "flag": (True,)}
    assert not techniques()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bits": 5}, "step.bits: 5 is not allowed; mine:halving.Choosy has code for 8, 4"),
        ({"bits": 4.0}, "step.bits: 4.0 is not allowed"),
        ({"bits": 8, "group_size": 16}, "step.group_size: 16 is not allowed; .* has code for 32, 64, null"),
        ({"bits": 8, "only": "two"}, "step.only: 'two' is not allowed; .* has code for one"),
        ({"bits": 8, "flag": 1}, "step.flag: 1 is not allowed"),
    ],
)
def test_a_value_that_there_is_no_code_for_is_unsupported_with_those_that_there_are(techniques, fields, reason):
    with pytest.raises(Unsupported, match=reason):
        steps.check_step(step("Choosy", **fields))


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "is refused: squeeze/techniques has no os.py"),
        ("posix:os.system", "no plugin 'posix' is installed"),
        (":gptq.GPTQ", "expected FILE.CLASS of squeeze/techniques, or PLUGIN:FILE.CLASS"),
        ("gptq", "expected FILE.CLASS"),
        ("gptq.", "expected FILE.CLASS"),
        ("../gptq.GPTQ", "expected FILE.CLASS"),
        ("gptq.os.system", "expected FILE.CLASS"),
        ("gptq.torch", "defines no technique"),
        ("gptq.Subject", "defines no technique"),
        ("contract.Technique", "has no contract.py"),
        ("calibration.CalibrationText", "has no calibration.py"),
        ("builtins.eval", "is refused"),
        ("squeeze.techniques", "is refused"),
        ("squeeze.techniques.Halve", "is refused"),
        ("squeeze.techniquesx.gptq.GPTQ", "is refused"),
        ("squeeze.request.cell.Cell", "is refused"),
        ("squeeze.techniques.gptqq.GPTQ", "has no gptqq.py; did you mean 'gptq'?"),
        ("squeeze.techniques.gptq.os.system", "has no os.py"),
        ("squeeze.techniques.gptq.torch.nn.Linear", "is refused"),
        ("squeeze.techniques.../gptq.GPTQ", "is refused"),
        ("squeeze.techniques.gptq.", "is refused"),
        ("squeeze.techniques.mine:halving.Halve", "is refused"),
        ("mine:halvin.Halve", "has no halvin.py; did you mean 'halving'?"),
        ("mine_package:halving.Halve", "no plugin 'mine_package' is installed; choose from: mine"),
        ("mine:halving.os.system", "expected FILE.CLASS"),
        ("mine:../halving.Halve", "expected FILE.CLASS"),
        ("mine:halving.Halv", "did you mean 'Halve'?"),
        ("mine:halving.os", "defines no technique"),
        ("mine:halving.Alias", "defines no technique"),
        ("mine:halving.Plain", "defines no technique"),
        ("mine:halving.Data", "defines no technique"),
        ("mine:halving.Layer", "defines no technique"),
        (3, "expected _target_"),
        (None, "expected _target_"),
    ],
)
def test_only_techniques_of_our_own_pass_and_nothing_is_imported_to_find_out(techniques, target, reason):
    with pytest.raises(SqueezeError) as caught:
        resolve_step({"_target_": target})
    assert reason in str(caught.value)
    assert not techniques()


@pytest.mark.promise(15)
def test_a_name_that_the_module_gives_to_something_else_is_refused_and_not_called(techniques):
    with pytest.raises(SqueezeError, match=r"is refused: .* defines no class 'Swapped'"):
        resolve_step(step("Swapped"))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"bitz": 4}, "Halve has no field 'bitz'; did you mean 'bits'?"),
        ({}, "Halve needs bits; its fields: bits, group_size, rate"),
        ({"bits": 4, "apply": 1}, "Halve has no field 'apply'"),
    ],
)
def test_fields_are_those_of_the_dataclass(techniques, fields, reason):
    with pytest.raises(SqueezeError) as caught:
        resolve_step(step("Halve", **fields))
    assert reason in str(caught.value)
