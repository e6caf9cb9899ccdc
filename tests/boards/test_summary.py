import pandas as pd
import pytest

from squeeze.boards import summary
from squeeze.boards.table import table
from squeeze.records.answers import Margins
from squeeze.records.record import Estimate
from tests.fabricated import cell, record, smoke_records


@pytest.fixture(scope="module")
def rows():
    return table(smoke_records()).set_index("label", drop=False)


def shown(row):
    return {column.heading: column.text(row) for column in summary.columns(row.to_frame().T)}


def test_a_row_in_a_few_words(rows):
    assert shown(rows.loc["smollm2_135m-rtn-4-g64"]) == {
        "rank": "6\N{EN DASH}7",
        "technique": "rtn-4-g64",
        "bits": "6.66",
        "MB": "112",
        "tok/s": "30.0",
        "speed-up": "1.65 [1.60, 1.70] ▲",
        "perplexity": "20.00",
        "change": "+6.54 [5.89, 7.19] ▼",
        "KL": "0.4",
        "top-1": "45%",
        "real": "BMC",
        "ok": "5/5",
    }


def test_small_divergences_stay_apart_from_none():
    divergences = {0.000382: "0.00038", 0.0: "0", 0.2385: "0.24", 12.4: "12"}
    for value, text in divergences.items():
        row = table([record(cell("rtn", "q", {"bits": 8}), {"kl_divergence": Estimate(value)})]).iloc[0]
        assert shown(row)["KL"] == text


def test_other_text_has_a_column_only_where_a_row_was_scored_on_it(rows):
    outside = record(cell("gptq", "quantization", {"bits": 3}), {"perplexity_ood": Estimate(49.57)})
    board = table([*smoke_records(), outside])
    narrow, wide = ([column.heading for column in summary.columns(board, wide=wide)] for wide in (False, True))
    assert [name for name in wide if name not in narrow] == ["group", "other text"]
    column = next(column for column in summary.columns(board, wide=True) if column.heading == "other text")
    texts = {row["technique"]: column.text(row) for _, row in board.iterrows()}
    assert (texts["gptq"], texts["none"]) == ("49.57", "")
    wide, narrow = ([each.heading for each in summary.columns(rows, wide=wide)] for wide in (True, False))
    assert [name for name in wide if name not in narrow] == ["group"]


def test_claims_count_only_where_they_are_real(rows):
    assert shown(rows.loc["smollm2_135m-magnitude-s0.5"])["real"] == "BM"


def test_what_a_row_lacks_is_empty():
    row = table([record(cell("none", "baseline", {}), {"bytes": Estimate(2e6)}, realised={})]).iloc[0]
    cells = shown(row)
    assert (cells["MB"], cells["speed-up"], cells["perplexity"], cells["real"]) == ("2", "", "", "")


def test_flags_and_missing_verdicts_are_marked():
    speedup = Estimate(3.0, 2.0, 4.0, 1e-9, 5)
    for flag, sign, star in (("unsteady", "▲", ""), ("warming", "?", " *"), ("grid_flattered", "▲", " *")):
        row = table([record(cell("rtn", "q", {"bits": 4}), {"decode_speedup": speedup}, flags=(flag,))]).iloc[0]
        assert shown(row)["technique"] == f"rtn-4{star}"
        assert shown(row)["speed-up"] == f"3.00 [2.00, 4.00] {sign}"


def test_the_legend_names_the_margins_and_every_sign(rows):
    legend = summary.legend(table(smoke_records(), Margins(speed=0.1)))
    assert "speed=0.1, perplexity=0.01, accuracy=0.01, kl=0.01" in legend
    for words in ("▲ better", "▼ worse", "= equal within", "~ undecided", "? failed"):
        assert words in legend


def test_a_collapsed_perplexity_stays_short(rows):
    assert shown(rows.loc["smollm2_135m-rtn-2-g64"])["perplexity"] == "4.0e+05"


def test_a_failure_is_one_printable_line(rows):
    assert summary.failure(rows.loc["smollm2_135m-bnb_int8-3"]).startswith("bnb_int8-3: unsupported: =bits 3")
    hostile = pd.Series({"label": "m-x", "model": "m", "status": "crashed", "reason": "a\x1b[2J\nb\tc"})
    assert summary.failure(hostile) == "x: crashed: a [2J b c"


def test_boards_come_with_what_their_rows_share(rows):
    [board] = summary.boards(rows)
    assert summary.title(board) == "smollm2_135m, protocol smoke, cpu, machine ffffffff"
    ok, failed = summary.parted(board)
    assert (len(ok), len(failed)) == (11, 1)
