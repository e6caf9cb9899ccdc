"""The cubic schedule and its prunings, and what grows back, by hand and on whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import matrices
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning import gradual, in_training
from squeeze.techniques.pruning.gradual import Gradual, Pruned, chosen, cubic, decayed
from squeeze.techniques.pruning.magnitude import Magnitude
from tests.tiny import tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (8, 32), generator=torch.Generator().manual_seed(0))


def pruned(subject: Subject | None = None, **fields: Any) -> Subject:
    plan = {"sparsity": 0.5, "every": 2, "until": 0.75, "training_steps": 8, "windows": 1, "learning_rate": 1e-3}
    text = CalibrationText(TOKEN_IDS, load_baseline=lambda: tiny_model("llama"))
    return Gradual(**{**plan, **fields}).apply(subject or tiny_subject("llama"), text)


def test_the_schedule_is_cubic() -> None:
    assert [cubic(done, 0.0, 0.8) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.7, 0.8])
    assert [cubic(done, 0.4, 0.8) for done in (0.0, 0.5, 1.0)] == pytest.approx([0.4, 0.75, 0.8])


def test_the_share_that_grows_back_falls_along_half_a_cosine() -> None:
    assert [decayed(done, 0.3) for done in (0.0, 1 / 3, 0.5, 1.0)] == pytest.approx([0.3, 0.225, 0.15, 0.0])


def test_without_regrowth_the_lowest_of_what_is_left_goes() -> None:
    weight = torch.tensor([[9.0, 0.1, -3.0, 2.0], [-0.2, 9.0, -1.0, 4.0]])  # the nines were zero before the step
    kept = torch.tensor([[False, True, True, True], [True, False, True, True]])
    stays = chosen(weight, kept, torch.ones_like(weight), 0.5, regrow=0.0)
    assert stays.tolist() == [[False, False, True, True], [False, False, True, True]]


def test_what_grows_back_are_the_zeros_of_the_largest_gradients() -> None:
    """Four of eight stay zero; half of the four that are left, the lowest two, make place for two others."""
    weight = torch.tensor([[9.0, 0.1, -3.0, 2.0], [-0.2, 9.0, -1.0, 4.0]])
    kept = torch.tensor([[False, True, True, True], [True, False, True, True]])
    gradient = torch.tensor([[-5.0, 0.3, 50.0, 0.2], [0.1, 0.0, 0.5, 60.0]])
    stays = chosen(weight, kept, gradient, 0.5, regrow=0.5)
    assert stays.tolist() == [[True, False, True, False], [False, False, True, True]]
    gradient[1, 2] = 0  # it got its place back; now another one does
    stays = chosen(weight, kept, gradient, 0.5, regrow=0.5)
    assert stays.tolist() == [[True, True, True, False], [False, False, False, True]]


def test_gradients_reach_zeros_only_where_they_may_grow() -> None:
    weight = torch.tensor([[0.0, 2.0], [3.0, 0.0]], requires_grad=True)
    for grows, expected in ((False, [[0, 1], [1, 0]]), (True, [[1, 1], [1, 1]])):
        view = Pruned(torch.bfloat16, grows)
        outputs = view(weight)
        assert outputs.dtype == torch.bfloat16
        assert torch.equal(outputs.float(), weight)
        assert view.kept.tolist() == [[False, True], [True, False]]
        outputs.sum().backward()
        assert weight.grad.tolist() == expected
        weight.grad = None


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The sparsity and the share that grows, of each layer at each pruning."""
    seen: list[tuple[float, float]] = []
    real = gradual.chosen

    def spy(weight: Any, kept: Any, gradient: Any, sparsity: float, regrow: float) -> torch.Tensor:
        seen.append((sparsity, regrow))
        return real(weight, kept, gradient, sparsity, regrow)

    monkeypatch.setattr(gradual, "chosen", spy)
    return seen


def test_it_prunes_every_so_many_steps_until_the_end_of_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded(monkeypatch)
    pruned(regrow=0.3)
    each = seen[:: len(architecture.block_linears(tiny_model("llama")))]
    assert [sparsity for sparsity, _ in each] == pytest.approx([cubic(step / 6, 0, 0.5) for step in (2, 4, 6)])
    assert [share for _, share in each] == pytest.approx([0.225, 0.075, 0.0])


@pytest.mark.parametrize("regrow", [0.0, 0.3])
def test_what_is_lost_stays_so_from_one_pruning_to_the_next(regrow: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the optimizer moves it on: the steps see these shares of zeros, each in turn."""
    seen: list[float] = []
    real = in_training.distilled

    def spy(model: Any, *arguments: Any) -> torch.Tensor:
        weight = model.get_submodule("model.layers.0.mlp.up_proj").weight
        seen.append(int((weight == 0).sum()) / weight.numel())
        return real(model, *arguments)

    monkeypatch.setattr(in_training, "distilled", spy)
    pruned(regrow=regrow)
    after = [cubic(step / 6, 0, 0.5) for step in (0, 2, 4, 6)]
    assert seen == pytest.approx([share for share in after for _ in range(2)], abs=1e-4)


def test_zeros_of_an_earlier_step_are_where_the_schedule_begins_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = recorded(monkeypatch)
    subject = Magnitude(0.25).apply(tiny_subject("llama"), CalibrationText.empty())
    zeros = {name: layer.dequantize() == 0 for name, layer in matrices(subject.model)}
    trained = pruned(subject)
    assert seen[0][0] == pytest.approx(cubic(1 / 3, 0.25, 0.5))
    for name, layer in matrices(trained.model):
        assert (layer.dequantize()[zeros[name]] == 0).all()


def test_once_lost_a_weight_comes_back_with_regrowth_only() -> None:
    def zeros(subject: Subject) -> dict[str, torch.Tensor]:
        return {name: layer.dequantize() == 0 for name, layer in matrices(subject.model)}

    cut = zeros(Magnitude(0.25).apply(tiny_subject("llama"), CalibrationText.empty()))
    for regrow in (0.0, 0.5):
        subject = Magnitude(0.25).apply(tiny_subject("llama"), CalibrationText.empty())
        found = zeros(pruned(subject, regrow=regrow))
        grown = sum(int((cut[name] & ~zero).sum()) for name, zero in found.items())
        assert (grown > 0) == (regrow > 0)
        assert all(int(zero.sum()) == round(0.5 * zero.numel()) for zero in found.values())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"every": 0}, "every=0 is not allowed, expected at least 1 step"),
        ({"until": 0.0}, "until=0 is not allowed, expected more than 0, at most 1"),
        ({"until": 1.5}, r"until=1\.5 is not allowed"),
        ({"regrow": 1.0}, "regrow=1 is not allowed, expected 0 <= regrow < 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        pruned(**fields)
