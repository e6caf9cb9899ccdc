from dataclasses import replace

import pandas as pd
import pytest

from squeeze.boards.pick import best_first, show
from squeeze.core.errors import SqueezeError
from squeeze.records.record import Estimate
from squeeze.records.store import RecordStore
from tests.fabricated import smoke_records, too_good


@pytest.fixture
def results(tmp_path):
    store = RecordStore(tmp_path)
    store.prepare()
    for each in smoke_records():
        store.write(each)
    return tmp_path


def picked(capsys, *arguments):
    """Exit code, and the remark on each row that is shown, in order."""
    code = show(*arguments)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and "─" not in line]
    rows = [line.split() for line in lines if line.strip() and line.split()[0] != "row"]
    return code, {row[0]: "best" if row[-1] == "best" else "tie" if "tie:" in row else "" for row in rows}


def test_the_best_under_so_many_bytes_comes_first(results, capsys):
    code, rows = picked(capsys, results, ["bytes=113M", "ttft_ms=231"], [], "perplexity")
    assert code == 0
    assert list(rows) == ["rtn-4-g64", "rtn-4-row", "rtn-3-g64", "rtn-2-g64"]
    assert rows["rtn-4-g64"] == "best"


def test_a_row_that_is_not_believed_is_not_picked(results, capsys):
    RecordStore(results).write(
        replace(too_good(smoke_records()[6]), attempt="e" * 32, finished="2026-03-01T00:00:00+00:00")
    )
    _, rows = picked(capsys, results, ["bytes=113M"], [], "perplexity")
    assert list(rows) == ["rtn-4-row", "rtn-3-g64", "rtn-2-g64"]


def test_bounds_hold_from_both_sides_and_a_row_without_the_figure_is_left_out(results, capsys):
    code, rows = picked(capsys, results, ["decode_speedup=1.66"], ["decode_speedup=1.44"], "bytes")
    assert code == 0
    assert list(rows) == ["rtn-4-g64", "bnb_nf4-4", "bnb_fp4-4"]  # the bounds are kept by what is equal to them


def test_ties_in_perplexity_are_tested_pairwise(results, capsys):
    """Three rows within noise of one another are a tie, the one that is worse is not."""
    _, rows = picked(capsys, results, [], ["bytes=163M"], "perplexity")
    assert rows["none-bfloat16"] == "best"
    assert rows["rtn-8-g64"] == "tie"
    assert rows["magnitude-s0.5"] == ""
    _, rows = picked(capsys, results, ["bytes=110M"], [], "perplexity")
    assert rows == {"rtn-4-row": "best", "rtn-3-g64": "", "rtn-2-g64": ""}  # ranks 1, 2 and 3


def test_of_rates_more_is_better_and_rows_whose_spreads_meet_tie(results, capsys):
    _, rows = picked(capsys, results, ["bytes=120M"], [], "decode_tokens_per_s")
    assert list(rows)[:2] == ["rtn-4-row", "rtn-4-g64"]
    assert rows["rtn-4-row"] == "best"
    assert rows["rtn-4-g64"] == "tie"
    assert rows["bnb_nf4-4"] == ""


def test_accuracies_tie_within_their_standard_errors(results, capsys):
    other = smoke_records()[6]
    figures = {**other.estimates, "acc_sciq": Estimate(0.5)}
    store = RecordStore(results)
    store.write(replace(other, attempt="f" * 32, finished="2026-02-01T00:00:00+00:00", estimates=figures))
    _, rows = picked(capsys, results, ["bytes=113M"], [], "acc_sciq")
    assert list(rows)[-1] == "rtn-4-g64"
    assert rows["rtn-4-g64"] == ""
    assert list(rows.values())[1:-1] == ["tie", "tie"]


def test_when_nothing_fits_each_bound_is_counted(results, capsys):
    assert show(results, ["bytes=90M"], ["acc_sciq=0.9"], "perplexity") == 1
    shown = capsys.readouterr().out
    assert "no row of 11 keeps all bounds" in shown
    assert "bytes <= 9e+07: 1 do" in shown
    assert "acc_sciq >= 0.9: 0 do" in shown


@pytest.mark.parametrize(
    ("most", "by", "words"),
    [
        ("byts=80M", "perplexity", "no column 'byts'; did you mean 'bytes'?"),
        ("bytes=80X", "perplexity", "'bytes=80X' is no bound; expected COLUMN=NUMBER"),
        ("bytes", "perplexity", "'bytes' is no bound"),
        ("label=1", "perplexity", "column 'label' holds no numbers"),
        ("bytes=80M", "perplexty", "did you mean 'perplexity'?"),
    ],
)
def test_a_mistake_is_explained(results, most, by, words):
    with pytest.raises(SqueezeError) as refusal:
        show(results, [most], [], by)
    assert words in str(refusal.value)


def test_what_a_good_figure_is_called_after_may_be_good_when_small():
    best = {"decode_speedup_p_value": 1.0, "decode_speedup_b8": 2.0, "sparsity": 2.0, "bytes": 1.0}
    board = pd.DataFrame({name: [1.5, 1.0, 2.0] for name in best})
    assert {name: best_first(board, name).loc[0, name] for name in best} == best


def test_no_record_is_an_error(tmp_path):
    with pytest.raises(SqueezeError, match="no record in"):
        show(tmp_path, [], [], "perplexity")
