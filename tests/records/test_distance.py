"""The summary of a distance: figures and intervals from the scores of tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy

from squeeze.core.errors import SqueezeError
from squeeze.records.distance import (
    Distance,
    Guess,
    Layer,
    StateError,
    TokenScores,
    Worst,
    overall,
)
from squeeze.records.statistics import student_mean


def scores(tokens: int, seed: int = 0) -> TokenScores:
    rng = np.random.default_rng(seed)
    kl, nll = rng.exponential(0.1, tokens), rng.exponential(3, tokens)
    return TokenScores(kl, rng.random(tokens) < 0.7, nll, nll + kl)


def example(tokens: int = 8192) -> Distance:
    guess = Guess(" a", 0.5, 0.25)
    state = StateError(0.1, 0.2, 0.99)
    return Distance(
        a="one", b="other", text="c4", window=512, **overall(scores(tokens)),
        worst=(Worst(7, 1.5, "some\n[bold]text", " b", guess, guess),),
        layers=(Layer("embeddings", state), Layer("model.layers.0", state, state)),
    )  # fmt: skip


def test_figures_and_intervals_are_those_of_blocks_of_512_tokens() -> None:
    given = scores(8192)
    found = overall(given)
    blocks = given.kl.reshape(16, 512).mean(axis=1)
    low, high = scipy.stats.t.interval(0.95, 15, blocks.mean(), scipy.stats.sem(blocks))
    assert (found["blocks"], found["tokens"]) == (16, 8192)
    assert (found["kl"].low, found["kl"].high) == pytest.approx((low, high))
    assert found["kl"].value == pytest.approx(given.kl.mean())
    assert found["top1"].value == pytest.approx(given.agree.mean())
    assert found["top1"].low < found["top1"].value < found["top1"].high
    assert found["kl_quantiles"]["p99"] == pytest.approx(np.quantile(given.kl, 0.99))
    assert found["perplexity_ratio"].value == pytest.approx(found["perplexity_b"] / found["perplexity_a"])
    assert found["perplexity_ratio"].value > 1
    assert found["perplexity_ratio"].low > 1


def test_no_block_is_shorter_and_with_fewer_than_sixteen_there_is_no_interval() -> None:
    found = overall(scores(8191))
    assert found["blocks"] == 15
    for name in ("kl", "top1", "perplexity_ratio"):
        assert found[name].low is None
        assert found[name].high is None


def test_an_interval_ends_where_the_figure_cannot_lie() -> None:
    blocks = np.array([0.0] * 15 + [1.0])
    assert student_mean(blocks, 0.0).low == 0
    assert student_mean(1 - blocks, 0.0, 1.0).high == 1


@pytest.mark.parametrize("field", ["kl", "nll_a", "nll_b"])
def test_what_is_not_finite_is_counted(field: str) -> None:
    given = scores(600)
    getattr(given, field)[[5, 7]] = np.nan, np.inf
    with pytest.raises(SqueezeError, match="not finite at 2 of 600 tokens, the first of them 5"):
        overall(given)


def test_json_has_every_figure_and_omits_unknown_intervals() -> None:
    data = json.loads(json.dumps(example(600).to_json(), allow_nan=False))
    assert data["kl"] == {"value": pytest.approx(data["kl"]["value"]), "n": 1}
    assert data["layers"][0]["alone"] is None
    assert data["layers"][1]["alone"]["median_error"] == 0.2
    assert data["worst"][0]["a"]["token"] == " a"
    assert data["block_tokens"] == 512
