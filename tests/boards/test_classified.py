"""A board of classifiers ranks by accuracy, and has no word of perplexity; one of language models is as it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from squeeze.audit.verify import verify
from squeeze.boards import columns, narrow, plots, summary
from squeeze.boards.certificate import lines
from squeeze.boards.leaderboard import collate, markdown
from squeeze.boards.pick import show
from squeeze.boards.row import figures
from squeeze.boards.table import table
from squeeze.boards.terminal import show_serving
from squeeze.records.answers import Margins
from squeeze.records.record import ENCODES_OTHERWISE, Record
from squeeze.records.statistics import accuracy_change
from squeeze.records.store import RecordStore
from tests import classified
from tests.classified import answers, of_classifier, row
from tests.fabricated import smoke_records

LABELS = ["minilm_sst2-none-float32", "minilm_sst2-rtn-8", "minilm_sst2-rtn-4", "minilm_sst2-wanda-s0.5"]


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return table(classified.records())


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = RecordStore(tmp_path)
    store.prepare()
    for each in classified.records():
        store.write(each)
    return tmp_path


def test_rows_are_ranked_by_their_answers(frame: pd.DataFrame) -> None:
    assert sorted(frame["label"][:2]) == sorted(LABELS[:2])
    assert list(frame["label"][2:]) == LABELS[2:]
    assert list(zip(frame["rank_low"], frame["rank_high"], frame["group"], strict=True)) == [
        (1, 2, "a"),
        (1, 2, "a"),
        (3, 3, "b"),
        (4, 4, "c"),
    ]
    assert frame["acc_pooled"].is_monotonic_decreasing
    assert "item_correct" not in frame


def test_verdicts_are_of_accuracy_and_of_encoding(frame: pd.DataFrame) -> None:
    by_label = frame.set_index("label")
    assert by_label.loc[LABELS[2], "acc_pooled_delta_verdict"] == "worse"
    assert by_label.loc[LABELS[1], "encode_speedup_verdict"] == "faster"


def test_its_columns_are_those_of_a_classifier(frame: pd.DataFrame) -> None:
    rows = summary.shown(frame)
    shown = columns.columns(rows)
    assert [column.heading for column in shown] == [
        *("rank", "group", "technique", "bits", "size", "texts/s", "speed-up", "accuracy", "change", "kept"),
        *("KL", "top-1", "real", "ok"),
    ]
    said = {column.heading: column.text(rows.iloc[2]) for column in shown}
    change = accuracy_change(answers(60, 10, seed=2), classified.baseline_answers())
    assert change.low is not None
    assert change.high is not None
    assert said["change"] == f"-5.7 [{100 * change.low:.1f}, {100 * change.high:.1f}] ▼"
    assert (said["texts/s"], said["speed-up"]) == ("112.0", "1.12 [1.10, 1.14] ▲")
    assert said["rank"] == "3"


@pytest.mark.parametrize("width", [48, 60, 80, 100])
def test_however_narrow_the_accuracy_stays(frame: pd.DataFrame, width: int) -> None:
    rows = summary.shown(frame)
    chosen = narrow.fitting(rows, width)
    texts = [[column.heading, *(column.text(each) for _, each in rows.iterrows())] for column in chosen]
    assert 1 + sum(1 + max(map(len, each)) for each in texts) <= width
    assert {"technique", "accuracy"} <= {column.heading for column in chosen}


def test_the_published_page_knows_both_kinds_of_boards(frame: pd.DataFrame) -> None:
    alone = markdown(frame)
    assert "perplexity" not in alone.lower().replace("perplexity=0.01", "")  # which is a margin
    assert "Of classifiers, rank: from 1 + how many rows are shown better in accuracy" in alone
    assert "| encode ms |" in alone
    language = markdown(table(smoke_records()))
    assert "classifiers" not in language
    both = markdown(table([*smoke_records(), *classified.records()]))
    assert "Rank: from 1 + how many rows are shown better in perplexity" in both
    assert "Of classifiers, rank: " in both


def test_leaderboards_are_what_verify_makes_of_them(results: Path) -> None:
    collate(results, results)
    assert "acc_pooled_delta_verdict" in (results / "leaderboard.csv").read_text().splitlines()[0]
    path = results / "leaderboard.md"
    path.write_text(path.read_text().replace("a", "b"))
    assert verify(results) == 1


def test_a_board_of_language_models_has_the_columns_that_it_had() -> None:
    added = [name for name in table(smoke_records()) if name.startswith(("encode", "items", "control", "acc_pooled"))]
    assert added == []


def test_what_is_timed_otherwise_than_scored_has_no_rank(frame: pd.DataFrame) -> None:
    first, *others = classified.records()
    found = table([first, *(replace(each, flags=(ENCODES_OTHERWISE,)) for each in others)]).set_index("label")
    assert found["rank_low"].notna().sum() == 1
    assert found.loc[LABELS[1], "encode_speedup_verdict"] == "?"
    assert found.loc[LABELS[1], "acc_pooled_delta_verdict"] != "?"


def test_other_numbers_of_items_are_ranked_apart() -> None:
    other = replace(classified.records()[1], item_correct="8:ff")
    found = table([classified.records()[0], *classified.records()[2:], other]).set_index("label")
    assert pd.isna(found.loc[LABELS[1], "rank_low"])
    assert found["rank_high"].max() == 3


def picked(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    assert show(*arguments) == 0  # type: ignore[arg-type]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ") and "─" not in line]
    return [line.split()[0] for line in lines if line.strip()]


def test_the_smallest_that_keeps_an_accuracy_is_picked(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = float(classified.baseline_answers().mean())
    assert picked(capsys, results, [], [f"acc_pooled={best - 0.02}"], "bytes")[1:] == ["rtn-8", "none-float32"]
    assert picked(capsys, results, ["bytes=60M"], [])[1:] == ["rtn-8", "rtn-4"]


def test_rows_tie_in_accuracy_where_mcnemar_does_not_part_them(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(results, [], [])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [
        ("tie" in line, "best" in line) for line in lines if "rtn" in line or "none" in line or "wanda" in line
    ] == [
        (False, True),
        (True, False),
        (False, False),
        (False, False),
    ]


def test_the_plot_has_accuracy_on_its_axis(frame: pd.DataFrame) -> None:
    figure = plots.draw(frame)
    assert {axes.get_ylabel() for axes in figure.axes} == {"accuracy (more is better)"}
    assert "texts/s" in figure.axes[1].get_xlabel()
    size = plots._placed(plots.OF_CLASSIFIERS[0], frame).set_index("label")
    assert list(size["front"]) == [name in LABELS[1:3] for name in size.index]
    assert {axes.get_ylabel() for axes in plots.draw(table(smoke_records())).axes} == {"perplexity (less is better)"}


def test_an_accuracy_far_below_the_best_is_drawn_on_the_lower_edge_with_its_figure(frame: pd.DataFrame) -> None:
    far = plots._placed(plots.OF_CLASSIFIERS[0], frame).set_index("label")
    [pruned] = [name for name in far.index if "wanda" in name]
    assert far["beyond"].tolist() == [name == pruned for name in far.index]
    assert far["y"][pruned] == pytest.approx(frame["acc_pooled"].max() - plots.FOOTROOM)
    assert far.drop(pruned)["y"].equals(far.drop(pruned)["quality"])
    size, _ = plots.draw(frame).axes
    [name] = [text.get_text() for text in size.texts if "wanda" in text.get_text()]
    assert name.endswith(f"↓ {far['quality'][pruned]:.3g}")


def test_a_published_student_is_drawn_beside_ours_and_named_as_another_model(frame: pd.DataFrame) -> None:
    figure = plots.draw(frame)
    whole = frame[frame["family"] == "baseline"].sort_values("bytes").iloc[-1]
    for axes, x in zip(figure.axes, (0.60 * whole["bytes"] / 1e6, 1.63 * whole["items_per_s"]), strict=True):
        [drawn] = [line for line in axes.lines if line.get_marker() == plots.PUBLISHED]
        assert drawn.get_xydata().ravel().tolist() == pytest.approx([x, 0.97 * whole["acc_pooled"]])
        assert any(text.get_text() == "DistilBERT of BERT, as published" for text in axes.texts)
    assert "another model" in figure.get_supxlabel()
    of_text = plots.draw(table(smoke_records()))
    assert "another model" not in of_text.get_supxlabel()
    assert not [line for axes in of_text.axes for line in axes.lines if line.get_marker() == plots.PUBLISHED]


def test_a_row_is_said_in_the_words_of_classifiers() -> None:
    own = classified.records()[2]
    told = list(figures(own, classified.records()))
    assert "  rank 3, by accuracy: group b" in told
    assert any(text.startswith("  kl_divergence: 0.02 nats a text [") for text in told)
    assert any(text.startswith("  encode_ms: ") and "over the rounds" in text for text in told)


def test_the_certificate_counts_texts() -> None:
    told = "\n".join(lines(classified.records()[2], Margins()))
    assert "against its own baseline: worse (KL, accuracy)" in told
    assert "same class: " in told
    assert "token" not in told


def test_serving_shows_each_batch_size(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_serving(results)
    shown = capsys.readouterr().out
    assert "encode" in shown
    assert "448.0" in shown


SCHEDULE = {"training_steps": 64, "windows": 32, "learning_rate": 1e-4}
FEW, MANY = answers(20, 5, seed=7), answers(80, 5, seed=8)


def trained(technique: str, family: str, right: np.ndarray) -> Record:
    return row(technique, family, SCHEDULE, right, subject=of_classifier(technique, family, SCHEDULE))


def test_a_trained_classifier_stands_beside_its_control() -> None:
    student, control = trained("distil", "training", MANY), trained("finetune_classifier", "control", FEW)
    found = table([*classified.records(), student, control]).set_index("technique")
    change = accuracy_change(MANY, FEW)
    assert found.loc["distil", "control_acc_pooled"] == pytest.approx(FEW.mean())
    assert found.loc["distil", "acc_over_control"] == pytest.approx(change.value)
    assert found.loc["distil", "acc_over_control_p_value"] == pytest.approx(change.p_value)
    [told] = summary.controls(found.reset_index())
    assert told.startswith(
        f"distil: accuracy {MANY.mean():.4g}, its control's {FEW.mean():.4g}; difference {change.value:+.3f} ["
    )
    [told] = summary.controls(table([*classified.records(), student]))
    assert told == "distil: control: none; measure technique=finetune_classifier with the same training settings"


@pytest.mark.parametrize("make", [smoke_records, classified.records])
def test_legends_explain_what_is_shown(make: Callable[[], list[Record]]) -> None:
    frame = table(make())
    shown = columns.columns(summary.shown(frame))
    legend = columns.legend(frame, shown)
    assert all(column.words in legend for column in shown if column.words)
