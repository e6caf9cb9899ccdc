"""Dropped blocks: which go, that nothing else changes, and that other steps may come before and after."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import count_parameters
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.models.surgery import keep_blocks
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning import layer_drop
from squeeze.techniques.pruning.layer_drop import LayerDrop, evenly_spaced, influence, rises
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.students import loads_alone, outputs, silence, subject_of
from tests.tiny import ARCHITECTURES, CAUSAL, tiny_subject

TEXT = CalibrationText(torch.randint(256, (5, 32), generator=torch.Generator().manual_seed(0)))
NO_TEXT = CalibrationText.empty()


@pytest.mark.parametrize(
    ("blocks", "count", "expected"),
    [
        (12, 6, [0, 2, 4, 7, 9, 11]),  # those of DistilBERT
        (30, 15, [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29]),
        (4, 4, [0, 1, 2, 3]),
        (4, 1, [0]),
    ],
)
def test_every_other_block_is_evenly_spaced(blocks: int, count: int, expected: list[int]) -> None:
    assert evenly_spaced(blocks, count) == expected


@torch.no_grad()
def written_out(model: nn.Module) -> torch.Tensor:
    """1 - the mean cosine of what each block reads and leaves, one window after the other."""
    seen: list[list[torch.Tensor]] = [[] for _ in architecture.blocks(model)]
    handles = [
        block.register_forward_hook(
            lambda _, inputs, output, place=place: seen[place].append(
                F.cosine_similarity(inputs[0], output[0] if isinstance(output, tuple) else output, dim=-1).flatten()
            )
        )
        for place, block in enumerate(architecture.blocks(model))
    ]
    for window in TEXT.token_ids:
        model(window[None])
    for handle in handles:
        handle.remove()
    return torch.stack([1 - torch.cat(each).mean() for each in seen])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_influence_is_what_a_block_turns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_drop, "TOKENS", 64)  # five windows go through as 2 + 2 + 1
    model = subject_of(name, layers=3).model
    found = influence(model, TEXT.token_ids)
    torch.testing.assert_close(found.float(), written_out(model), atol=1e-5, rtol=1e-4)
    assert (found > 0.01).all()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def loss(model: nn.Module, token_ids: torch.Tensor) -> float:
    """The mean over all tokens with one before them, written out."""
    logits = torch.cat([model(window[None]).logits[0, :-1] for window in token_ids])
    return float(F.cross_entropy(logits, token_ids[:, 1:].flatten()))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_rise_is_that_of_the_model_without_the_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_drop, "TOKENS", 64)  # windows go through as 2 + 1
    monkeypatch.setattr(layer_drop, "SCORED", 100)  # three of five
    model, scored = subject_of(name, layers=3).model, TEXT.token_ids[:3]
    found = rises(model, TEXT.token_ids)
    without = []
    for place in range(3):
        shorter = subject_of(name, layers=3).model
        keep_blocks(shorter, [each for each in range(3) if each != place])
        without.append(loss(shorter, scored) - loss(model, scored))
    torch.testing.assert_close(found.tolist(), without, atol=1e-5, rtol=1e-4)
    assert max(without) - min(without) > 1e-3
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_blocks_without_which_the_text_is_predicted_better_go_first() -> None:
    subject = subject_of("llama", layers=4)
    found, blocks = rises(subject.model, TEXT.token_ids), architecture.blocks(subject.model)
    assert found.min() < 0 < found.max(), "a random model"
    dropped = LayerDrop(0.25, "perplexity").apply(subject, TEXT)
    assert architecture.blocks(dropped.model) == [blocks[int(found.argmax())]]


@pytest.mark.parametrize("name", ["bert", "bert_classifier"])
def test_perplexity_of_what_predicts_no_tokens_is_refused(name: str) -> None:
    subject = tiny_subject(name)
    with pytest.raises(Unsupported, match="has no language-modelling head"):
        LayerDrop(0.5, "perplexity").apply(subject, TEXT)
    assert len(architecture.blocks(subject.model)) == 2


@pytest.mark.parametrize("name", CAUSAL)
def test_blocks_that_do_nothing_go_first_and_are_not_missed(name: str) -> None:
    subject = subject_of(name, layers=4)
    silence(subject.model, 0, 2)
    expected = outputs(subject.model)
    stay = architecture.blocks(subject.model)[1::2]
    dropped = LayerDrop(0.5, "influence").apply(subject, TEXT)
    assert architecture.blocks(dropped.model) == stay
    assert torch.equal(outputs(dropped.model), expected)


@pytest.mark.parametrize(
    ("name", "by"),
    [*product(ARCHITECTURES, ["every_other", "influence"]), *product(CAUSAL, ["perplexity"])],
)
def test_what_is_left_loads_without_squeeze(name: str, by: Any, tmp_path: Path) -> None:
    subject = subject_of(name, layers=4)
    whole = count_parameters(subject.model)
    dropped = LayerDrop(0.75, by).apply(subject, TEXT)
    assert dropped.claims == {"layers_kept": 0.75, "parameters": whole}
    assert len(architecture.blocks(loads_alone(dropped, tmp_path, name))) == 3
    assert count_parameters(dropped.model) < whole


def test_a_share_that_keeps_every_block_changes_nothing() -> None:
    subject = subject_of("llama", layers=4)
    dropped = LayerDrop(1.0, "every_other").apply(subject, NO_TEXT)
    assert torch.equal(outputs(dropped.model), outputs(subject_of("llama", layers=4).model))
    assert dropped.claims["layers_kept"] == 1


def test_one_block_is_left_at_least_and_shares_multiply() -> None:
    dropped = LayerDrop(0.5, "every_other").apply(subject_of("gpt2", layers=4), NO_TEXT)
    dropped = LayerDrop(0.01, "every_other").apply(dropped, NO_TEXT)
    assert len(architecture.blocks(dropped.model)) == 1
    assert dropped.claims["layers_kept"] == 0.25


Step = Callable[[Subject], Subject]
STEPS: dict[str, Step] = {
    "rtn": lambda subject: RoundToNearest(4, 32, symmetric=True).apply(subject, NO_TEXT),
    "wanda": lambda subject: Wanda(0.5, None, sequential=True).apply(subject, TEXT),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
def test_other_steps_come_before_or_after(step: Step, tmp_path: Path) -> None:
    drop = LayerDrop(0.5, "every_other")
    for order, subject in {
        "before": drop.apply(step(subject_of("llama", layers=4)), NO_TEXT),
        "after": step(drop.apply(subject_of("llama", layers=4), NO_TEXT)),
    }.items():
        artifact.save(subject, tmp_path / order)
        loaded = artifact.load(tmp_path / order, prepare=False)
        assert torch.equal(outputs(loaded.model), outputs(subject.model))
        assert loaded.claims.items() >= subject.claims.items()


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(Unsupported, match=f"a share of {share}; expected more than 0, at most 1"):
        LayerDrop(share, "every_other").apply(subject_of("llama"), TEXT)


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(Unsupported, match="no criterion 'random'; expected one of every_other, influence"):
        LayerDrop(0.5, "random").apply(subject_of("llama"), TEXT)  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["influence", "perplexity"])
def test_scores_without_text_say_what_to_do(by: Any) -> None:
    with pytest.raises(SqueezeError, match=f"{by} needs text, found no tokens; name a calibration with a corpus, or"):
        LayerDrop(0.5, by).apply(subject_of("llama"), NO_TEXT)
