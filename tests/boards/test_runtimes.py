"""Rows of several runtimes that were timed beside one eager model stand on one board, which says what computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from squeeze.boards import columns, compare, summary
from squeeze.boards.table import table
from squeeze.records.record import Estimate, Record
from tests.fabricated import ENVIRONMENT, RUNTIME, cell, record, smoke_records

EAGER = "f" * 64


def elsewhere(name: str = "llama_cpp", beside: str | None = EAGER, **changes: Any) -> Record:
    """The uncompressed model in another runtime."""
    runtime = {**RUNTIME, "name": name, "_target_": "other.Other"}
    subject = cell("none", "baseline", {}, runtime=runtime)
    figures = {
        "perplexity": Estimate(13.5),
        "perplexity_delta": Estimate(0.04, -0.01, 0.09, 0.1, 256),
        "decode_speedup": Estimate(2.1, 2.0, 2.2, 1e-6, 8),
        "kl_divergence": Estimate(0.0009),
    }
    place = {**ENVIRONMENT, "engine": {"an-engine": "1.0"}, **({} if beside is None else {"beside": beside})}
    other = smoke_records()[0]
    fields = {"fingerprint": "e" * 64, "environment": place, "block_nll": other.block_nll, **changes}
    return record(subject, figures, **fields)


def test_they_are_ranked_and_named_together() -> None:
    frame = table([*smoke_records(), elsewhere()])
    assert frame["board"].nunique() == 1
    shown = frame.set_index("label")
    assert set(frame["runtime"]) == {"eager", "llama_cpp"}
    assert set(frame["beside"]) == {EAGER}
    assert {"smollm2_135m-none-bfloat16@eager", "smollm2_135m-none-bfloat16@llama_cpp"} <= set(shown.index)
    assert shown["rank"].loc["smollm2_135m-none-bfloat16@llama_cpp"] == 1
    assert list(frame["rank"].dropna()) == sorted(frame["rank"].dropna()), "in the order of ranks, whoever computes"
    assert "machine ffffffff" in summary.title(frame)


def test_a_row_of_before_keeps_a_board_of_its_own() -> None:
    frame = table([*smoke_records(), elsewhere("compile", beside=None)])
    assert frame["board"].nunique() == 2
    assert not {"runtime", "beside"} & set(frame.columns), "nor has its table other columns than it had"


def test_the_uncompressed_model_of_another_runtime_is_compared_as_any_row() -> None:
    frame = table([*smoke_records(), elsewhere()])
    rows = summary.shown(frame[frame["status"] == "ok"])
    shown = columns.columns(rows)
    assert [column.heading for column in shown][:4] == ["rank", "group", "technique", "runtime"]
    said = {
        row["runtime"]: {column.heading: column.text(row) for column in shown}
        for _, row in rows[rows["family"] == "baseline"].iterrows()
    }
    assert said["llama_cpp"]["KL"] == "0.0009"
    assert said["llama_cpp"]["change"].startswith("+0.04")
    assert said["eager"]["KL"] == said["eager"]["change"] == "—"
    assert "Runtime: what computes" in columns.legend(frame)
    assert "Runtime: " not in columns.legend(table(smoke_records()))


def test_where_the_eager_model_is_no_row_it_is_implied() -> None:
    rows = summary.shown(table([elsewhere()]))
    assert list(rows["runtime"]) == ["eager", "llama_cpp"]
    assert rows["perplexity"].iloc[0] == pytest.approx(13.46)


def test_two_runtimes_are_compared_and_rows_of_other_rounds_are_not() -> None:
    base = smoke_records()[0]
    sides = {name: compare.Side(each, {}) for name, each in (("eager", base), ("other", elsewhere()))}
    assert list(compare._unlike(sides["eager"], sides["other"])) == []
    apart = compare.Side(replace(elsewhere(), environment=ENVIRONMENT), {})
    assert any("runtime._target_" in text for text in compare._unlike(sides["eager"], apart))
