import pandas as pd
import pytest

from squeeze.boards import summary
from squeeze.boards.table import table
from squeeze.records.record import Estimate
from tests.fabricated import cell, record, smoke_records


@pytest.fixture(scope="module")
def rows():
    return table(smoke_records()).set_index("label", drop=False)


def test_a_failure_is_one_printable_line(rows):
    assert summary.failure(rows.loc["smollm2_135m-bnb_int8-3"]).startswith("bnb_int8-3: unsupported: =bits 3")
    hostile = pd.Series({"label": "m-x", "model": "m", "status": "crashed", "reason": "a\x1b[2J\nb\tc"})
    assert summary.failure(hostile) == "x: crashed: a b c"


def test_boards_come_with_what_their_rows_share(rows):
    [board] = summary.boards(rows)
    assert summary.title(board) == "smollm2_135m, protocol smoke, cpu, machine ffffffff"
    ok, failed = summary.parted(board)
    assert (len(ok), len(failed)) == (11, 1)


def of(bits, **estimates):
    return record(cell("rtn", "quantization", {"bits": bits}), {k: Estimate(v) for k, v in estimates.items()})


def test_a_board_without_a_baseline_shows_what_its_rows_were_measured_against():
    [board] = summary.boards(table([of(4, perplexity=20.0, perplexity_delta=6.5), of(3, perplexity=110.0)]))
    shown = summary.shown(board)
    assert list(shown["name"]) == ["none-bfloat16 \N{DAGGER}", "rtn-4", "rtn-3"]
    assert shown.iloc[0]["perplexity"] == 13.5
    assert pd.isna(shown.iloc[0]["bytes"])
    *_, told = summary.below(shown)
    assert told.startswith("\N{DAGGER} not measured as a row")


def test_a_baseline_that_was_measured_needs_no_other(rows):
    shown = summary.shown(summary.parted(rows)[0])
    assert len(shown) == 11
    assert list(summary.below(shown)) == []


def test_of_a_run_its_own_cells_and_the_baselines_are_shown(rows):
    ok, _ = summary.parted(rows)
    shown = summary.shown(ok, {rows.loc["smollm2_135m-rtn-3-g64"]["key"]})
    assert set(shown["name"]) == {"none-bfloat16", "rtn-3-g64"}
