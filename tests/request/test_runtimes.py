"""A runtime has the fields of its class and no others, with values that it has code for: said when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from squeeze.core.errors import SqueezeError
from squeeze.request.choices import Choices
from squeeze.request.expand import cells
from squeeze.request.runtimes import check_fields
from squeeze.runtimes import attention, contract
from tests.foreign import offer

NAMES = Choices.within(None).names("runtime")
ASKED = ["model=tiny_llama", "technique=none", "device=cpu", "threads=1"]
MACHINE = {"name": "own", "device": "cpu", "threads": 1}


@pytest.mark.parametrize("name", NAMES)
def test_every_choice_is_what_its_class_takes(name: str) -> None:
    [cell] = cells([*ASKED, f"runtime={name}"])
    made = contract.of(cell.runtime)
    assert {field: getattr(made, field) for field in cell.runtime if field not in contract.NO_FIELDS} == {
        field: value for field, value in cell.runtime.items() if field not in contract.NO_FIELDS
    }


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ("runtime=lean +runtime.attention=sdpa", "unknown field 'runtime.attention' of lean.Lean"),
        ("runtime=compile +runtime.weights=int8", "unknown field 'runtime.weights' of compiled.Compiled"),
        ("+runtime.weigths=int8 runtime=openvino", "of openvino.OpenVINO; did you mean 'weights'?"),
        (
            "runtime=openvino ~runtime.weights",
            "runtime.weights is missing: openvino.OpenVINO needs it; its fields: de",
        ),
        (
            "runtime=openvino runtime.weights=int2",
            "runtime.weights: 'int2' is not allowed; expected one of stored, in",
        ),
        ("runtime=onnx runtime.activations=4", "runtime.activations: 4 is not allowed; expected one of float, int8"),
        ("runtime=static_cache runtime.cache=null", "runtime.cache: None is not allowed; expected one of dynamic, st"),
        ("runtime._target_=eager.Eagre", "defines no runtime 'Eagre'; did you mean 'Eager'?"),
        ("runtime._target_=eager.EagerEngine", "defines no runtime 'EagerEngine'"),
        ("runtime._target_=eger.Eager", "squeeze/runtimes has no eger.py; did you mean 'eager'?"),
        ("runtime._target_=os.System", "runtime._target_: 'os.System' is refused"),
    ],
)
def test_anything_else_is_refused_in_one_line(overrides: str, reason: str) -> None:
    with pytest.raises(SqueezeError) as refused:
        cells([*ASKED, *overrides.split()])
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_field_with_a_default_may_be_added_and_left_out() -> None:
    assert len(cells([*ASKED, "runtime=eager", "+runtime.attention=eager,sdpa,null"])) == 3
    [cell] = cells([*ASKED, "runtime=attention", "~runtime.attention"])
    assert cell.is_eager


def test_attention_is_what_there_is_code_for() -> None:
    for implementation in get_args(attention.Implementation):
        assert cells([*ASKED, "runtime=attention", f"runtime.attention={implementation}"])


def test_a_plugins_runtime_is_checked_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = offer(tmp_path / "site", monkeypatch, {"toy": "toy-engine==1.0"})
    own = {**MACHINE, "_target_": "toys:toy.Toy"}
    check_fields(own)
    (folder / "runtimes" / "toy.py").write_text("import nothing_of_that_name\n\n" + source("size: int", "mode: str"))
    with pytest.raises(SqueezeError, match=r"runtime\.size is missing: toys:toy\.Toy needs it"):
        check_fields(own)
    check_fields({**own, "size": 3, "mode": "any"})
    with pytest.raises(SqueezeError, match=r"runtime\.mode: \[\] is not allowed; expected"):
        check_fields({**own, "size": 3, "mode": []})


def source(*fields: str) -> str:
    lines = ["from dataclasses import dataclass", "", "@dataclass", "class Toy:", "    device: str", "    threads: int"]
    return "\n".join([*lines, *(f"    {field}" for field in fields), "    def load(self, folder): ...", ""])
