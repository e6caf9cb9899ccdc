"""A board says of rows that draft how many guesses were accepted, and by kind of prompt what that won."""

from __future__ import annotations

from squeeze.boards import columns, drafting, glossary, summary
from squeeze.boards.leaderboard import markdown
from squeeze.boards.row import figures
from squeeze.boards.table import table
from squeeze.records.record import Estimate, Record
from tests.fabricated import cell, record, smoke_records

STEP = {"drafted_tokens": 4}


def drafted(**figures_of: Estimate) -> Record:
    return record(cell("prompt_lookup", "inference", STEP), {"decode_tokens_per_s": Estimate(20.0), **figures_of})


ROW = drafted(
    accepted_tokens=Estimate(1.25, 0.5, 2.0, n=8),
    acceptance=Estimate(0.3125, 0.2, 0.5, n=8),
    accepted_tokens_code=Estimate(2.1, 1.0, 3.0, n=8),
    acceptance_code=Estimate(0.52, 0.25, 0.75, n=8),
    drafting_speedup_code=Estimate(1.31, 1.2, 1.43, 1e-4, 8),
    accepted_tokens_lookup=Estimate(0.0, 0.0, 0.0, n=8),
    drafting_speedup_lookup=Estimate(0.98, 0.97, 0.99, 1e-4, 8),
)


def test_its_kinds_of_prompts_stand_below_the_board() -> None:
    frame = table([*smoke_records(), ROW])
    rows = summary.shown(frame[frame["status"] == "ok"])
    [said] = drafting.told(rows)
    assert said == (
        "prompt_lookup-d4 drafts: code 2.10 accepted a step (52%), 1.31 [1.20, 1.43] times as fast;"
        " lookup 0.00 accepted a step, 0.98 [0.97, 0.99] times as fast"
    )
    assert said in list(summary.below(rows))
    assert "prompt\\_lookup-d4 drafts: code 2.10" in markdown(frame)


def test_its_column_stands_only_where_a_row_drafts() -> None:
    without, with_it = (table(records) for records in (smoke_records(), [*smoke_records(), ROW]))
    shown = {column.heading: column for column in columns.columns(summary.shown(with_it))}
    row = with_it[with_it["technique"] == "prompt_lookup"].iloc[0]
    assert shown["accepted"].text(row) == "1.25"
    assert "accepted" not in {column.heading for column in columns.columns(summary.shown(without))}
    words = columns.OF["accepted"].words
    assert words in columns.legend(with_it)
    assert words not in columns.legend(without), "published pages stay as they are"
    assert list(drafting.told(summary.shown(without))) == []


def test_its_columns_are_explained_and_its_figures_told() -> None:
    assert glossary.term("drafting_speedup_code") == (
        "how many times as fast it decodes as without guesses, by kind of prompt; of prompts of kind code",
        "times",
    )
    assert glossary.group_of("acceptance_lookup") == glossary.group_of("accepted_tokens_b8") == "speed"
    assert glossary.term("accepted_tokens_low") is None, "the least of the rounds is no kind of prompt"
    told = [text.strip() for text in figures(ROW, [ROW])]
    assert any(text.startswith("acceptance_code: 52.00%, 25.00% to 75.00% over the rounds (share of") for text in told)
    assert any(text.startswith("drafting_speedup_code: 1.31 times [1.2 to 1.43 times, 95 %]") for text in told)
