"""A cell is asked for again by the fewest overrides that name it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.core import cache, paths
from squeeze.request.expand import cells
from squeeze.request.recipe import recipe
from tests.planted import place


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model=tiny", "technique=rtn", "protocol=smoke", "bits=8"],
        ["technique=rtn", "group_size=null", "symmetric=false"],
        ["technique=magnitude", "sparsity=0.25"],
        ["technique=gptq", "calibration=c4", "bits=3", "threads=1"],
        [
            "technique=gptq",
            "calibration.samples=8",
            'protocol.tasks=["sciq","piqa"]',
            "protocol.perplexity.tokens=null",
        ],
        ["dtype=float32", "replicate=3"],
    ],
)
def test_the_overrides_name_the_very_cell_and_nothing_that_is_so_anyway(overrides: list[str]) -> None:
    [cell] = cells(overrides)
    found = recipe(cell)
    assert found.exact
    assert [cell.key] == [each.key for each in cells(found.overrides)]
    assert sorted(found.overrides) == sorted(overrides)
    assert shlex.split(shlex.join(found.overrides)) == found.overrides


def test_own_texts_and_protocols_are_named_by_their_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "own.txt").write_text("A text of my own.\n" * 99)
    smoke = (paths.conf() / "protocol" / "smoke.yaml").read_text()
    place(tmp_path / "conf", "protocol", "mine", smoke.replace("name: smoke", "name: mine"))
    [cell] = cells(
        ["technique=gptq", f"calibration.corpus=file:{tmp_path}/own.txt", "protocol=mine"], tmp_path / "conf"
    )
    (tmp_path / "own.txt").unlink()
    found = recipe(cell)
    assert found.exact, found.why
    assert [cell.key] == [each.key for each in cells(found.overrides)]


def test_what_today_cannot_name_is_said() -> None:
    [cell] = cells(["technique=rtn", "bits=3", "protocol=smoke"])
    older = replace(cell, protocol={name: value for name, value in cell.protocol.items() if name != "most_rounds"})
    assert recipe(older).exact
    found = recipe(replace(cell, technique={**cell.technique, "name": "gone"}))
    assert (found.exact, found.overrides) == (False, ["technique=gone", "protocol=smoke"])
    assert "unknown technique 'gone'" in found.why
    odd = recipe(replace(cell, protocol={name: value for name, value in cell.protocol.items() if name != "seed"}))
    assert not odd.exact
    assert "protocol.seed is missing" in odd.why
    assert odd.overrides == ["technique=rtn", "protocol=smoke", "bits=3"]
