from pathlib import Path

import pandas as pd
import pytest
from rich.cells import cell_len

from squeeze.boards import columns, narrow, summary
from squeeze.boards.table import read, table
from squeeze.records.answers import Margins
from squeeze.records.record import Estimate
from tests.fabricated import cell, record, smoke_records

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


@pytest.fixture(scope="module")
def rows():
    return table(smoke_records()).set_index("label", drop=False)


def shown(row):
    return {column.heading: column.text(row) for column in columns.COLUMNS}


def headings(chosen):
    return [column.heading for column in chosen]


def width(chosen, rows):
    """Of the table as rich draws it: a space between columns and at both sides."""
    texts = [[column.heading, *(column.text(row) for _, row in rows.iterrows())] for column in chosen]
    return 1 + sum(1 + max(map(cell_len, each)) for each in texts)


def test_a_row_in_a_few_words(rows):
    assert shown(rows.loc["smollm2_135m-rtn-4-g64"]) == {
        "rank": "6\N{EN DASH}7",
        "group": "e",
        "technique": "rtn-4-g64",
        "runtime": "—",
        "bits": "6.66",
        "size": "112 MB",
        "tok/s": "30.0",
        "speed-up": "1.65 [1.60, 1.70] ▲",
        "accepted": "—",
        "perplexity": "20.00",
        "change": "+6.54 [5.89, 7.19] ▼",
        "other text": "—",
        "KL": "0.4",
        "top-1": "45%",
        "accuracy": "50.0%",
        "real": "BMC",
        "ok": "5/5",
    }


def test_small_divergences_stay_apart_from_none():
    divergences = {0.000382: "0.00038", 0.0: "0", 0.2385: "0.24", 12.4: "12"}
    for value, text in divergences.items():
        row = table([record(cell("rtn", "q", {"bits": 8}), {"kl_divergence": Estimate(value)})]).iloc[0]
        assert shown(row)["KL"] == text


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"acc_pooled": Estimate(0.514), "acc_sciq": Estimate(0.9)}, "51.4%"),
        (
            {
                "acc_pooled": Estimate(0.6, n=8000),
                "acc_pooled_delta": Estimate(-0.1, -0.11, -0.09, 1e-9, 8000),
            },
            "60.0% ▼",
        ),
        (
            {
                "acc_a": Estimate(0.5),
                "acc_a_stderr": Estimate(0.1),
                "acc_b": Estimate(0.7),
                "acc_b_stderr": Estimate(0.1),
            },
            "60.0%",
        ),
        ({"perplexity": Estimate(12.0)}, "—"),
    ],
)
def test_accuracy_is_that_of_all_items_or_of_old_records_the_mean_of_tasks(figures, text):
    row = table([record(cell("rtn", "q", {"bits": 8}), figures)]).iloc[0]
    assert shown(row)["accuracy"] == text


def test_columns_that_no_row_fills_are_left_out(rows):
    outside = record(cell("gptq", "quantization", {"bits": 3}), {"perplexity_ood": Estimate(49.57)})
    board = table([*smoke_records(), outside])
    assert set(headings(columns.COLUMNS)) - set(headings(columns.columns(rows))) == {
        "runtime",
        "accepted",
        "other text",
    }
    seldom = headings(columns.SELDOM)
    assert headings(columns.columns(board)) == [name for name in headings(columns.COLUMNS) if name not in seldom]


def test_claims_count_only_where_they_are_real(rows):
    assert shown(rows.loc["smollm2_135m-magnitude-s0.5"])["real"] == "BM"


def test_what_a_row_lacks_is_a_dash_and_has_a_reason():
    lacking = record(cell("rtn", "q", {"bits": 4}), {"bytes": Estimate(2e6)}, realised={})
    rows = summary.shown(table([lacking, *smoke_records()]))
    row = rows[rows["name"] == "rtn-4"].iloc[0]
    cells = shown(row)
    assert [cells[name] for name in ("rank", "speed-up", "perplexity", "change", "KL", "real")] == ["—"] * 6
    told = list(columns.gaps(rows, columns.columns(rows)))
    assert any(text.startswith("— rank (bnb_int8-3, rtn-4): no perplexity to rank it by") for text in told)
    assert any(text.startswith("— speed-up (none-bfloat16, bnb_int8-3, rtn-4): not timed beside") for text in told)


def test_what_the_baseline_has_of_itself_is_no_result():
    own = {"perplexity": 18.0, "perplexity_delta": 0.0, "kl_divergence": 0.0, "top1_agreement": 1.0}
    baseline = record(cell("none", "baseline", {}), {name: Estimate(value) for name, value in own.items()})
    rows = summary.shown(table([baseline, *smoke_records()[1:3]]))
    cells = shown(rows[rows["name"] == "none-bfloat16"].iloc[0])
    assert [cells[name] for name in ("perplexity", "change", "KL", "top-1")] == ["18.00", "—", "—", "—"]
    told = list(columns.gaps(rows, columns.columns(rows)))
    assert f"— change, KL, top-1 (none-bfloat16): {columns.ITSELF}" in told


@pytest.mark.parametrize("run", ["smoke", "quantization", "kv_cache", "calibration"])
@pytest.mark.parametrize("room", [80, 100, 120])
def test_published_boards_fit_any_width_with_what_matters_most(run, room):
    for board in summary.boards(read(PUBLISHED / run)):
        rows = summary.shown(summary.parted(board)[0])
        chosen = narrow.fitting(rows, room)
        assert width(chosen, rows) <= room
        assert {"rank", "technique", "size", "speed-up", "perplexity", "KL"} <= {*headings(chosen)}


def test_where_the_change_finds_no_room_its_verdict_stands_beside_the_perplexity(rows):
    rows = summary.shown(summary.parted(rows)[0])
    chosen = {column.heading: column for column in narrow.fitting(rows, 80)}
    assert "change" not in chosen
    assert chosen["perplexity"].text(rows[rows["name"] == "rtn-4-g64"].iloc[0]) == "20.00 ▼"
    assert headings(narrow.fitting(rows, 500)) == headings(columns.columns(rows))


def test_flags_and_missing_verdicts_are_marked():
    speedup = Estimate(3.0, 2.0, 4.0, 1e-9, 5)
    for flag, sign, star in (("unsteady", "▲", ""), ("warming", "?", " *"), ("grid_flattered", "▲", " *")):
        row = table([record(cell("rtn", "q", {"bits": 4}), {"decode_speedup": speedup}, flags=(flag,))]).iloc[0]
        assert shown(row)["technique"] == f"rtn-4{star}"
        assert shown(row)["speed-up"] == f"3.00 [2.00, 4.00] {sign}"


def test_the_legend_names_the_margins_every_sign_and_the_columns_shown():
    frame = table(smoke_records(), Margins(speed=0.1))
    legend = columns.legend(frame)
    assert "speed=0.1, perplexity=0.01, accuracy=0.01, kl=0.01" in legend
    for words in ("▲ better", "▼ worse", "= equal within", "~ undecided", "? failed", "KL: how far", "Top-1: "):
        assert words in legend
    assert "leaderboard.csv" not in legend
    assert "Top-1: " not in columns.legend(frame, columns.COLUMNS[:4])


def test_a_collapsed_perplexity_stays_short(rows):
    assert shown(rows.loc["smollm2_135m-rtn-2-g64"])["perplexity"] == "4.0e+05"


def test_an_implied_baseline_has_no_reasons_of_its_own():
    rows = summary.shown(table([record(cell("rtn", "q", {"bits": 4}), {"perplexity": Estimate(20.0)})]))
    assert isinstance(rows, pd.DataFrame)
    assert not [text for text in columns.gaps(rows, columns.COLUMNS) if "\N{DAGGER}" in text]
