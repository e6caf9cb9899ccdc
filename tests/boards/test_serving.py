"""The board as people who serve models read it: a line for each row and batch size, in the terminal and in Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeeze.audit.verify import verify
from squeeze.boards import serving
from squeeze.boards.leaderboard import markdown
from squeeze.boards.table import table
from squeeze.boards.terms import Terms
from squeeze.cli import main
from squeeze.records.record import Estimate, Record
from squeeze.records.store import RecordStore
from tests.fabricated import PROTOCOL, cell, record, smoke_records

FIGURES: Mapping[str, Estimate] = {
    "load_seconds": Estimate(1.25, 1.2, 1.3, n=5),
    "load_peak_bytes": Estimate(937_000_000),
    "prefill_peak_bytes": Estimate(1_204_000_000),
    "context_fixed_bytes": Estimate(800_000_000),
    "context_bytes_per_token": Estimate(50_000),
    "positions": Estimate(8192),
    "ttft_ms": Estimate(64.0, 32.0, 128.0, n=5),
    "ttft_speedup": Estimate(1.5, 1.4, 1.6, 1e-4, n=5),
    "decode_tokens_per_s": Estimate(100.0, 50.0, 200.0, n=5),
    "itl_p50_ms": Estimate(10.0, 9.0, 11.0, n=5),
    "itl_p95_ms": Estimate(12.5, 12.0, 13.0, n=5),
    "energy_j_per_token": Estimate(0.125, 0.12, 0.13, n=5),
    "ttft_ms_b8": Estimate(256.0),
    "decode_tokens_per_s_b8": Estimate(400.0),
    "itl_p50_ms_b8": Estimate(20.0),
}


def row(bits: int = 4, left_out: str = "", **changes: Any) -> Record:
    protocol = {**PROTOCOL, "latency": {"prompt_tokens": 128}}
    kept = {name: estimate for name, estimate in FIGURES.items() if not left_out or not name.startswith(left_out)}
    subject = cell("rtn", "quantization", {"bits": bits}, protocol=protocol)
    return record(subject, kept, **changes)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path)
    store.prepare()
    store.write(row())
    return tmp_path


def cells(text: str) -> list[list[str]]:
    return [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_each_batch_size_has_a_line_and_what_belongs_to_the_row_stands_in_the_first() -> None:
    lines = serving.by_batch(table([Terms.of("0.36", "1GB").applied(row())]))
    shown = [[column.text(line) for column in serving.columns(lines)] for _, line in lines.iterrows()]
    headings = [column.heading for column in serving.columns(lines)]
    assert headings == [
        *("technique", "batch", "load s", "peak MB", "TTFT ms", "TTFT speed-up", "tok/s"),
        *("next ms", "p95 ms", "J/token", "cost/Mtok read", "cost/Mtok written", "context (computed)"),
    ]
    first, second = shown
    speedup = first.pop(5)
    assert speedup.startswith("1.50 [1.40, 1.60]")
    assert first == ["rtn-4", "1", "1.25", "1,204", "64", "100.0", "10", "12.5", "0.125", "0.05", "1", "4,000"]
    assert second == ["rtn-4", "8", "", "", "256", "", "400.0", "20", "", "", "0.025", "0.25", ""]


def test_columns_that_no_line_fills_are_left_out() -> None:
    lines = serving.by_batch(table([row(left_out="energy")]))
    headings = {column.heading for column in serving.columns(lines)}
    assert {"load s", "p95 ms"} <= headings
    assert not {"J/token", "cost/Mtok read", "cost/Mtok written", "context (computed)", "decode speed-up"} & headings


def test_the_columns_are_in_the_csv_and_the_lines_in_the_excerpt(results: Path) -> None:
    assert main(["collate", str(results)]) == 0
    [found] = csv.DictReader(io.StringIO((results / "leaderboard.csv").read_text()))
    assert (found["itl_p50_ms"], found["itl_p95_ms"], found["itl_p95_ms_high"]) == ("10", "12.5", "13")
    assert (found["load_seconds"], found["energy_j_per_token"], found["itl_p50_ms_b8"]) == ("1.25", "0.125", "20")
    assert "cost_per_mtok" not in found
    text = (results / "leaderboard.md").read_text()
    assert "### Serving" in text
    assert "an hour" not in text
    assert cells(text)[-1][:5] == ["rtn-4", "8", "", "", "256"]


def test_a_99th_percentile_is_shown_where_there_is_one_and_said_what_it_takes(results: Path, capsys: Any) -> None:
    assert main(["board", "--serving", "--results", str(results)]) == 0
    assert "p99" not in capsys.readouterr().out
    tails = {"itl_p99_ms": Estimate(17.5, 17.0, 18.0, n=5), "itl_p99_ms_b8": Estimate(40.0)}
    RecordStore(results).write(replace(row(3), estimates={**FIGURES, **tails}))
    assert main(["board", "--serving", "--results", str(results)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "17.5" in shown
    assert "p95 and p99: where each process has at least 20 and 100 times" in shown
    lines = serving.by_batch(table([replace(row(3), estimates={**FIGURES, **tails})]))
    assert lines["itl_p99_ms"].tolist() == [17.5, 40.0]


def test_records_from_before_these_columns_make_the_excerpt_that_they_made() -> None:
    assert "### Serving" not in markdown(table(smoke_records()))


def test_a_budget_that_no_record_can_answer_is_said_to_be_none() -> None:
    asked = Terms.of(None, "4GB")
    assert "not known of these records" in serving.caption(table(map(asked.applied, smoke_records())))


def test_a_price_and_a_budget_are_named_where_they_were_asked_for(results: Path, capsys: Any) -> None:
    assert main(["board", "--price", "0.36", "--memory", "1GB", "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert "Cost: of a million tokens read or written, at 0.36 an hour of the machine." in words
    assert "the longest prompt within 1,000,000,000 bytes, computed from measured parts, not run" in words
    assert "4,000" in shown
    assert max(map(len, shown.splitlines())) <= 120
    assert "…" not in shown
    assert main(["board", "--serving", "--results", str(results)]) == 0
    assert "an hour" not in capsys.readouterr().out


def test_leaderboards_with_a_price_are_what_verify_makes_again(results: Path, capsys: Any) -> None:
    assert main(["collate", str(results), "--price", "0.36", "--memory", "4GB"]) == 0
    [found] = csv.DictReader(io.StringIO((results / "leaderboard.csv").read_text()))
    assert (found["price_per_hour"], found["cost_per_mtok"], found["cost_per_mtok_high"]) == ("0.36", "1", "2")
    assert (found["memory_budget_bytes"], found["max_context_estimated"]) == ("4000000000", "8192")
    verify(results)
    assert "leaderboard" not in capsys.readouterr().out
    cheaper = (results / "leaderboard.csv").read_text().replace("0.36", "0.18")
    (results / "leaderboard.csv").write_text(cheaper)
    verify(results)
    assert "leaderboard.csv: is not what `squeeze collate` makes" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["board", "collate", "pick"])
def test_a_bad_price_is_an_error_that_says_what_is_none_and_what_is_one(
    command: str, results: Path, capsys: Any
) -> None:
    place = [str(results)] if command == "collate" else ["--results", str(results)]
    assert main([command, *place, "--price", "-1"]) == 2
    told = capsys.readouterr().err
    assert "--price -1 is no price; expected more than 0, for an hour of the machine, such as --price 0.40" in told


def test_rows_are_picked_by_latency_and_by_the_context_that_a_budget_leaves(results: Path, capsys: Any) -> None:
    smaller = {**FIGURES, "context_fixed_bytes": Estimate(700_000_000), "itl_p95_ms": Estimate(20.0)}
    RecordStore(results).write(replace(row(3), estimates=smaller))
    by = ["pick", "--results", str(results), "--by", "max_context_estimated", "--memory", "1GB"]
    assert main(by) == 0
    best = next(line for line in capsys.readouterr().out.splitlines() if line.rstrip().endswith("best"))
    assert best.split()[:2] == ["rtn-3", "6,000"]
    assert main([*by, "--max", "itl_p95_ms=15"]) == 0
    assert "rtn-3" not in capsys.readouterr().out
    assert main([*by, "--min", "max_context_estimated=7k"]) == 1
