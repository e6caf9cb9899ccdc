"""`squeeze show` tells all of one row: figures, recipe, files, how to load it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.image import imread

from squeeze.artifacts import keys
from squeeze.cli import main
from squeeze.core.hashing import digest
from squeeze.records.record import Estimate, Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.expand import cells
from tests.fabricated import record

ASKED = ["model=tiny", "technique=gptq", "bits=4", "protocol=smoke"]


def kept(results: Path, *overrides: str, **changes: object) -> Record:
    [cell] = cells([*ASKED, *overrides])
    store = RecordStore(results)
    store.prepare()
    return store.write(record(cell, {"perplexity": Estimate(20.0, 19.0, 21.0)}, **changes), b"samples")


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert main(["show", *map(str, arguments)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_row_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    own = kept(tmp_path, artifact_key="a" * 64)
    lines = shown(capsys, "gptq-4-g64", "--results", tmp_path)
    assert lines[0].startswith(f"tiny-gptq-4-g64: ok, attempt {own.attempt[:12]}, finished 2026-01-01")
    assert any(line.startswith("  perplexity: 20 [19 to 21, 95 %]") for line in lines)
    assert lines[lines.index("to make it again:") + 1] == "  squeeze run model=tiny technique=gptq protocol=smoke"
    stem = f"{tmp_path}/records/tiny-gptq-4-g64-{own.attempt}"
    assert {f"  record: {stem}.json", f"  raw samples: {stem}.npz"} <= {*lines}
    assert "  artifact: not in the cache; running it again builds it" in lines
    keys.folder("a" * 64).mkdir(parents=True)
    lines = shown(capsys, "gptq-4-g64", "--results", tmp_path)
    assert f"  artifact: {keys.folder('a' * 64)}" in lines
    assert any("load(Path(" in line for line in lines)


def test_two_calibrations_are_two_rows_each_with_a_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many, few = kept(tmp_path), kept(tmp_path, "calibration.samples=8")
    assert main(["show", "gptq-4-g64", "--results", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"tiny-gptq-4-g64@samples=128 is {many.attempt[:12]}" in said
    assert f"tiny-gptq-4-g64@samples=8 is {few.attempt[:12]}" in said
    for name in ("gptq-4-g64@samples=8", "tiny-gptq-4-g64@samples=8", few.attempt[:8]):
        lines = shown(capsys, name, "--results", tmp_path)
        assert lines[0].startswith("tiny-gptq-4-g64@samples=8: ok")
        assert "  squeeze run model=tiny technique=gptq protocol=smoke calibration.samples=8" in lines
    assert main(["board", "--results", str(tmp_path)]) == 0
    assert "gptq-4-g64@samples=128" in capsys.readouterr().out
    assert main(["show", "gptq-4-g64@samples=9", "--results", str(tmp_path)]) == 2
    assert "no record of 'gptq-4-g64@samples=9'; did you mean" in capsys.readouterr().err.replace(": did", "; did")


def test_a_failed_row_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {"status": Status.CRASHED, "reason": "boom", "stage": "build", "log_tail": "one\n[bold]two\x1b[2J"}
    own = kept(tmp_path, **failed)
    RecordStore(tmp_path).log(cells(ASKED)[0], own.attempt).write_text("all of it")
    lines = shown(capsys, own.key[:8], "--results", tmp_path)
    assert lines[1:4] == ["failed in build: boom", "  | one", "  | [bold]two"]
    assert any(line.startswith(f"  log: {tmp_path}/logs/") for line in lines)


def test_published_rows_are_found_by_the_names_they_have(capsys: pytest.CaptureFixture[str]) -> None:
    published = Path(__file__).parents[2] / "results" / "published" / "calibration"
    lines = shown(capsys, "gptq-3-g64-c4", "--results", published)
    assert lines[0].startswith("smollm2_135m-gptq-3-g64-c4: ok")
    assert any(line.startswith("to make it again") for line in lines)


def test_one_row_of_several_machines_is_named_by_its_attempt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = kept(tmp_path)
    other = replace(own, fingerprint=digest("elsewhere"), attempt="b" * 32)
    RecordStore(tmp_path).write(other, b"samples")
    assert main(["show", "gptq-4-g64", "--results", str(tmp_path)]) == 2
    assert "stands for 2 rows" in capsys.readouterr().err
    assert shown(capsys, "bbbbbbb", "--results", tmp_path)[0].startswith("tiny-gptq-4-g64: ok, attempt bbbb")


def test_the_loss_curve_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    kept(tmp_path, artifact_key="a" * 64)
    picture = tmp_path / "curve.png"
    asked = ["show", "gptq-4-g64", "--results", str(tmp_path), "--curve", str(picture)]
    assert main(asked) == 2
    assert "its artifact is not in the cache, where its loss curve lies" in capsys.readouterr().err
    folder = keys.folder("a" * 64)
    folder.mkdir(parents=True)
    (folder / keys.BUILD_INFO).write_text("{}")
    assert main(asked) == 2
    assert "nothing was trained, expected a row of a technique that trains" in capsys.readouterr().err
    curve = [[0, None, 3.0], [1, 4.0, None], [2, 2.0, 2.5]]
    sizes = []
    for count in (1, 2):
        trainings = [{"step": "qat.QAT", "curve": curve}, {"step": "a$b.C", "curve": [[1, 4.0, None]]}][:count]
        (folder / keys.BUILD_INFO).write_text(json.dumps({"training": trainings}))
        assert main(asked) == 0
        assert capsys.readouterr().out == f"loss curve: {picture}\n"
        sizes.append(imread(picture).shape[:2])
    assert sizes[1] == (sizes[0][0], 2 * sizes[0][1]), "a panel for each step that trained"
