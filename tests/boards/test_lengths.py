"""First tokens by the length of the prompt: a table of their own, and what was not timed with its reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from squeeze.boards import lengths
from squeeze.boards.leaderboard import markdown
from squeeze.boards.table import table
from squeeze.boards.terms import Terms
from squeeze.cli import main
from squeeze.records.record import Estimate, Record, Status
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record, smoke_records

WHY = "4,096 tokens, with prompts of up to 4,177: the model has 2048 positions"
REAL = {"bytes_real": True, "memory_real": True, "compute_real": False, "batch_dependent": False}


def curve(pace: float, *tokens: int, speedup: float = 1.5) -> dict[str, Estimate]:
    """A row that reads a token in ``pace`` ms, and was timed at these lengths."""
    found = {}
    for length in tokens:
        ms = pace * length
        found[f"ttft_ms_at_{length}"] = Estimate(ms, 0.9 * ms, 1.2 * ms, n=8)
        found[f"ttft_speedup_at_{length}"] = Estimate(speedup, 0.97 * speedup, 1.03 * speedup, 1e-6, 8)
    return {**found, "itl_p50_ms": Estimate(10.0), "decode_tokens_per_s": Estimate(100.0)}


def row(bits: int, figures: dict[str, Estimate], why: str = "") -> Record:
    left_out = {"prompts_left_out": why} if why else {}
    return record(cell("rtn", "quantization", {"bits": bits}), figures, realised={**REAL, **left_out})


RECORDS = [
    row(4, curve(0.5, 1000, 64, 32)),
    row(8, curve(0.25, 32, 64, speedup=0.5), why=WHY),
    replace(row(3, {}), status=Status.CRASHED, reason="dead"),
    row(2, {"ttft_ms": Estimate(9.0)}),
]


def shown(frame: pd.DataFrame) -> dict[str, list[str]]:
    rows = lengths.rows(frame)
    columns = lengths.columns(rows)
    texts = [[column.text(row) for column in columns] for _, row in rows.iterrows()]
    return {"": [column.heading for column in columns]} | {text[0]: text[1:] for text in texts}


def test_rows_that_were_timed_by_length_have_a_line_and_each_length_a_column() -> None:
    assert shown(table(RECORDS)) == {
        "": ["technique", "32", "64", "1,000"],
        "rtn-4": ["16 ▲", "32 ▲", "500 ▲"],
        "rtn-8": ["8 ▼", "16 ▼", "\N{EM DASH}"],
    }


def test_boards_without_a_curve_have_no_such_table() -> None:
    frame = table(smoke_records())
    assert lengths.rows(frame).empty
    assert "First token" not in markdown(frame)


def test_what_was_not_timed_is_said_once_for_all_rows_that_lack_the_same() -> None:
    both = [row(4, curve(0.5, 32), why=WHY), row(8, curve(0.5, 32), why=WHY)]
    assert list(lengths.left_out(lengths.rows(table(both)))) == [f"not timed (all rows): {WHY}"]
    assert list(lengths.left_out(lengths.rows(table(RECORDS)))) == [f"not timed (rtn-8): {WHY}"]


def test_a_row_that_could_be_asked_none_of_the_lengths_is_there_with_its_reason() -> None:
    alone = {"itl_p50_ms": Estimate(10.0), "decode_tokens_per_s": Estimate(100.0)}
    found = lengths.rows(table([row(8, alone, why=WHY)]))
    assert [column.heading for column in lengths.columns(found)] == ["technique"]
    assert list(lengths.left_out(found)) == [f"not timed (rtn-8): {WHY}"]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path)
    store.prepare()
    for each in RECORDS:
        store.write(each)
    return tmp_path


def test_the_command_prints_it_and_collate_writes_it(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["board", "--serving", "--results", str(results)]) == 0
    told = capsys.readouterr().out
    assert "first token" in told
    assert "500 ▲" in told
    assert f"not timed (rtn-8): {WHY}" in " ".join(told.split())
    assert max(map(len, told.splitlines())) <= 120
    assert main(["collate", str(results)]) == 0
    text = (results / "leaderboard.md").read_text()
    assert "### First token by length of the prompt" in text
    assert "| rtn-4 | 16 ▲ | 32 ▲ | 500 ▲ |" in text
    header = (results / "leaderboard.csv").read_text().partition("\n")[0].split(",")
    for name in ("ttft_ms_at_32", "ttft_speedup_at_1000_low", "ttft_speedup_at_64_verdict", "prompts_left_out"):
        assert name in header


def test_a_price_gives_each_length_its_cost_in_the_table_of_all_columns() -> None:
    """500 ms for 1,000 tokens are 2,000 a second."""
    found = table([Terms.of("0.36").applied(RECORDS[0])]).iloc[0]
    assert found["cost_per_mtok_prefill_at_1000"] == pytest.approx(0.05)
    assert (found["cost_per_mtok_prefill_at_1000_low"], found["cost_per_mtok_prefill_at_1000_high"]) == (
        pytest.approx(0.045),
        pytest.approx(0.06),
    )
