"""Texts and questions of the user's own are scored as those of the house are; nothing in them is run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from squeeze.core import cache
from squeeze.sources import own_questions, own_text
from tests.scored import measure
from tests.tiny import tiny_subject

TEXT = "Of my own domain, and {{ 7 * 7 }} of it: naïve.\n" * 20
QUIZ = [
    {"context": "{{ ''.__class__ }} is", "choices": [" {{ 7 * 7 }}", " b"], "gold": 0},
    {"context": "Two and two is", "choices": [" three", " four", " five"], "gold": 1},
]


def test_they_are_scored_by_the_models_own_probabilities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    (tmp_path / "domain.txt").write_text(TEXT)
    (tmp_path / "quiz.jsonl").write_text("\n".join(map(json.dumps, QUIZ)))
    corpus = own_text.taken_in(f"file:{tmp_path / 'domain.txt'}")
    task = own_questions.taken_in(f"file:{tmp_path / 'quiz.jsonl'}")
    subject = tiny_subject("llama")
    windows = {"corpus": corpus, "tokens": 64, "window": 64, "stride": 64}
    found = measure(subject, tmp_path / "out", perplexity=windows, tasks=[task], items=None)

    ids = torch.tensor([subject.tokenizer(TEXT)["input_ids"][:64]])
    nll = -subject.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
    assert found.values["perplexity"] == pytest.approx(math.exp(float(nll.mean())), rel=1e-4)

    def score(context: str, choice: str) -> float:
        ids = torch.tensor([subject.tokenizer(context + choice)["input_ids"]])
        logs = subject.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
        return float(logs[-len(choice.encode()) :].sum())

    expected = [[score(quiz["context"], choice) for choice in quiz["choices"]] for quiz in QUIZ]  # type: ignore[attr-defined]
    loglik = found.arrays[f"{task}_loglik"]
    assert loglik[0, :2].tolist() == pytest.approx(expected[0], rel=1e-4)
    assert loglik[1].tolist() == pytest.approx(expected[1], rel=1e-4)
    right = [
        max(range(len(row)), key=row.__getitem__) == quiz["gold"] for row, quiz in zip(expected, QUIZ, strict=True)
    ]
    assert found.arrays[f"{task}_correct"].tolist() == right
    assert found.values[f"acc_{task}"] == sum(right) / 2
