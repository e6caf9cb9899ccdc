"""A sound results folder has no finding; whatever is done to it is found, in one line, with the file's name."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from squeeze.audit.verify import verify
from squeeze.boards.leaderboard import collate
from squeeze.boards.terms import Terms
from squeeze.core.cache import cache_root
from squeeze.core.errors import SqueezeError
from squeeze.records.answers import Margins
from squeeze.request.cell import Cell

SMOKE = Path(__file__).parents[2] / "results" / "published" / "smoke"
ROWS = ("rtn-4-g64", "none-bfloat16")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two published rows and their leaderboards."""
    from squeeze.boards.leaderboard import texts
    from squeeze.boards.table import read

    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "results"
    (folder / "records").mkdir(parents=True)
    for row in ROWS:
        for path in (SMOKE / "records").glob(f"*-{row}-*"):
            shutil.copy(path, folder / "records")
    for name, content in texts(read(folder)).items():
        (folder / name).write_bytes(content)
    return folder


def file(results: Path, row: str = "rtn-4-g64", ending: str = "json") -> Path:
    [path] = (results / "records").glob(f"*-{row}-*.{ending}")
    return path


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def findings(results: Path, capsys: pytest.CaptureFixture[str], *, deep: bool = False) -> list[str]:
    code = verify(results, deep)
    *found, summary = capsys.readouterr().out.splitlines()
    assert code == (0 if summary.endswith("no findings") else 1)
    return found


def test_a_sound_folder_is_clean(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(results, capsys, deep=True) == []


def test_what_is_published_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert findings(SMOKE, capsys) == []


def another_key(path: Path) -> None:
    change(path, key="0" * 64)


def impossible_figure(path: Path) -> None:
    change(path, estimates={**json.loads(path.read_text())["estimates"], "mbu": {"value": 1.5}})


def figure_in_words(path: Path) -> None:
    change(path, estimates={"perplexity": {"value": "low"}})


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "a folder": (folder_in_its_place, "is a directory, expected a regular file"),
    "torn": (lambda path: path.write_bytes(path.read_bytes()[:500]), "not readable as JSON"),
    "another schema": (lambda path: change(path, schema=3), "not a record of schema 1 or 2 (found 3)"),
    "another key": (another_key, "one of them was changed"),
    "no cell": (lambda path: change(path, cell={}), "not a valid record"),
    "impossible figure": (impossible_figure, "mbu is 1.5, expected 0 to 1.05"),
    "figure in words": (figure_in_words, "not a valid record: Expected `int | float`, got `str`"),
    "no list": (
        lambda path: change(path, environment=3, stages=[]),
        "not a valid record: Expected `object`, got `int`",
    ),
    "secret": (lambda path: change(path, log_tail="HF_TOKEN=abcdefghijkl"), "looks like a secret (TOKEN=...)"),
    "samples gone": (lambda path: path.with_suffix(".npz").unlink(), "is missing from"),
    "samples changed": (lambda path: path.with_suffix(".npz").write_bytes(b"PK"), "its record says"),
    "a key that is a path": (
        lambda path: change(path, artifact_key="../../etc"),
        "not a valid record: Expected another kind of word - at `$.artifact_key`",
    ),
    "a key that is no hash": (lambda path: change(path, artifact_key="made"), "is no sha256"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
def test_damage_is_found(results: Path, capsys: pytest.CaptureFixture[str], damage: Any, words: str) -> None:
    damage(file(results))
    own = [line for line in findings(results, capsys) if not line.startswith("leaderboard")]
    assert len(own) == 1
    assert own[0].startswith(f"{file(results).name}: ")
    assert words in own[0]


def test_a_record_that_is_there_twice_is_wrong_a_second_attempt_is_not(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(results)
    again = path.with_name("again.json")
    shutil.copy(path, again)
    shutil.copy(path.with_suffix(".npz"), again.with_suffix(".npz"))
    change(again, samples={**json.loads(path.read_text())["samples"], "file": "again.npz"})
    [found] = [line for line in findings(results, capsys) if "leaderboard" not in line]
    assert f"is attempt {json.loads(path.read_text())['attempt'][:12]}, as again.json is: delete one" in found
    change(again, attempt="b" * 32, finished="2027-01-01T00:00:00+00:00")
    found = [line for line in findings(results, capsys) if "leaderboard" not in line]
    assert found == [
        "smollm2_135m-rtn-4-g64: 2 attempts; that which counts is bbbbbbbbbbbb of 2027-01-01T00:00:00+00:00"
    ]
    change(again, artifact_hash="c" * 64)
    assert any("the same one is cccccccccccc in again.json" in line for line in findings(results, capsys))
    for sound in ({"artifact_hash": None}, {"artifact_hash": "c" * 64, "fingerprint": "another machine"}):
        change(again, **sound)
        assert not any(".json:" in line for line in findings(results, capsys))
    change(again, fingerprint=json.loads(path.read_text())["fingerprint"], status="crashed", reason="killed")
    assert not any("2 attempts" in line for line in findings(results, capsys))


def test_figures_that_the_samples_do_not_bear_out_are_found_by_looking_deep(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(results)
    estimates = json.loads(path.read_text())["estimates"]
    change(path, estimates={**estimates, "perplexity": {"value": 18.0}})
    for board in results.glob("leaderboard*"):
        board.unlink()
    assert findings(results, capsys) == []
    assert findings(results, capsys, deep=True) == [f"{path.name}: perplexity is 18, its samples give 24.1208"]


def test_an_artifact_in_the_cache_is_held_against_the_record(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from squeeze.artifacts.format import content_hash

    path = file(results)
    record = json.loads(path.read_text())
    artifact = cache_root() / "artifacts" / record["artifact_key"] / "artifact"
    artifact.mkdir(parents=True)
    (artifact / "model.safetensors").write_bytes(b"weights")
    (artifact / "build.json").write_text(json.dumps({"content_hash": content_hash(artifact)}))
    [found] = findings(results, capsys)
    assert (
        f"its artifact is {record['artifact_hash'][:12]}, the one in the cache {content_hash(artifact)[:12]}" in found
    )
    change(path, artifact_hash=content_hash(artifact))
    assert findings(results, capsys, deep=True) == []
    (artifact / "model.safetensors").write_bytes(b"heights")
    assert findings(results, capsys) == []
    assert len(findings(results, capsys, deep=True)) == 1


def test_leaderboards_that_are_not_of_these_records_are_found(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv = results / "leaderboard.csv"
    csv.write_text(csv.read_text().replace("24.1208", "21.1208"))
    shutil.copy(results / "leaderboard_baseline.csv", results / "leaderboard_pruning.csv")
    assert [line.partition(":")[0] for line in findings(results, capsys)] == [csv.name, "leaderboard_pruning.csv"]


def test_verdicts_by_other_margins_are_sound_and_margins_that_are_none_are_not(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    collate(results, results, Terms(margins=Margins(speed=0.2)))
    assert findings(results, capsys) == []
    csv = results / "leaderboard.csv"
    csv.write_text(csv.read_text().replace("speed=0.2", "sped=0.2"))
    assert "these records cannot be collated" in findings(results, capsys)[0]


def test_a_leaderboard_by_older_rules_is_to_be_made_anew(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "leaderboard.csv"
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.drop(columns=["margins", "group", "rank_low", "rank_high"]).to_csv(path, index=False)
    [found] = findings(results, capsys)
    assert found.startswith(f"{path.name}: ")
    assert found.endswith("collate again")


def test_a_folder_without_records_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SqueezeError, match="no record in"):
        verify(tmp_path)


def test_ten_thousand_records_are_verified_in_seconds(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five hundred, samples hashed, in a twentieth of the time that ten thousand may take."""
    path = file(results)
    record, samples = json.loads(path.read_text()), path.with_suffix(".npz")
    for number in range(1, 501):
        cell = Cell.from_json({**record["cell"], "replicate": number})
        name = f"many-{number}"
        fields = {"cell": cell.to_json(), "key": cell.key, "attempt": f"{number:032x}"}
        (path.parent / f"{name}.npz").hardlink_to(samples)
        shutil.copy(path, path.parent / f"{name}.json")
        change(path.parent / f"{name}.json", **fields, samples={**record["samples"], "file": f"{name}.npz"})
    before = time.process_time()
    assert len(findings(results, capsys)) == 3  # the leaderboards know nothing of these
    assert time.process_time() - before < 3
