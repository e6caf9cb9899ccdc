"""Each thing that decides what a build writes moves the artifact's key; nothing else does."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from squeeze.artifacts import format as artifact
from squeeze.artifacts import keys
from squeeze.artifacts.keys import artifact_key
from squeeze.core.errors import SqueezeError
from squeeze.request.cell import Cell
from squeeze.sources import identity, sentiment
from squeeze.sources.identity import baseline_hash, calibration_hash

MODEL = {"name": "m", "source": "random:llama", "seed": 0, "kind": "causal_lm", "dtype": "float32"}
STEP = {"_target_": "rtn.RoundToNearest", "bits": 4}
CALIBRATION = {"name": "c", "corpus": "c4", "samples": 8, "window": 32, "seed": 0}
CELL = Cell(MODEL, {"name": "t", "family": "f", "steps": [STEP]}, CALIBRATION, {"device": "cpu"}, {"rounds": 5})


def with_step(**changes: Any) -> Cell:
    return replace(CELL, technique={**CELL.technique, "steps": [{**STEP, **changes}]})


@pytest.mark.parametrize(
    "other",
    [
        replace(CELL, model={**MODEL, "seed": 1}),
        replace(CELL, model={**MODEL, "source": "random:gpt2"}),
        replace(CELL, model={**MODEL, "dtype": "bfloat16"}),
        replace(CELL, model={**MODEL, "kind": "encoder"}),
        replace(CELL, calibration={**CALIBRATION, "seed": 1}),
        replace(CELL, calibration={**CALIBRATION, "corpus": "speeches"}),
        replace(CELL, calibration={**CALIBRATION, "window": 16}),
        replace(CELL, calibration={}),
        with_step(bits=3),
        with_step(_target_="hqq.HQQ"),
        with_step(seed=1),
    ],
)
def test_what_a_build_depends_on_moves_the_key(other: Cell) -> None:
    assert artifact_key(other) != artifact_key(CELL)


@pytest.mark.parametrize(
    "other",
    [
        replace(CELL, model={**MODEL, "name": "other"}),
        replace(CELL, model=dict(reversed(MODEL.items()))),
        replace(CELL, technique={**CELL.technique, "name": "other", "family": "other"}),
        replace(CELL, calibration={**CALIBRATION, "name": "other"}),
        replace(CELL, runtime={"device": "cuda"}),
        replace(CELL, protocol={"rounds": 7}),
        replace(CELL, replicate=3),
    ],
)
def test_labels_and_measuring_leave_the_key(other: Cell) -> None:
    assert artifact_key(other) == artifact_key(CELL)


def test_code_and_libraries_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = artifact_key(CELL)
    with monkeypatch.context() as patch:
        patch.setattr(keys, "code_version", lambda *_: "other code")
        assert artifact_key(CELL) != before
    monkeypatch.setattr(keys, "library_versions", lambda *_: {"torch": "9.9"})
    assert artifact_key(CELL) != before


def test_code_version_follows_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "helper.py"
    helper.write_text("value = 1\n")
    monkeypatch.setattr(keys, "closure", lambda *_: {"squeeze.helper": helper})
    before = keys.code_version.__wrapped__(("squeeze.step",))
    helper.write_text("value = 2\n")
    assert keys.code_version.__wrapped__(("squeeze.step",)) != before


def test_library_versions_name_what_builds_and_what_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = tmp_path / "step.py"
    step.write_text("import json, numpy, no_such_library, yaml\n")
    monkeypatch.setattr(keys, "closure", lambda *_: {"squeeze.step": step})
    versions = keys.library_versions.__wrapped__(("squeeze.step",))
    assert set(versions) == {"torch", "transformers", "safetensors", "numpy", "no_such_library", "yaml"}
    assert versions["no_such_library"] == "absent"
    assert versions["yaml"].startswith("PyYAML ") or versions["yaml"].startswith("pyyaml ")


def test_a_step_without_a_module_is_one_line() -> None:
    with pytest.raises(SqueezeError, match=r"'absent\.Step' is refused: squeeze/techniques has no absent\.py"):
        artifact_key(with_step(_target_="absent.Step"))


@pytest.mark.parametrize(
    "spelling", ["squeeze.techniques.rtn.RoundToNearest", "squeeze.techniques.quantization.rtn.RoundToNearest"]
)
def test_an_old_spelling_and_the_short_one_share_an_artifact(spelling: str) -> None:
    assert artifact_key(with_step(_target_=spelling)) == artifact_key(CELL)


def files_of(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The modules that the key of a cell covers, and their file names."""
    covered: list[tuple[str, ...]] = []
    with monkeypatch.context() as patch:
        patch.setattr(keys, "code_version", lambda modules: covered.append(modules) or "")
        artifact_key(cell)
    return {module: path.name for module, path in keys.source_files(covered[0]).items()}


MACHINERY = {"progress.py", "cache.py", "block_walk.py", "statistics_cache.py", "calibration.py", "training_loop.py"}


def test_the_key_of_plain_rounding_covers_what_rounds_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(replace(CELL, calibration={}), monkeypatch)
    assert len(files) <= 16
    assert not MACHINERY & set(files.values())
    assert {"rtn.py", "affine.py", "packing.py", "format.py"} <= set(files.values())


def test_the_key_of_what_is_calibrated_covers_the_walk_and_no_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_of(with_step(_target_="gptq.GPTQ"), monkeypatch)
    assert {"gptq.py", "hessian.py", "block_walk.py", "statistics_cache.py", "calibration.py"} <= set(files.values())
    assert not {"progress.py", "cache.py"} & set(files.values())


def test_the_modules_that_are_named_by_hand_are_there() -> None:
    for module in (keys.BUILDER, keys.WALK):
        assert importlib.import_module(module).__name__ == module
    assert all(find_spec(f"{keys.NO_BYTE}{name}") for name in ("progress", "cache", "errors"))


@pytest.mark.parametrize("pin", ["sha256", "wheel_sha256", "member", "revision"])
def test_every_pin_is_part_of_the_baseline(pin: str) -> None:
    model: Mapping[str, Any] = {"source": "pypi:toy==1.0", "kind": "causal_lm", "dtype": "float32", pin: "a"}
    assert baseline_hash(model) != baseline_hash({**model, pin: "b"})


def test_a_local_model_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    hashes = []
    for folder, content in [("one", b"1"), ("two", b"1"), ("three", b"2")]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.safetensors").write_bytes(content)
        hashes.append(baseline_hash({"source": f"file:{tmp_path / folder}", "kind": "causal_lm"}))
    assert hashes[0] == hashes[1] != hashes[2]
    (tmp_path / "one" / "model.safetensors").write_bytes(b"3!")
    assert baseline_hash({"source": f"file:{tmp_path / 'one'}", "kind": "causal_lm"}) != hashes[0]
    with pytest.raises(SqueezeError, match="does not exist"):
        baseline_hash({"source": f"file:{tmp_path / 'absent'}", "kind": "causal_lm"})


@pytest.mark.parametrize(
    ("module", "name", "other"),
    [(sentiment, "TRAIN_SHA256", "0" * 64), (sentiment, "LONGEST", 32), (identity, "ENCODING", identity.ENCODING + 1)],
)
def test_classes_of_sentences_and_how_these_are_encoded_move_the_key(
    module: Any, name: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_sentences = replace(CELL, calibration={**CALIBRATION, "corpus": sentiment.CORPUS})
    before = [artifact_key(each) for each in (of_sentences, CELL)]
    monkeypatch.setattr(module, name, other)
    after = [artifact_key(each) for each in (of_sentences, CELL)]
    assert (after[0] != before[0], after[1] == before[1]) == (True, True)


def test_no_calibration_has_a_hash_of_its_own() -> None:
    assert calibration_hash({}) == calibration_hash({}) != calibration_hash(CALIBRATION)


def test_keys_are_computed_without_torch() -> None:
    heavy = "{'torch', 'transformers', 'huggingface_hub'}"
    code = f"import sys, squeeze.artifacts.keys; sys.exit(not {heavy}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_artifact_is_made_once_where_its_key_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path))
    calls = []

    def make(folder: Path) -> None:
        calls.append(folder.name)
        folder.mkdir()
        (folder / keys.BUILD_INFO).write_text("{}")

    assert keys.made("k", make) == keys.made("k", make) == keys.folder("k") == tmp_path / "artifacts" / "k" / "artifact"
    assert calls == ["artifact"]


def test_what_is_known_of_a_build_is_no_part_of_an_artifact_s_content() -> None:
    assert keys.BUILD_INFO in artifact.UNHASHED
