"""One table serves checks, labels, listings and leaderboards: a new axis is an entry there, and a line in config."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from squeeze.boards.table import COLUMNS
from squeeze.core import paths
from squeeze.core.errors import SqueezeError
from squeeze.request import axes
from squeeze.request.cell import Cell
from squeeze.request.choices import Choices
from squeeze.request.expand import cells
from tests.planted import place
from tests.plugins import install

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "results" / "published").glob("*/records/*.json"))

FACTORS = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Factors:
    width: int
    def apply(self, subject, calibration): ...
"""

NEW_AXIS = """
import sys
from pathlib import Path
from typing import Any
from squeeze.request import axes

width = axes.Axis(
    "width", axes.POSITIVE, "of the factors", label=lambda value, _: f"width{value}", heading="width",
    column="factor_width",
)
axes.AXES = (*axes.AXES, width)

import pytest
from squeeze.boards.table import table
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Estimate
from squeeze.request.expand import cells
from squeeze.runner import listing
from tests.fabricated import record

conf = Path(sys.argv[1])  # with a config.yaml that has the line `width: 8`
found = cells(["model=tiny_llama", "technique=factors", "width=8,16"], conf)
assert [cell.label for cell in found] == ["tiny_llama-factors-width8", "tiny_llama-factors-width16"], found
with pytest.raises(SqueezeError, match="width: 0 is not allowed; expected an integer of at least 1"):
    cells(["model=tiny_llama", "technique=factors", "width=0"], conf)
listing.show(found, {}, {cell.key: 1.0 for cell in found})
frame = table([record(found[0], {"perplexity": Estimate(20.0)})])
assert list(frame["factor_width"]) == [8], frame
assert list(frame["rank"].isna()) == [True]
"""


def test_a_new_axis_is_one_entry_and_one_line(tmp_path: Path) -> None:
    shutil.copytree(paths.conf(), tmp_path / "conf")
    with (tmp_path / "conf" / "config.yaml").open("a") as config:
        config.write("width: 8\n")
    place(tmp_path / "conf", "technique", "factors",
          "family: pruning\nsteps:\n- _target_: mine:factors.Factors\n  width: ${width}\n")  # fmt: skip
    install(tmp_path / "site", "mine", {"techniques/factors.py": FACTORS})
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", NEW_AXIS, tmp_path / "conf"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert header[:5] == ["cell", "bits", "sparsity", "group", "width"]
    assert [row[4] for row in rows] == ["8", "16"]


def test_no_two_axes_share_a_column() -> None:
    assert len(COLUMNS) == len(set(COLUMNS))
    assert {"bits", "sparsity", "group_size"} <= set(COLUMNS)


def test_the_table_and_config_name_the_same_scalars() -> None:
    scalars = Choices((paths.conf(),)).scalars
    assert scalars.keys() == {axis.name for axis in axes.AXES}
    for axis in axes.AXES:
        assert axis.rule.holds(scalars[axis.name]), axis.name


def test_an_axis_is_a_field_of_what_its_kind_says() -> None:
    (cell,) = cells(["model=tiny_llama", "technique=rtn"])
    holders = {axes.MODEL: cell.model, axes.RUNTIME: cell.runtime, axes.CELL: cell.to_json()}
    assert all(axis.name in holders[axis.kind] for axis in axes.AXES if axis.kind != axes.STEP)
    assert cell.step_values.keys() == axes.of_steps() & cell.technique["steps"][0].keys()


def test_a_field_of_a_step_that_has_another_axiss_name_is_not_taken_for_it() -> None:
    step = {"_target_": "rtn.RoundToNearest", "bits": 4, "dtype": "float16", "replicate": 3}
    cell = Cell({"name": "m", "dtype": "float32"}, {"name": "t", "family": "f", "steps": [step]})
    assert cell.label == "m-t-4"


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({}, "m-distil"),
        ({"alpha": 0.0}, "m-distil-a0"),
        ({"divergence": "reverse", "temperature": 2.5}, "m-distil-reverse-t2.5"),
        ({"divergence": "jsd", "alpha": 0.9}, "m-distil-jsd-a0.9"),
    ],
)
def test_students_are_told_apart_by_what_they_learn_from(fields: dict[str, Any], label: str) -> None:
    step = {
        "_target_": "distillation.Distillation",
        "divergence": "forward",
        "temperature": 1.0,
        "alpha": 1.0,
        **fields,
    }
    cell = Cell({"name": "m", "dtype": "float32"}, {"name": "distil", "family": "training", "steps": [step]})
    assert cell.label == label


def test_an_alpha_that_is_no_teachers_share_is_in_no_label() -> None:
    (cell,) = cells(["model=tiny_llama", "technique=smoothquant", "technique.steps.0.alpha=0.7"])
    assert cell.label == "tiny_llama-smoothquant"


def test_every_axis_says_what_it_means() -> None:
    rows = {name: rest for name, *rest in axes.described({"bits": 4, "replicate": 0, "symmetric": True})}
    assert rows["bits"][:2] == ["4", "an integer from 1 to 16"]
    assert (rows["replicate"][0], rows["symmetric"][0], rows["group_size"][0]) == ("0", "true", "null")
    assert all(meaning for *_, meaning in rows.values())


def test_the_share_of_blocks_that_stay_is_in_the_label() -> None:
    found = cells(["model=tiny_llama", "technique=layer_drop", "layers_kept=0.75,1"])
    assert [cell.label for cell in found] == ["tiny_llama-layer_drop-layers0.75", "tiny_llama-layer_drop-layers1"]
    with pytest.raises(SqueezeError, match="layers_kept: 0 is not allowed; expected a number above 0, at most 1"):
        cells(["model=tiny_llama", "technique=layer_drop", "layers_kept=0"])


def test_so_is_the_share_of_hidden_dimensions() -> None:
    found = cells(["model=tiny_llama", "technique=slicegpt,wanda", "hidden_kept=0.75,0.9"])
    assert [cell.label for cell in found if cell.technique["name"] == "slicegpt"] == [
        "tiny_llama-slicegpt-hidden0.75",
        "tiny_llama-slicegpt-hidden0.9",
    ]
    assert len(found) == 3


@pytest.mark.parametrize(
    ("technique", "axis", "label"),
    [
        ("neurons", "neurons_kept", "neurons0.9"),
        ("heads", "heads_kept", "heads0.9"),
        ("flap", "weights_kept", "kept0.9"),
    ],
)
def test_so_are_those_of_neurons_heads_and_weights(technique: str, axis: str, label: str) -> None:
    (cell,) = cells(["model=tiny_llama", f"technique={technique}", f"{axis}=0.9"])
    assert cell.label == f"tiny_llama-{technique}-{label}"
    with pytest.raises(SqueezeError, match=f"{axis}: 1.5 is not allowed; expected a number above 0, at most 1"):
        cells(["model=tiny_llama", f"technique={technique}", f"{axis}=1.5"])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_published_labels_have_not_changed(path: Path) -> None:
    label = Cell.from_json(json.loads(path.read_text())["cell"]).label
    assert path.stem.rpartition("-")[0] == label
