import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from squeeze.artifacts.keys import artifact_key
from squeeze.boards.terms import Terms
from squeeze.cli import main
from squeeze.core import environment, paths
from squeeze.core.errors import TransientError
from squeeze.records.answers import Margins
from squeeze.records.record import Record, Status
from squeeze.records.store import RecordStore
from squeeze.request.expand import cells
from squeeze.runner import plan

ROOT = Path(__file__).resolve().parent.parent
TINY = ["model=tiny_llama", "technique=none", "protocol=smoke"]


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


@pytest.fixture
def runner(monkeypatch):
    """Stands in for the runner; ``calls`` has what it was asked, ``end`` is how it ends."""
    fake = SimpleNamespace(calls=[], quiet=[], end=lambda: 0)

    def run(wanted, results, *, resume, retry, quiet):
        fake.quiet.append(quiet)
        fake.calls.append(([cell.label for cell in wanted], results, resume, retry))
        return fake.end()

    monkeypatch.setitem(sys.modules, "squeeze.runner.run", SimpleNamespace(run=run))
    return fake


def squeeze(*arguments):
    return main([str(argument) for argument in arguments])


def record(cell, status, finished):
    """A record that was made here."""
    place = environment.describe()
    here = environment.fingerprint(place, cell.runtime)
    return Record(
        cell=cell.to_json(), key=cell.key, artifact_key=artifact_key(cell), fingerprint=here, status=status,
        attempt=finished.partition("T")[0], started=finished, finished=finished,
        environment=place, stages={"build": 30.0, "quality": 31.0},
    )  # fmt: skip


def test_run_hands_the_cells_to_the_runner(runner, results):
    runner.end = lambda: 1
    assert squeeze("run", *TINY, "dtype=float32,bfloat16", "--results", results) == 1
    names = ["tiny_llama-none-float32", "tiny_llama-none-bfloat16"]
    assert runner.calls == [(names, results, True, False)]


def test_run_can_measure_anew_and_try_again(runner, results):
    assert squeeze("run", *TINY, "--fresh", "--retry", "--results", results) == 0
    assert runner.calls[0][2:] == (False, True)


def test_resume_continues_the_plans_of_all_runs(runner, results):
    for request in ("dtype=float32", "dtype=bfloat16", "dtype=float32"):
        plan.save(cells([*TINY, request]), results)
    assert squeeze("resume", "--retry", "--results", results) == 0
    [(labels, *asked)] = runner.calls
    assert sorted(labels) == ["tiny_llama-none-bfloat16", "tiny_llama-none-float32"]
    assert asked == [results, False, True]


def test_resume_passes_over_what_can_no_longer_be_measured(runner, results, capsys):
    [there] = cells(TINY)
    plan.save([replace(there, model={**there.model, "source": "file:/nowhere"})], results)
    assert squeeze("resume", "--results", results) == 0
    assert "is passed over: file:/nowhere: /nowhere does not exist" in capsys.readouterr().err
    plan.save([there], results)
    assert squeeze("resume", "--results", results) == 0
    assert [call[0] for call in runner.calls] == [[there.label]]


def test_a_fault_of_the_environment_has_an_exit_code_of_its_own(runner, results, capsys):
    def fail():
        raise TransientError("disk full:\nfree some space")

    runner.end = fail
    assert squeeze("run", *TINY, "--results", results) == 75
    assert capsys.readouterr().err.splitlines()[-1] == "error: disk full: free some space"


def test_a_quiet_machine_is_waited_for_where_it_is_asked(runner, results):
    plan.save(cells(TINY), results)
    squeeze("run", *TINY, "--quiet-machine", "5", "--results", results)
    squeeze("resume", "--quiet-machine", "0", "--results", results)
    squeeze("resume", "--results", results)
    assert runner.quiet == [5, 0, None]


def test_board_and_compare_pass_on_what_was_asked(monkeypatch, results):
    calls = []
    monkeypatch.setitem(
        sys.modules, "squeeze.boards.terminal", SimpleNamespace(show=lambda path, **asked: calls.append((path, asked)))
    )
    monkeypatch.setitem(
        sys.modules, "squeeze.boards.compare", SimpleNamespace(explain=lambda *asked: calls.append(asked))
    )
    assert squeeze("board", "--costs", "--results", results) == 0
    assert squeeze("compare", "one", "two", "--results", results) == 0
    assert calls == [(results, {"costs": True, "asked": Terms()}), (results, "one", "two", False, Margins())]


def test_verify_rerun_and_pick_pass_on_what_was_asked_and_their_exit_code(monkeypatch, results):
    calls = []

    def asked(*given):
        calls.append(given)
        return 1

    for module, name in (("audit.verify", "verify"), ("audit.rerun", "rerun"), ("boards.pick", "show")):
        monkeypatch.setitem(sys.modules, f"squeeze.{module}", SimpleNamespace(**{name: asked}))
    assert squeeze("verify", "--deep", "--results", results) == 1
    assert squeeze("rerun", "a-row", "--results", results) == 1
    assert squeeze("pick", "--max", "bytes=80M", "--max", "ttft_ms=20", "--by", "bytes", "--results", results) == 1
    assert calls == [(results, True), (results, "a-row"), (results, ("bytes=80M", "ttft_ms=20"), (), "bytes", Terms())]


def test_collate_writes_the_leaderboards_beside_the_records_or_where_it_is_told(monkeypatch, tmp_path, results):
    calls = []
    fake = SimpleNamespace(collate=lambda *asked: calls.append(asked))
    monkeypatch.setitem(sys.modules, "squeeze.boards.leaderboard", fake)
    monkeypatch.chdir(tmp_path)
    assert squeeze("collate") == 0
    assert squeeze("collate", results) == 0
    assert squeeze("collate", results, "--out", tmp_path) == 0
    assert calls == [
        (Path("results"), Path("results"), Terms()),
        (results, results, Terms()),
        (results, tmp_path, Terms()),
    ]


def test_list_shows_status_and_time_and_runs_nothing(results, capsys):
    done, failed, again, elsewhere = cells([*TINY, "replicate=0,1,2,3"])
    store = RecordStore(results)
    store.prepare()
    for found in (
        record(done, Status.OK, "2026-01-01T00:00:00"),
        record(failed, Status.TIMEOUT, "2026-01-01T00:00:00"),
        record(again, Status.OK, "2026-01-03T00:00:00"),
        record(again, Status.CRASHED, "2026-01-02T00:00:00"),
        replace(record(elsewhere, Status.OK, "2026-01-01T00:00:00"), fingerprint="of another machine"),
    ):
        store.write(found)
    (store.folder / "torn.json").write_text("{")
    before = sorted(results.rglob("*"))
    assert squeeze("list", *TINY, "replicate=0,1,2,3,4", "--results", results) == 0
    shown = capsys.readouterr()
    header, *rows = [line.split("\t") for line in shown.out.splitlines()]
    assert header == ["cell", "bits", "sparsity", "group", "status", "estimate", "key"]
    assert [row[4] for row in rows] == ["ok", "timeout", "ok", "planned", "planned"]
    assert {row[5] for row in rows} == {"0:01:01"}
    assert rows[0][6] == done.key[:8]
    assert "torn.json is passed over" in shown.err
    assert "5 cells, 2 to measure in about 0:02:02" in shown.err
    assert sorted(results.rglob("*")) == before


def test_what_makes_no_difference_is_said_in_a_line(runner, results, capsys):
    assert squeeze("list", *TINY, "bits=5", "dtype=float32", "--results", results) == 0
    assert "note: no chosen technique reads bits\n" in capsys.readouterr().err
    assert squeeze("run", *TINY, "bits=5", "sparsity=0.1", "--results", results) == 0
    assert "note: no chosen technique reads bits, sparsity\n" in capsys.readouterr().err
    for beside in ("technique=none,rtn", "sweep=smoke"):
        assert squeeze("list", "model=tiny_llama", beside, "bits=4", "replicate=1", "--results", results) == 0
        assert "note: no" not in capsys.readouterr().err


def test_a_value_that_no_code_is_for_is_refused_before_anything_is_loaded(runner, results, capsys):
    assert squeeze("run", "model=tiny_llama", "technique=none,rtn", "bits=7", "--results", results) == 2
    assert "bits: 7 is not allowed; rtn.RoundToNearest has code for 8, 4, 3, 2\n" in capsys.readouterr().err
    assert not runner.calls
    assert not results.exists()


def test_axes_shows_what_can_be_swept(tmp_path, capsys):
    assert squeeze("axes") == 0
    rows = {name: rest for name, *rest in (line.split("\t") for line in capsys.readouterr().out.splitlines())}
    assert rows["sparsity"] == ["0.5", "a number from 0 to below 1", "share of weights set to zero"]
    shutil.copytree(paths.conf(), tmp_path / "conf")
    config = tmp_path / "conf" / "config.yaml"
    config.write_text(config.read_text().replace("bits: 4\n", "bits: 3\n", 1))
    assert squeeze("axes", "--config-dir", tmp_path / "conf") == 0
    assert "\nbits\t3\t" in capsys.readouterr().out


def test_on_a_terminal_list_draws_a_table(results, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert squeeze("list", *TINY, "--results", results) == 0
    out = capsys.readouterr().out
    assert "\t" not in out
    assert "planned" in out
    assert "1 cells, 1 to measure in about" in out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["list", "technique=nne"], "unknown technique 'nne'; did you mean 'none'?"),
        (["run", "bits=zero"], "bits: 'zero' is not allowed; expected an integer from 1 to 16"),
        (["run", "rtn"], "'rtn' is not an override"),
        (["rnu"], "No such command 'rnu'"),
        (["list", "--resluts", "x"], "No such option '--resluts'"),
        (["compare", "one"], "Missing argument 'SECOND'"),
        (["resume", "--results", "no/such"], "nothing to resume"),
        (["list", "--config-dir", "no/such"], "no such folder"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(runner, capsys, arguments, reason):
    assert squeeze(*arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert reason in shown.err
    assert shown.err.count("\n") == 1
    assert runner.calls == []


def test_a_results_folder_that_cannot_be_written_costs_nothing(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert squeeze("run", *TINY, "--results", tmp_path / "file" / "results") == 2
    assert "is not writable" in capsys.readouterr().err


def test_a_full_disk_is_one_line(runner, results, capsys):
    def full():
        raise OSError(28, "No space left on device", "results/records/x.json")

    runner.end = full
    assert squeeze("run", *TINY, "--results", results) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == "error: [Errno 28] No space left on device: 'results/records/x.json'"


def test_an_interruption_says_what_is_kept(runner, results, capsys):
    def interrupted():
        raise KeyboardInterrupt

    runner.end = interrupted
    assert squeeze("run", *TINY, "--results", results) == 130
    assert "every record written so far is kept; `squeeze resume`" in capsys.readouterr().err


def test_a_mistake_of_our_own_is_not_hidden(runner, results):
    def broken():
        raise ZeroDivisionError

    runner.end = broken
    with pytest.raises(ZeroDivisionError):
        squeeze("run", *TINY, "--results", results)


def test_a_reader_who_has_seen_enough_ends_list_quietly(results):
    arguments = ["list", *TINY, "replicate=range(0,2000)", "--results", str(results)]
    command = f"{sys.executable} -m squeeze.cli {' '.join(map(repr, arguments))} | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cell\t")
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["list", *TINY], ["list", "--help"]])
def test_help_and_list_answer_at_once_and_without_torch(arguments):
    code = (
        "import sys, time; from squeeze.cli import main; code = main(sys.argv[1:]);"
        "print([name for name in ('torch', 'transformers', 'numpy', 'matplotlib') if name in sys.modules]);"
        "print(time.process_time()); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *_, heavy, seconds = done.stdout.splitlines()
    assert heavy == "[]"
    assert float(seconds) < 1  # of CPU time, all in one thread: a busy neighbour does not count


def test_ten_thousand_cells_are_listed_within_five_seconds(results, capsys):
    start = time.process_time()
    assert squeeze("list", *TINY, "replicate=range(0,10000)", "--results", results) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10_001
    assert time.process_time() - start < 5


def test_kld_compares_what_two_names_stand_for(tmp_path, monkeypatch, capsys, results):
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text("A text of some length. " * 10)
    how = ["--text", tmp_path / "text.txt", "--tokens", 100, "--window", 64, "--isolate", "--results", results]
    found = tmp_path / "kld.json"
    request = "model=tiny_llama technique=rtn group_size=32"
    assert squeeze("kld", "tiny_llama", request, *how, "--json", found) == 0
    figures = json.loads(found.read_text())
    assert (figures["a"], figures["b"], figures["tokens"]) == ("tiny_llama", request, 100)
    assert figures["kl"]["value"] > 0
    assert len(figures["layers"]) == 3
    assert f"{figures['kl']['value']:.3g}" in capsys.readouterr().out
    assert squeeze("kld", "tiny_llama", tmp_path, *how) == 2
    assert "no model; expected config.json and *.safetensors" in capsys.readouterr().err
