"""What is claimed to be left stands beside what is, and what is worse than uncompressed is called so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from squeeze.boards import claims, narrow
from squeeze.boards.table import table
from squeeze.cli import main
from squeeze.records.record import Estimate, Record
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record, smoke_records


def measured(name: str, step: dict[str, Any], claimed: dict[str, Any], family: str = "pruning", **told: Any) -> Record:
    """A row of bfloat16 whose figures are those of an uncompressed model, but for those that are told."""
    bits, peak = told.pop("bits", 16.0), told.pop("peak", 100e6)
    figures = {"decode_peak_bytes": Estimate(peak), "bytes": Estimate(bits * 1e6), "perplexity": Estimate(20.0)}
    realised = {"effective_bits": bits, "bytes_real": True, "memory_real": False, "compute_real": False}
    return record(cell(name, family, step), {**figures, **told}, realised=realised, claimed=claimed)


def joined(*records: Record) -> pd.DataFrame:
    baseline = measured("none", {}, {}, family="baseline")
    every = [replace(each, attempt=f"{n:032x}") for n, each in enumerate((baseline, *records))]
    return claims.joined(table(every), {each.attempt: each for each in every})


def said(row: pd.Series) -> dict[str, str]:
    return {column.heading: column.text(row) for column in claims.COLUMNS}


def test_a_share_is_what_all_claims_leave_together() -> None:
    assert claims.share({"bits": 4.0}, 16) == 0.25
    assert claims.share({"bits": 4.0}, 32) == 0.125
    assert claims.share({"sparsity": 0.75}, 16) == 0.25
    assert claims.share({"bits": 8.0, "sparsity": 0.5, "layers_kept": 0.5, "heads_kept": 0.5}, 16) == 0.0625
    assert claims.share({"channels_kept": 0.5}, 16) == 0.5
    assert claims.share({"channels_kept": 0.5, "heads_kept": 0.75, "hidden_kept": 0.5}, 16) == 0.3125
    assert pd.isna(claims.share({}, 16))


def test_what_is_asked_counts_only_where_nothing_is_claimed() -> None:
    svd = measured("svd", {"weights_kept": 0.8}, {}, family="low_rank")
    assert claims.nominal(svd) == {"weights_kept": 0.8}
    assert claims.nominal(replace(svd, claimed={"weights_kept": 0.79})) == {"weights_kept": 0.79}
    of_parts = measured("flap", {"weights_kept": 0.8}, {"channels_kept": 0.7, "heads_kept": 0.9})
    assert claims.nominal(of_parts) == {"weights_kept": 0.8}, "of all weights, not of each part"
    trained_away = measured("wanda_finetune", {"sparsity": 0.5}, {"training_tokens": 9})
    assert claims.nominal(trained_away) == {}


def test_shares_are_of_the_uncompressed_model_in_the_same_dtype() -> None:
    [row] = (each for _, each in joined(measured("wanda", {"sparsity": 0.5}, {"sparsity": 0.5}, bits=9.0)).iterrows())
    assert (row["claimed"], row["bytes_share"], row["peak_share"]) == (0.5, 9 / 16, 1.0)
    text = said(row)
    assert (text["claimed"], text["of"], text["bytes"], text["peak"]) == ("50%", "sparsity 0.5", "56%", "100%")


def test_what_is_worse_than_uncompressed_has_its_word() -> None:
    slow = {"decode_speedup": Estimate(0.8, 0.75, 0.85, 1e-6, 8), "ttft_speedup": Estimate(1.3, 1.2, 1.4, 1e-6, 8)}
    worse = measured("heavy", {"sparsity": 0.5}, {"sparsity": 0.5}, bits=17.0, peak=120e6, **slow)
    rows = joined(worse)
    text = said(rows.iloc[0])
    assert (text["bytes"], text["peak"]) == ("106% larger", "120% more")
    assert text["decode"] == "0.80 [0.75, 0.85] ▼ slower"
    assert text["prefill"] == "1.30 [1.20, 1.40] ▲"
    assert list(claims.unwon(rows)) == [
        "claim less, and are larger on disk: heavy-s0.5",
        "claim less, and are larger in memory: heavy-s0.5",
        "claim less, and are slower in decoding: heavy-s0.5",
    ]


def test_who_claims_nothing_is_not_said_to_have_missed_it() -> None:
    rows = joined(measured("lora", {}, {"training_tokens": 9}, family="training", bits=17.0))
    assert said(rows.iloc[0])["claimed"] == said(rows.iloc[0])["of"] == "\N{EM DASH}"
    assert list(claims.unwon(rows)) == []


def test_without_a_baseline_on_the_board_a_peak_is_no_share() -> None:
    alone = measured("wanda", {"sparsity": 0.5}, {"sparsity": 0.5}, bits=9.0)
    found = claims.joined(table([alone]), {alone.attempt: alone})
    assert pd.isna(found.loc[0, "peak_share"])
    assert found.loc[0, "bytes_share"] == 9 / 16


def test_the_command_shows_every_compressed_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RecordStore(tmp_path)
    store.prepare()
    for each in smoke_records():
        store.write(each)
    assert main(["board", "--claims", "--results", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "rtn-4-g64" in shown
    assert "none-bfloat16" not in shown
    assert "Claimed: the nominal share" in shown


def test_where_it_is_narrow_speeds_go_without_their_intervals_and_keep_their_words() -> None:
    slow = {"decode_speedup": Estimate(0.8, 0.75, 0.85, 1e-6, 8)}
    rows = joined(measured("heavy", {"sparsity": 0.5}, {"sparsity": 0.5}, bits=9.0, **slow))
    shown = claims.columns(rows)
    wide, slim, slimmest = (narrow.shortened(shown, rows, width, claims.SPARE) for width in (120, 70, 50))
    assert [column.text(rows.iloc[0]) for column in wide][-1] == "0.80 [0.75, 0.85] ▼ slower"
    assert [column.text(rows.iloc[0]) for column in slim][-1] == "0.80 ▼ slower"
    assert [column.heading for column in slim] == [column.heading for column in wide]
    assert [column.heading for column in slimmest] == [
        column.heading for column in wide if column.heading not in claims.SPARE
    ]
