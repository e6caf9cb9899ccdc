"""Whether a row is as good as its baseline, in words: what each interval allows to say, and against which floor."""

from __future__ import annotations

from typing import Any

import pytest

from squeeze.boards.certificate import lines
from squeeze.records.answers import Margins
from squeeze.records.record import Estimate, Record
from tests.fabricated import cell, record

HOW = "bfloat16 against itself, read 256 tokens at a time"


def row(
    kl: tuple[float, float, float] = (0.004, 0.003, 0.005), delta: tuple[float, float] = (-0.02, 0.05), **changes: Any
) -> Record:
    """A row whose perplexity is 13.5 and whose figures have these intervals; ``changes`` replace estimates."""
    tails = {f"kl_{name}": Estimate(kl[0], n=8184) for name in ("median", "p90", "p99")}
    estimates = {
        **tails,
        "kl_divergence": Estimate(*kl, n=16),
        "kl_floor": Estimate(0.0006, n=5115),
        "perplexity": Estimate(13.5),
        "perplexity_delta": Estimate(sum(delta) / 2, *delta, p_value=0.5 if delta[0] <= 0 <= delta[1] else 0.001, n=64),
        "top1_agreement": Estimate(0.95, 0.94, 0.96, n=16),
        "top1_floor": Estimate(0.988, n=5115),
        **changes,
    }
    known = {name: estimate for name, estimate in estimates.items() if estimate is not None}
    return record(cell("rtn", "quantization", {"bits": 8}), known, realised={"noise_floor": HOW})


def said(subject: Record, name: str, **margins: float) -> str:
    told = lines(subject, Margins(**margins))
    [line] = [line.strip() for line in told if line.strip().startswith(f"{name}:")]
    return line


def verdict(subject: Record, **margins: float) -> str:
    return lines(subject, Margins(**margins))[0].removeprefix("  against its own baseline: ")


def test_below_the_floor_no_loss_is_shown_and_the_floor_is_named() -> None:
    subject = row(kl=(0.0004, 0.0003, 0.0005), acc_pooled_delta=Estimate(0.0, -0.045, 0.045, 1.0, 400))
    assert said(subject, "KL") == (
        f"KL: 0.0004 nats [0.0003, 0.0005] lies below the noise floor 0.0006 ({HOW}; 5,115 tokens): "
        "no loss shown: equivalent"
    )
    assert verdict(subject) == "equivalent"  # though 400 answers cannot show it


@pytest.mark.parametrize(
    ("kl", "word"),
    [
        ((0.0005, 0.0004, 0.0007), "equivalent"),  # across the floor, within the margin
        ((0.004, 0.003, 0.01), "equivalent"),
        ((0.008, 0.006, 0.011), "worse"),  # beyond the floor, and not within the margin
        ((0.2, 0.1, 0.3), "worse"),
        ((0.01, 0.0001, 0.02), "undecided"),
        ((0.01, None, None), "undecided"),
    ],
)
def test_a_divergence_is_judged_by_its_interval(kl: Any, word: str) -> None:
    subject = row(kl=kl)
    assert said(subject, "KL").endswith(f": {word}")
    assert verdict(subject) == (word if word == "equivalent" else f"{word} (KL)")


def test_without_a_floor_it_is_said_that_there_is_none() -> None:
    assert "no noise floor (another rounding; not measured), margin 0.01" in said(row(kl_floor=None), "KL")
    assert said(row(kl=(0.0004, 0.0003, 0.0005), kl_floor=None), "KL").endswith(": equivalent")  # by the margin


@pytest.mark.parametrize(
    ("delta", "word"),
    [((-0.02, 0.05), "equivalent"), ((0.05, 0.2), "worse"), ((-0.2, 0.2), "undecided"), ((-0.4, -0.2), "better")],
)
def test_perplexity_is_judged_as_a_share_of_the_baselines(delta: tuple[float, float], word: str) -> None:
    assert said(row(delta=delta), "perplexity").endswith(f"margin 1 %: {word}")


def test_margins_are_the_readers() -> None:
    subject = row(delta=(0.05, 0.2))
    assert said(subject, "perplexity", perplexity=0.02).endswith("margin 2 %: equivalent")
    assert said(row(), "KL", kl=0.004).endswith("margin 0.004: worse")
    answers = row(acc_pooled_delta=Estimate(-0.03, -0.049, -0.011, 0.01, 4000))
    assert said(answers, "accuracy") == "accuracy: -3.00 [-4.90, -1.10] points, margin 1 points: worse"
    assert said(answers, "accuracy", accuracy=0.05).endswith("margin 5 points: equivalent")


def test_lost_answers_are_worse_and_won_ones_are_not() -> None:
    assert said(row(acc_pooled_delta=Estimate(-0.1, -0.14, -0.06, 1e-4, 400)), "accuracy").endswith("worse")
    assert said(row(acc_pooled_delta=Estimate(0.1, 0.06, 0.14, 1e-4, 400)), "accuracy").endswith("better")


def test_one_loss_makes_the_row_worse_and_what_is_open_leaves_it_undecided() -> None:
    undecided = Estimate(0.0, -0.045, 0.045, 1.0, 400)
    assert verdict(row(acc_pooled_delta=undecided)) == "undecided (accuracy)"
    assert verdict(row(delta=(0.05, 0.2), acc_pooled_delta=undecided)) == "worse (perplexity)"
    assert verdict(row()) == "equivalent"
    assert verdict(row(kl=(0.0004, 0.0003, 0.0005), delta=(0.05, 0.2))) == "worse (perplexity)"


def test_tails_agreement_and_generations_are_told() -> None:
    subject = row(
        kl_confident=Estimate(0.001, n=3000),
        divergent_share=Estimate(0.42, n=8),
        divergent_floor=Estimate(0.05, n=2),
        first_divergence=Estimate(11.5, n=8),
        repetition=Estimate(0.3, n=8),
        baseline_repetition=Estimate(0.2, n=8),
        retained_accuracy=Estimate(0.981, n=6000),
    )
    text = "\n".join(lines(subject, Margins()))
    assert "by the baseline's confidence 0.001 (at least 0.9)" in text
    assert "same likeliest token: 95.0 [94.0, 96.0] %; the baseline with itself 98.8%" in text
    assert "of 8 prompts: 42% of tokens differ, the first after 11.5 (median); the baseline with itself 5%" in text
    assert "repeated 4-grams 30%, the baseline's 20%" in text
    assert "keeps at least 98.1% of the accuracy (one-sided 95 %, 6,000 items)" in text


def test_records_without_these_figures_say_nothing() -> None:
    assert lines(row(kl_median=None), Margins()) == []
