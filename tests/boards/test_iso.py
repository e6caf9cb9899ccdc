"""The best row of each family within so many bytes, beside the best of all; and who has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from squeeze.boards import iso
from squeeze.boards.family_plot import best_so_far, families
from squeeze.boards.table import table
from squeeze.cli import main
from squeeze.core.errors import SqueezeError
from squeeze.records.items import unpacked
from squeeze.records.record import Record
from squeeze.records.statistics import accuracy_change, perplexity_ratio
from squeeze.records.store import RecordStore
from tests import classified
from tests.fabricated import smoke_records, too_good


def chosen(records: list[Record], most: float) -> tuple[pd.DataFrame, list[str]]:
    board = table(records)
    found = iso.best_of_families(board, most, {each.attempt: each for each in records})
    return found, list(iso.without(board, found, most))


def said(found: pd.DataFrame) -> list[dict[str, str]]:
    return [{each.heading: each.text(row) for each in iso.columns(found)} for _, row in found.iterrows()]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path)
    store.prepare()
    for each in smoke_records():
        store.write(each)
    return tmp_path


def test_each_family_has_its_best_row_within_the_bytes() -> None:
    board = table(smoke_records())
    found, _ = chosen(smoke_records(), 220e6)
    assert list(found["name"]) == ["rtn-8-g64", "magnitude-s0.5"]
    ok = board[(board["status"] == "ok") & (board["bytes"] <= 220e6)]
    for _, row in found.iterrows():
        assert row["perplexity"] == ok[ok["family"] == row["family"]]["perplexity"].min()
    assert found["perplexity"].is_monotonic_increasing
    assert (found["bytes"] <= 220e6).all()


def test_a_row_of_just_the_bytes_fits_and_one_byte_less_does_not_hold_it() -> None:
    size = int(table(smoke_records()).set_index("label").loc["smollm2_135m-rtn-4-g64", "bytes"])
    within, _ = chosen(smoke_records(), size)
    below, _ = chosen(smoke_records(), size - 1)
    assert "rtn-4-g64" in set(within["name"])
    assert "rtn-4-g64" not in set(below["name"])


def test_a_family_without_a_row_says_how_small_it_gets() -> None:
    _, lacking = chosen(smoke_records(), 113e6)
    baseline = "baseline: no row of at most 113 MB: its smallest takes 269 MB"
    assert baseline in lacking
    assert any(text.startswith("pruning: no row of at most 113 MB: its smallest takes ") for text in lacking)
    found, lacking = chosen(smoke_records(), 1e3)
    assert found.empty
    assert len(lacking) == table(smoke_records())["family"].nunique()


def test_beside_the_best_stands_the_ratio_paired_by_block() -> None:
    records = smoke_records()
    found, _ = chosen(records, 220e6)
    by_attempt = {each.attempt: each for each in records}
    first, second = (by_attempt[attempt] for attempt in found["attempt"][:2])
    ratio = perplexity_ratio(second.block_nll, first.block_nll)
    assert ratio.value > 1
    assert found.loc[1, ["beside_best", "beside_best_low", "beside_best_high"]].tolist() == [
        ratio.value,
        ratio.low,
        ratio.high,
    ]
    lines = said(found)
    assert (lines[0]["beside the best"], lines[0][""]) == ("\N{EM DASH}", "best")
    assert lines[1]["beside the best"] == f"{ratio.value:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"


def test_a_tie_is_told_only_where_no_difference_is_shown() -> None:
    found, _ = chosen(smoke_records(), 1e9)
    remarks = dict(zip(found["name"], found["remark"], strict=True))
    assert remarks.pop("none-bfloat16") == iso.BEST
    assert remarks == {"rtn-8-g64": iso.TIED, "magnitude-s0.5": ""}


def test_a_row_that_is_not_believed_stands_for_no_family() -> None:
    records = smoke_records()
    place = next(n for n, each in enumerate(records) if each.cell["technique"]["name"] == "rtn")
    cheat = replace(too_good(records[place]), attempt="e" * 32, finished="2026-03-01T00:00:00+00:00")
    found, _ = chosen([*records, cheat], 1e9)
    assert "e" * 32 not in set(found["attempt"])


def test_classifiers_are_chosen_by_accuracy() -> None:
    records = classified.records()
    found, _ = chosen(records, 1e9)
    best = table(records)["acc_pooled"].max()
    assert found.loc[0, "acc_pooled"] == best
    by_attempt = {each.attempt: each for each in records}
    first, last = (by_attempt[found["attempt"].iloc[place]] for place in (0, -1))
    lost = accuracy_change(unpacked(last.item_correct), unpacked(first.item_correct))
    assert lost.value < 0
    assert said(found)[-1]["beside the best"].startswith(f"{lost.value:+.3f} [")
    assert said(found)[0]["quality"] == f"{best:.1%}"


def test_the_command_prints_the_families_and_draws_them(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = results / "families.png"
    assert main(["board", "--iso-bytes", "113M", "--plot", str(picture), "--results", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "at most 113,000,000 bytes" in shown
    assert "baseline: no row of at most 113 MB" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["board", "--plot", str(picture), "--results", str(results)]) == 2
    assert "expected --iso-bytes SIZE or --serving beside it" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["", "many", "0", "-5M"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(SqueezeError, match="expected bytes above 0"):
        iso.budget(size)


def test_a_front_holds_what_is_better_than_all_smaller() -> None:
    rows = pd.DataFrame({"bytes": [3, 1, 2, 4], "perplexity": [20.0, 30.0, 31.0, 20.5], "acc": [0.2, 0.3, 0.4, 0.35]})
    assert best_so_far(rows, "perplexity", -1)["bytes"].tolist() == [1, 3]
    assert best_so_far(rows, "acc", 1)["bytes"].tolist() == [1, 2]


def test_a_board_without_a_ranked_row_is_drawn_all_the_same() -> None:
    frame = table(smoke_records()).assign(rank_low=np.nan)
    assert families(frame, 1e8).startswith(b"\x89PNG")
