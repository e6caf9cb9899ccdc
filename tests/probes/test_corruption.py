"""Weights that are spoilt where they are saved are found worse: what is scored is what lies there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from squeeze.artifacts import format as artifact
from squeeze.models.subject import Subject
from squeeze.sources import questions as data
from tests.scored import made_up_data, measure  # noqa: F401 - a fixture
from tests.tiny import tiny_subject


def trained(text: str, steps: int = 60) -> Subject:
    """A tiny model that has learnt a text by heart: one that corruption can make worse."""
    subject = tiny_subject("llama")
    tokens = torch.tensor([subject.tokenizer.encode(text)[:512]])
    optimizer = torch.optim.Adam(subject.model.requires_grad_(True).parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        subject.model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    subject.model.requires_grad_(False)
    return subject


@pytest.mark.promise(12)
def test_corrupted_weights_worsen_perplexity(tmp_path: Path, figure: Callable[[str], None]) -> None:
    """Corrupted in the saved file: what is scored is what lies there."""
    artifact.save(trained(data.corpora.text("")), tmp_path / "artifact")
    path, perplexities = tmp_path / "artifact" / "model.safetensors", []
    sound = load_file(path)
    for share in (0.0, 0.02, 0.1, 0.5):
        spoilt = {name: spoil(weight, share) for name, weight in sound.items()}
        save_file(spoilt, path, metadata={"format": "pt"})
        found = measure(artifact.load(tmp_path / "artifact"), tmp_path / f"out{share}")
        perplexities.append(found.values["perplexity"])
    assert perplexities[0] < 10
    assert perplexities == sorted(perplexities)
    assert perplexities[-1] > 3 * perplexities[0]
    words = ", ".join(f"{value:.4g}" for value in perplexities)
    figure(f"0, 2, 10 and 50 % of the saved weights set to zero: perplexity {words}")


def spoil(weight: torch.Tensor, share: float) -> torch.Tensor:
    """The weights with a random ``share`` of them zero."""
    kept = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) >= share
    return weight * kept
