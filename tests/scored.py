"""Score models on made-up text and questions, in the quality stage's own way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from squeeze.models.subject import Subject
from squeeze.probes import samples
from squeeze.probes.quality import measure_quality
from squeeze.probes.samples import Samples
from squeeze.runtimes.eager import Eager
from squeeze.sources import questions as data

PROTOCOL: Mapping[str, Any] = {
    "perplexity": {"corpus": "wikipedia_eval", "tokens": 300, "window": 64, "stride": 64},
    "tasks": ["lambada", "sciq"],
    "items": 3,
    "token_budget": 256,
}


@pytest.fixture(autouse=True)
def made_up_data(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The cat sat on the mat; 東京 is far away. " * 50

    def questions(*, member: str, items: int, **_: Any) -> dict[str, Dataset]:
        choices = [" one", " two", " three"] if "sciq" in member else [" word"]
        docs = [
            {
                "contexts": [f"Question {number}:"] * (len(choices) - number % 2 or 1),
                "continuations": choices[: len(choices) - number % 2 or 1],
                "gold": 0,
            }
            for number in range(items)
        ]
        return {"test": Dataset.from_list(docs)}

    monkeypatch.setattr(data, "questions", questions)
    monkeypatch.setattr(data.corpora, "text", lambda _: text)


def measure(subject: Subject, folder: Path, baseline: Path | None = None, **changes: Any) -> Samples:
    """What was found, after a trip through the files. The baseline's artifact lies beside its samples."""
    collected = Samples(folder)
    stored = baseline and baseline.with_name("artifact")
    measure_quality(Eager("cpu", 1).engine(subject), {**PROTOCOL, **changes}, collected, baseline, stored)
    collected.write()
    return samples.read(folder)
