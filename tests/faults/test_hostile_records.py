"""Promise 20: one bad record harms no other. It is named, in one line, and the board of the rest is as it was."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze import cli
from squeeze.boards import plots
from squeeze.core.interpreters import environment_with
from squeeze.records.sanitize import STEERS
from squeeze.records.store import RecordStore
from squeeze.request.cell import Cell
from squeeze.runner.run import run
from tests.faults.hostile import ESCAPE, PLACES, RECORDS, SAMPLES, Data, packed

pytestmark = pytest.mark.promise(20)

SMOKE = Path(__file__).parents[2] / "results" / "published" / "smoke" / "records"
ROW, OTHER, SPOILT = "rtn-4-g64", "none-bfloat16", "rtn-4-g64-r1"
QUICK = (  # commands that read records; {} stands for the folder
    ("board", "--results", "{}"),
    ("board", "--results", "{}", "--costs"),
    ("board", "--results", "{}", "--serving", "--price", "1", "--memory", "4GB"),
    ("pick", "--results", "{}"),
    ("compare", ROW, OTHER, "--results", "{}"),
    ("collate", "{}", "--out", "{}/boards"),
)
READING = (*QUICK, ("board", "--results", "{}", "--literature"), ("list", "technique=rtn", "bits=4", "--results", "{}"))
VERIFY = ("verify", "--results", "{}")
SAMPLES_OF_ANOTHER = b"no zip file"
MOST_SECONDS, MOST_BYTES = 5.0, 500_000_000  # of processor and memory, a command

# Run a command, then say what it took, memory that it inherited from us left out.
WATCHED = """
import sys
from squeeze.cli import main
code = main(sys.argv[1:])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1], code, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two published rows, with their samples."""
    results = tmp_path_factory.mktemp("results")
    (results / "records").mkdir()
    for row in (ROW, OTHER):
        for path in SMOKE.glob(f"*-{row}-*"):
            shutil.copy(path, results / "records")
    return results


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(plots, "pareto", lambda _: b"")  # takes a second, and reads the table that is compared


def data(results: Path, row: str = ROW) -> Data:
    [path] = (results / "records").glob(f"*-{row}-*.json")
    return json.loads(path.read_bytes())  # type: ignore[no-any-return]


def fresh(results: Path) -> Data:
    """A newer attempt at the good row: read as a record, it would take that row's place."""
    return {**data(results), "attempt": "b" * 32, "finished": "2027-01-01T00:00:00+00:00"}


def said(capsys: pytest.CaptureFixture[str], results: Path, command: Sequence[str]) -> tuple[int, str, list[str]]:
    """Run a command; returns its exit code, what it printed, and its lines on stderr."""
    code = cli.main([word.format(results) for word in command])
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert not STEERS.search("".join((shown.out + shown.err).split()))
    return code, shown.out, shown.err.splitlines()


def boards(results: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((results / "boards").iterdir())}


@pytest.fixture(scope="module")
def before(good: Path) -> dict[Any, Any]:
    return {}


@pytest.fixture
def undisturbed(good: Path, before: dict[Any, Any], capsys: pytest.CaptureFixture[str]) -> dict[Any, Any]:
    """What each command says of the good records alone, and the files of the leaderboards."""
    if not before:
        alone = {command: said(capsys, good, command) for command in QUICK}
        assert said(capsys, good, VERIFY) == (0, "2 records, no findings\n", [])
        before |= {**alone, "boards": boards(good)}
    return before


@pytest.fixture
def put(good: Path) -> Iterator[Callable[[str], Path]]:
    """Put one hostile record among the good ones, for one test."""
    path = good / "records" / "a-hostile.json"

    def place(name: str) -> Path:
        RECORDS[name](path, fresh(good))
        return path

    yield place
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize("name", RECORDS)
def test_a_bad_record_is_named_and_harms_no_other(
    name: str,
    good: Path,
    undisturbed: dict[Any, Any],
    put: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = put(name)
    for command in QUICK:
        code, shown, lines = said(capsys, good, command)
        named = [line for line in lines if path.name in line]
        assert (code, shown, [line for line in lines if line not in named]) == undisturbed[command], command
        assert len(named) == 1, command
        assert named[0].startswith(f"warning: {path} is passed over: ")
    assert boards(good) == undisturbed["boards"]
    assert run([], good) == 0  # as `squeeze resume` does where nothing is left to do
    [warning, _] = capsys.readouterr().err.splitlines()
    assert path.name in warning
    code, found, _ = said(capsys, good, VERIFY)
    [finding, summary] = found.splitlines()
    assert finding.startswith(f"{path.name}: ")
    assert (code, summary) == (1, "3 records, 1 finding")


def test_what_a_failed_attempt_said_cannot_steer_the_terminal(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    shutil.copytree(good, results)
    cell = {**data(good)["cell"], "replicate": 1}
    failed = {"status": "crashed", "reason": f"died {ESCAPE}\nloudly", "log_tail": ESCAPE, "estimates": {}}
    changes = {**failed, "cell": cell, "key": Cell.from_json(cell).key, "attempt": "b" * 32, "samples": {}}
    (results / "records" / f"{ESCAPE}.json").write_text(json.dumps({**data(good), **changes}))
    for command in (*READING, VERIFY):
        said(capsys, results, command)
    assert "died red loudly" in (results / "boards" / "leaderboard.csv").read_text()
    (results / "records" / f"{ESCAPE}.json").write_text("torn")
    for command in (*READING, VERIFY):
        said(capsys, results, command)
    assert said(capsys, tmp_path / ESCAPE, ("board", "--results", "{}"))[0] == 2


@pytest.mark.parametrize("value", [0, -1, 1e308, 5e-324])
def test_figures_that_no_measurement_gives_break_no_command(
    value: float, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are read, for `squeeze verify` to find: whether a figure can be true is no question of the schema."""
    results = tmp_path / "results"
    path = beside(good, results, SAMPLES_OF_ANOTHER)
    record = json.loads(path.with_suffix(".json").read_bytes())
    for name, found in record["estimates"].items():
        if not name.endswith("bytes"):
            record["estimates"][name] = {part: value if part in ("value", "low", "high") else 1 for part in found}
    path.with_suffix(".json").write_text(json.dumps(record))
    for command in QUICK:
        code, _, lines = said(capsys, results, command)
        assert code == 0, (command, lines)
        assert [line for line in lines if path.stem in line] == ([] if "--costs" not in command else lines), command
    code, _, lines = said(capsys, results, ("compare", SPOILT, OTHER, "--results", "{}"))
    assert (code, len(lines)) == (2, 1)
    assert said(capsys, results, VERIFY)[0] == 1


def test_a_record_that_borrows_an_attempt_takes_no_row_away(
    good: Path, arrays: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    path = beside(good, results, packed(arrays)).with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "attempt": data(good, OTHER)["attempt"]}))
    _, shown, _ = said(capsys, results, ("pick", "--results", "{}"))
    assert all(any(line.split()[:1] == [row] for line in shown.splitlines()) for row in (ROW, OTHER, SPOILT))
    _, found, _ = said(capsys, results, VERIFY)
    assert "delete one" in found


def beside(good: Path, results: Path, samples: Callable[[Path], Any] | bytes) -> Path:
    """Copy the good records, and one whose samples are these; returns their path."""
    if not results.exists():
        shutil.copytree(good, results)
    number = len(list((results / "records").glob("*.json"))) - 1
    cell = {**data(good)["cell"], "replicate": number}
    path = results / "records" / f"hostile-{number}.npz"
    if isinstance(samples, bytes):
        path.write_bytes(samples)
    else:
        samples(path)
    digest = hashlib.sha256(samples if isinstance(samples, bytes) else b"").hexdigest()
    changes = {"cell": cell, "key": Cell.from_json(cell).key, "attempt": f"{number:032x}"}
    content = json.dumps({**data(good), **changes, "samples": {"file": path.name, "sha256": digest}})
    path.with_suffix(".json").write_text(content)
    return path


@pytest.fixture(scope="module")
def arrays(good: Path) -> dict[str, Any]:
    [path] = (good / "records").glob(f"*-{ROW}-*.npz")
    with np.load(path) as stored:
        return dict(stored)


@pytest.mark.parametrize("name", [*SAMPLES, *PLACES])
def test_hostile_samples_are_a_finding_of_one_line(
    name: str, good: Path, arrays: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    path = beside(good, results, SAMPLES[name](arrays) if name in SAMPLES else PLACES[name])
    code, found, _ = said(capsys, results, (*VERIFY, "--deep"))
    [finding, summary] = found.splitlines()
    assert finding.startswith(f"{path.stem}.json: ")
    assert (code, summary) == (1, "3 records, 1 finding")
    unfit = "do not fit together" in finding  # each array is one; only what is computed of them tells
    for command in (("compare", SPOILT, OTHER, "--results", "{}"), ("rerun", SPOILT, "--results", "{}")):
        if command[0] == "rerun" and unfit:
            continue  # it measures first
        code, shown, lines = said(capsys, results, command)
        assert (code, shown, len(lines)) == (2, "", 1), command
        assert lines[0].startswith("error: ")
    code, shown, lines = said(capsys, results, ("board", "--results", "{}", "--costs"))
    assert code == 0
    assert [path.name in line for line in lines] == ([] if unfit else [True])
    assert not list(Path.cwd().glob("canary"))


def named_once(lines: Sequence[str]) -> bool:
    """Whether each hostile record of ``test_all_of_them_at_once...`` is named in one line, passed over or a finding."""
    names = [f"bad-{number}.json" for number in range(len(RECORDS))]
    return all(
        sum(f"{name} is passed over: " in line or line.startswith(f"{name}: ") for line in lines) == 1 for name in names
    )


def test_all_of_them_at_once_take_neither_time_nor_memory(
    good: Path,
    arrays: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    figure: Callable[[str], None],
) -> None:
    results = tmp_path / "results"
    for spoil in (*(SAMPLES[name](arrays) for name in SAMPLES), *PLACES.values()):
        beside(good, results, spoil)
    for number, place in enumerate(RECORDS.values()):
        place(results / "records" / f"bad-{number}.json", fresh(good))
    kept = len(list(RecordStore(results).records(lambda *_: None)))
    assert kept == 2 + len(SAMPLES) + len(PLACES)
    for command in READING:
        assert named_once(said(capsys, results, command)[2]), command
    most_seconds, most_bytes = 0.0, 0
    for command in (("board", "--results", "{}", "--costs"), (*VERIFY, "--deep")):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", WATCHED, *(word.format(results) for word in command)],
            capture_output=True,
            text=True,
            timeout=600,
            env=environment_with({}),
            cwd=Path(__file__).parents[2],
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "Traceback" not in done.stderr, done.stderr
        assert named_once((done.stdout + done.stderr).splitlines()), command
        kibibytes, code = map(int, done.stderr.splitlines()[-1].split())
        assert code == (1 if command[0] == "verify" else 0)
        most_bytes = max(most_bytes, 1024 * kibibytes)
        most_seconds = max(most_seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert most_seconds < 2 * MOST_SECONDS  # of all of them, where 5 s are for one
    assert most_bytes < MOST_BYTES
    figure(
        f"{len(RECORDS)} hostile records and {len(SAMPLES) + len(PLACES)} hostile files of samples: each named in one "
        f"line, boards of the rest unchanged; all at once at most {most_seconds:.1f} s and {most_bytes / 1e6:.0f} MB"
    )
