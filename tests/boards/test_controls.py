"""Trained rows stand beside their control, and say so where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from squeeze.boards import summary
from squeeze.boards.leaderboard import markdown
from squeeze.boards.table import table
from squeeze.records.record import Estimate, Record, Status
from squeeze.records.statistics import perplexity_ratio
from squeeze.request.cell import Cell
from tests.fabricated import PROTOCOL, cell, record, smoke_records

SCHEDULE = {"training_steps": 64, "windows": 1, "learning_rate": 4e-4}
TRAINED = {**PROTOCOL, "perplexity_ood": {"corpus": "speeches"}}
TEXT = np.random.default_rng(0).gamma(16, 0.17, size=(3, 256))


def trained(technique: str, family: str, losses: Any, **changes: Any) -> Record:
    subject = cell(technique, family, {**SCHEDULE, **changes.pop("step", {})}, protocol=TRAINED)
    estimates = {name: Estimate(float(np.exp(losses.mean()) + more)) for name, more in SCORES.items()}
    return record(Cell.from_json(subject.to_json()), estimates, block_nll=tuple(losses.tolist()), **changes)


SCORES = {"perplexity": 0.0, "perplexity_ood": 5.0}
ROW = trained("qat", "quantization", TEXT[0] + 0.3, step={"bits": 3})
CONTROL = trained("finetune", "control", TEXT[0] + 0.02 * TEXT[1])


def beside(*records: Record) -> pd.Series:
    """The row of qat in the table of these records."""
    frame = table([*smoke_records(), *records])
    return frame[frame["technique"] == "qat"].iloc[0]


def test_a_trained_row_has_the_figures_of_its_control_beside_its_own() -> None:
    row = beside(ROW, CONTROL)
    assert row["control"] == CONTROL.attempt
    for name in SCORES:
        assert row[f"control_{name}"] == CONTROL.estimates[name].value
    expected = perplexity_ratio(ROW.block_nll, CONTROL.block_nll)
    found = [row[f"perplexity_over_control{end}"] for end in ("", "_low", "_high", "_p_value")]
    assert found == pytest.approx([expected.value, expected.low, expected.high, expected.p_value], rel=1e-4)
    assert found[0] == pytest.approx(row["perplexity"] / row["control_perplexity"], rel=1e-4)
    assert 1 < found[1] < found[0] < found[2]


@pytest.mark.parametrize(
    "control",
    [
        trained("finetune", "control", TEXT[0], step={"training_steps": 32}),
        trained("finetune", "control", TEXT[0], step={"learning_rate": 1e-3}),
        replace(CONTROL, status=Status.DIVERGED, reason="the loss is nan"),
        replace(CONTROL, fingerprint="another machine"),
        trained("lora", "quantization", TEXT[0]),
        smoke_records()[0],
    ],
)
def test_what_was_not_trained_alike_is_no_control(control: Record) -> None:
    row = beside(ROW, control)
    assert row["control"] == "none"
    assert pd.isna(row["control_perplexity"])
    assert pd.isna(row["perplexity_over_control"])


def test_the_newest_control_counts() -> None:
    rebuilt = replace(CONTROL, artifact_key="another", attempt="newer", finished="2026-02-01T00:00:00+00:00")
    assert beside(ROW, CONTROL, rebuilt)["control"] == beside(rebuilt, ROW, CONTROL)["control"] == "newer"


def test_unlike_blocks_give_no_ratio() -> None:
    row = beside(replace(ROW, block_nll=ROW.block_nll[:-1]), CONTROL)
    assert row["control"] == CONTROL.attempt
    assert pd.isna(row["perplexity_over_control"])


def test_few_blocks_give_no_interval_and_none_no_ratio() -> None:
    few = [
        replace(each, block_nll=each.block_nll[:8], estimates={"perplexity": each.estimates["perplexity"]})
        for each in (ROW, CONTROL)
    ]
    row = beside(*few)
    expected = perplexity_ratio(few[0].block_nll, few[1].block_nll).value
    assert row["perplexity_over_control"] == pytest.approx(expected, rel=1e-4)
    missing = ["perplexity_over_control_low", "perplexity_over_control_p_value", "control_perplexity_ood"]
    assert row[missing].isna().all()
    row = beside(*(replace(each, block_nll=()) for each in few))
    assert row["control"] == CONTROL.attempt
    assert row["control_perplexity"] == CONTROL.estimates["perplexity"].value
    assert pd.isna(row["perplexity_over_control"])


def test_untrained_tables_stay_as_they_are() -> None:
    assert not [name for name in table(smoke_records()) if "control" in name or name == "training"]
    frame = table([*smoke_records(), ROW, CONTROL]).set_index("technique")
    assert frame["control"].notna().sum() == 1
    assert "training" not in frame


def test_people_read_of_it_below_the_board() -> None:
    frame = table([*smoke_records(), ROW, CONTROL])
    [told] = summary.controls(frame)
    row = frame[frame["technique"] == "qat"].iloc[0]
    assert told == (
        f"qat-3: perplexity {row['perplexity']:.4g}, its control's {row['control_perplexity']:.4g}; ratio "
        f"{row['perplexity_over_control']:.3g} [{row['perplexity_over_control_low']:.3g}, "
        f"{row['perplexity_over_control_high']:.3g}]; on other text {row['perplexity_ood']:.4g}, "
        f"its control's {row['control_perplexity_ood']:.4g}"
    )
    assert f"- {told}".replace("[", "\\[").replace("]", "\\]") in markdown(frame)
    assert "- qat-3: control: none; measure technique=finetune" in markdown(table([*smoke_records(), ROW]))
    failed = replace(ROW, status=Status.CRASHED, reason="killed")
    assert summary.controls(table([*smoke_records(), failed])) == []
