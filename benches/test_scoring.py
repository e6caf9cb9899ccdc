"""Compare our scoring with lm-eval's own on the same requests: `pytest benches -m scoring -s`; it takes minutes.

What it needs is imported where it is used: every measuring process reads this file, and leaves it out.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from squeeze.models.subject import Subject

TASKS = ("lambada", "sciq", "piqa", "arc_easy")
TOKENS, WINDOW = 16_384, 1024
TOKEN_BUDGET = 1024

pytestmark = pytest.mark.scoring


def load(dtype: str) -> Subject:
    """Load the default model."""
    from squeeze.models.load import load_baseline
    from squeeze.request import expand

    (cell,) = expand.cells(["model=smollm2_135m", "technique=none", f"dtype={dtype}"])
    return load_baseline(cell.model)


def questions(items: int) -> list[Any]:
    """Return lm-eval's requests for the first ``items`` questions of each task."""
    from lm_eval.tasks import TaskManager

    from squeeze.sources import tasks

    manager = TaskManager(include_path=str(tasks.FOLDER), include_defaults=False, metadata={"items": items})
    loaded = manager.load(list(TASKS))["tasks"].values()
    for task in loaded:
        task.build_all_requests()
    return [request for task in loaded for request in task.instances]


def text(subject: Subject, tokens: int) -> list[Any]:
    """Return one request for the perplexity of that many tokens of Wikipedia."""
    from lm_eval.api.instance import Instance

    from squeeze.sources import corpora

    beginning = subject.tokenizer.decode(corpora.tokens("wikipedia_eval", subject.tokenizer, tokens + 64))
    return [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(beginning,), idx=0)]


def ours(subject: Subject, tokens: int = TOKENS) -> Any:
    from squeeze.probes.lm_eval_model import Windows, subject_lm

    return subject_lm(subject, Windows(tokens, WINDOW, WINDOW), token_budget=TOKEN_BUDGET)


def lm_evals(subject: Subject) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=16, max_length=WINDOW)


def seconds(score: Callable[[list[Any]], Any], requests: list[Any]) -> float:
    start = time.perf_counter()
    score(requests)
    return time.perf_counter() - start


def test_ours_takes_less_than_half_the_time_in_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    subject = load("bfloat16")
    asked, beginning = questions(200), text(subject, TOKENS)
    lms = {"HFLM": lm_evals(subject), "ours": ours(subject)}
    for lm in lms.values():
        lm.loglikelihood(asked[:32])  # warm-up
    took = {name: np.zeros(2) for name in lms}
    for name in ("HFLM", "ours", "ours", "HFLM"):
        took[name] += seconds(lms[name].loglikelihood, asked), seconds(lms[name].loglikelihood_rolling, beginning)
    ratios, whole = took["HFLM"] / took["ours"], took["HFLM"].sum() / took["ours"].sum()
    with capsys.disabled():
        print(f"\n{len(asked)} requests and {TOKENS:,} tokens, twice, seconds for questions and text:", took)
        print(f"HFLM takes {ratios[0]:.2f} and {ratios[1]:.2f} times as long as ours, {whole:.2f} in all")
    assert whole >= 2


def test_scores_in_float32_are_lm_evals_own(capsys: pytest.CaptureFixture[str]) -> None:
    subject, asked = load("float32"), questions(25)
    found, expected = ours(subject).loglikelihood(asked), lm_evals(subject).loglikelihood(asked)
    difference = max(abs(own - other) for (own, _), (other, _) in zip(found, expected, strict=True))
    with capsys.disabled():
        print(f"\nlargest difference of {len(asked)} log-likelihoods: {difference:.1e}")
    assert difference < 1e-3
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@torch.inference_mode()
def plain_perplexity(subject: Subject, token_ids: list[int]) -> float:
    """Compute perplexity window by window, as one would write it without this library."""
    losses = []
    for start in range(0, len(token_ids), WINDOW):
        window = torch.tensor([token_ids[start : start + WINDOW]])
        logits = subject.model(window).logits[0, :-1].double()
        losses += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none").tolist()
    return math.exp(sum(losses) / len(losses))


def test_perplexity_is_that_of_a_plain_loop_and_bfloat16_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        subject, tokens = load(dtype), 8192
        lm, beginning = ours(subject, tokens), text(load(dtype), tokens)
        lm.loglikelihood_rolling(beginning)
        found[dtype] = lm.scores.perplexity
        if dtype == "float32":
            token_ids = subject.tokenizer.encode(beginning[0].args[0], add_special_tokens=False)[:tokens]
            plain = plain_perplexity(subject, token_ids)
    with capsys.disabled():
        print(f"\nperplexity of 8,192 tokens: {found}, a plain loop in float32 {plain}")
    assert found["float32"] == pytest.approx(plain, rel=1e-4)
    assert found["bfloat16"] == pytest.approx(found["float32"], rel=5e-3)
