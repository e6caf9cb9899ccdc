import sys

import pytest

import squeeze.techniques
from squeeze.artifacts.build import resolve_step
from squeeze.core.errors import SqueezeError
from squeeze.request import steps

SOURCE = """
import os
from dataclasses import dataclass, field
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
    """A module squeeze.techniques.planted, and whether it has been imported."""
    (tmp_path / "planted.py").write_text(SOURCE)
    monkeypatch.setattr(steps, "_folder", lambda: tmp_path)
    monkeypatch.setattr(squeeze.techniques, "__path__", [str(tmp_path)])
    steps.find.cache_clear()
    yield lambda: "squeeze.techniques.planted" in sys.modules
    sys.modules.pop("squeeze.techniques.planted", None)
    steps.find.cache_clear()


def step(name, **fields):
    return {"_target_": f"squeeze.techniques.planted.{name}", **fields}


def test_a_step_becomes_the_technique_that_it_names(techniques):
    made = resolve_step(step("Halve", bits=4, group_size=None))
    assert (type(made).__name__, made.bits, made.group_size) == ("Halve", 4, None)
    assert type(resolve_step(step("Double"))).__name__ == "Double"


def test_a_check_imports_nothing(techniques):
    target = steps.check_step(step("Halve", bits=4))
    assert target.fields == {"bits": True, "group_size": False, "rate": False}
    assert target.floats == {"rate"}
    assert not techniques()


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("os.system", "expected squeeze.techniques.MODULE.CLASS"),
        ("builtins.eval", "is refused"),
        ("squeeze.techniques", "is refused"),
        ("squeeze.techniques.Halve", "is refused"),
        ("squeeze.techniquesx.planted.Halve", "is refused"),
        ("squeeze.request.cell.Cell", "is refused"),
        ("squeeze.techniques.plantd.Halve", "did you mean 'squeeze.techniques.planted'?"),
        ("squeeze.techniques.planted.os.system", "no module 'squeeze.techniques.planted.os'"),
        ("squeeze.techniques.planted.torch.nn.Linear", "no module"),
        ("squeeze.techniques.../planted.Halve", "no module"),
        ("squeeze.techniques.planted.", "defines no technique"),
        ("squeeze.techniques.planted.Halv", "did you mean 'Halve'?"),
        ("squeeze.techniques.planted.os", "defines no technique"),
        ("squeeze.techniques.planted.Alias", "defines no technique"),
        ("squeeze.techniques.planted.Plain", "defines no technique"),
        ("squeeze.techniques.planted.Data", "defines no technique"),
        ("squeeze.techniques.planted.Layer", "defines no technique"),
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
    with pytest.raises(SqueezeError, match="is refused: not a technique that is defined in"):
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
