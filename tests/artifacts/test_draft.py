"""A draft is an artifact like any other, built by itself, and then a part of the artifact that it guesses for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts import keys
from squeeze.artifacts.build import build
from squeeze.artifacts.keys import BUILD_INFO, artifact_key
from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.layers.drafting import ByModel
from squeeze.layers.quantized import QuantizedLinear
from squeeze.probes import size
from squeeze.probes.memory import measured
from squeeze.request.cell import Cell
from squeeze.runner.in_process import artifact_of
from tests.faults.sweeps import MODEL, RUNTIME

RTN = {"_target_": "rtn.RoundToNearest", "bits": 4, "group_size": 32, "symmetric": True}
SPECULATIVE = {"_target_": "speculative.Speculative", "drafted_tokens": 4}


def cell(*steps: dict[str, Any], draft: list[dict[str, Any]] | None = None) -> Cell:
    technique = {"name": "made_up", "family": "made_up", "steps": list(steps)}
    if draft is not None:
        technique["draft"] = draft
    return Cell(model={**MODEL, "dtype": "float32"}, technique=technique, runtime=RUNTIME, protocol={})


DRAFTING = cell(SPECULATIVE, draft=[RTN])


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path) -> Iterator[None]:
    with cache.using(tmp_path / "cache"):
        yield


def info(folder: Path) -> dict[str, Any]:
    return json.loads((folder / BUILD_INFO).read_text())  # type: ignore[no-any-return]


def test_its_artifact_is_that_of_a_row_of_the_same_technique() -> None:
    assert DRAFTING.draft is not None
    assert artifact_key(DRAFTING.draft) == artifact_key(cell(RTN))


def test_what_guesses_is_part_of_the_key_and_no_cell_without_has_another_than_before() -> None:
    others = [
        cell(SPECULATIVE, draft=[{**RTN, "bits": 3}]),
        cell({**SPECULATIVE, "drafted_tokens": 5}, draft=[RTN]),
        cell(SPECULATIVE),
    ]
    assert len({artifact_key(each) for each in (*others, DRAFTING)}) == 4
    assert artifact_key(cell(RTN, draft=[])) == artifact_key(cell(RTN))


def test_it_is_built_first_and_once_for_whatever_it_guesses_for(tmp_path: Path) -> None:
    assert DRAFTING.draft is not None
    folder = artifact_of(DRAFTING)
    own = keys.folder(artifact_key(DRAFTING.draft))
    made = (own / "model.safetensors").stat().st_mtime_ns
    artifact_of(cell({**SPECULATIVE, "drafted_tokens": 5}, draft=[RTN]))
    assert (own / "model.safetensors").stat().st_mtime_ns == made
    assert artifact_of(cell(RTN)) == own
    for name in ("model.safetensors", "artifact.json"):
        assert (folder / "draft" / name).read_bytes() == (own / name).read_bytes()
    assert not (folder / "draft" / BUILD_INFO).exists()


def test_the_artifact_has_both_models(tmp_path: Path) -> None:
    loaded = artifact.load(artifact_of(DRAFTING))
    assert loaded.draft is not None
    assert loaded.draft.how == ByModel(4)
    assert loaded.draft.subject is not None
    kinds = [{type(module) for module in each.model.modules()} for each in (loaded, loaded.draft.subject)]
    assert [QuantizedLinear in each for each in kinds] == [False, True]
    assert loaded.draft.subject.claims["bits"] == 4
    assert "bits" not in loaded.claims
    text = torch.arange(12)[None]
    with torch.inference_mode():
        assert torch.equal(loaded.model(text).logits, artifact.load(artifact_of(cell())).model(text).logits)


def test_what_it_took_is_told_and_counts(tmp_path: Path) -> None:
    said = info(artifact_of(DRAFTING))
    assert DRAFTING.draft is not None
    of_draft = info(keys.folder(artifact_key(DRAFTING.draft)))
    assert said["draft"]["content_hash"] == of_draft["content_hash"]
    assert said["draft"]["claims"]["bits"] == 4
    assert said["seconds"] == pytest.approx(said["seconds_marginal"] + of_draft["seconds"])
    assert "draft" not in info(artifact_of(cell(RTN)))


def test_codes_that_a_grid_flatters_flatter_the_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = artifact_of(DRAFTING)
    assert info(folder)["grid_flattered"] is False
    assert DRAFTING.draft is not None
    path = keys.folder(artifact_key(DRAFTING.draft)) / BUILD_INFO
    path.write_text(json.dumps({**json.loads(path.read_text()), "grid_flattered": True}))
    build(DRAFTING, folder.parent / "again", measured)
    assert info(folder.parent / "again")["grid_flattered"] is True


def test_a_draft_that_is_not_built_is_missed(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"no readable artifact\.json"):
        build(DRAFTING, tmp_path / "made", measured)
    with pytest.raises(SqueezeError, match="names no draft, expected steps that make one"):
        build(cell(SPECULATIVE), tmp_path / "made", measured)


def test_its_bytes_count_as_weights(tmp_path: Path) -> None:
    alone, drafting = artifact_of(cell()), artifact_of(DRAFTING)
    found, without = (size.figures(folder, alone) for folder in (drafting, alone))
    guessing = drafting / "draft"
    assert found["draft_bytes"] == sum(path.stat().st_size for path in guessing.iterdir()) > 0
    beside = sum((guessing / name).stat().st_size for name in ("artifact.json", "config.json"))
    described = (drafting / "artifact.json").stat().st_size - (alone / "artifact.json").stat().st_size
    assert found["bytes"] == without["bytes"] + found["draft_bytes"] + described
    assert beside < found["draft_bytes"]
    assert found["effective_bits"] > without["effective_bits"] + 4
    assert found["bytes_by_kind"]["draft"] == found["draft_bytes"]
    assert sum(found["bytes_by_kind"].values()) == found["bytes_on_disk"]
    assert "draft_bytes" not in without
    assert size.mismatches(drafting, alone, found["parameters"]) == []


def test_weights_that_hide_in_its_description_are_found(tmp_path: Path) -> None:
    alone, drafting = artifact_of(cell()), tmp_path / "drafting"
    shutil.copytree(artifact_of(DRAFTING), drafting)
    (drafting / "draft" / "config.json").write_text(json.dumps({"more": "w" * 100_000}))
    [said] = size.mismatches(drafting, alone, size.stored_weights(alone))
    assert "most: draft/config.json" in said


def test_a_steps_draft_is_of_the_cells_own_model(tmp_path: Path) -> None:
    half = replace(DRAFTING, model={**DRAFTING.model, "dtype": "bfloat16"})
    loaded = artifact.load(artifact_of(half))
    assert loaded.draft is not None
    assert loaded.draft.subject is not None
    assert loaded.model.dtype == loaded.draft.subject.model.dtype == torch.bfloat16
