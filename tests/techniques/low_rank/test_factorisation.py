"""One budget for all matrices: it is kept, what is worth more gets more of it, and less of the outputs is lost."""

from __future__ import annotations

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears
from squeeze.layers.factors import Factors
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.factorisation import relative_spectrum
from squeeze.techniques.low_rank.svd import SVD
from tests.output_errors import output_errors
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))


def factorised(
    subject: Subject, share: float, *, ranks: str, whitened: bool = True, sequential: bool = False
) -> Subject:
    technique = SVD(share, whitened=whitened, damping=0.01, sequential=sequential, ranks=ranks)
    return technique.apply(subject, CalibrationText(TEXT))


def weights(subject: Subject) -> int:
    return sum(architecture.weight(layer).numel() for layer in architecture.block_linears(subject.model).values())


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_budget_is_kept_and_spent(name: str, share: float) -> None:
    dense = weights(tiny_subject(name))
    largest = max(sum(architecture.weight(x).shape) for x in architecture.block_linears(tiny_model(name)).values())
    found = weights(factorised(tiny_subject(name), share, ranks="spectrum"))
    assert share * dense - largest < found <= share * dense


@pytest.mark.parametrize("whitened", [True, False])
def test_less_of_the_outputs_is_lost_than_with_one_share_of_every_matrix(whitened: bool) -> None:
    lost = {}
    for ranks in ("uniform", "spectrum"):
        subject = factorised(tiny_subject("llama"), 0.5, ranks=ranks, whitened=whitened)
        lost[ranks] = sum(output_errors(subject, "llama", TEXT).values())
    assert lost["spectrum"] < 0.97 * lost["uniform"]


def test_a_matrix_of_low_rank_gets_that_rank_and_others_what_it_does_not_need() -> None:
    subject, planted = tiny_subject("llama"), "model.layers.1.mlp.up_proj"
    weight = architecture.weight(subject.model.get_submodule(planted))
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    weight.copy_((left[:, :3] * values[:3]) @ right[:3])
    made = factorised(subject, 0.8, ranks="spectrum").model
    layer = made.get_submodule(planted)
    assert isinstance(layer, Factors)
    assert layer.rank == 3
    dense = [name for name in float_linears(tiny_model("llama")) if not isinstance(made.get_submodule(name), Factors)]
    assert dense, "what is saved there pays for some that stay as they are"
    for name in dense:
        assert torch.equal(made.get_submodule(name).weight, tiny_model("llama").get_submodule(name).weight)


def test_ranks_are_chosen_by_the_float_model_though_inputs_come_through_factors() -> None:
    made = [factorised(tiny_subject("llama"), 0.5, ranks="spectrum", sequential=each).model for each in (False, True)]
    ranks = [[m.rank for m in model.modules() if isinstance(m, Factors)] for model in made]
    assert ranks[0] == ranks[1]
    last = "model.layers.1.mlp.down_proj"
    shared, sequential = (model.get_submodule(last).state_dict() for model in made)
    assert any(not torch.equal(shared[name], sequential[name]) for name in shared)


@pytest.mark.parametrize("shape", [(16, 24), (24, 16)])
@pytest.mark.parametrize("rooted", [True, False])
def test_a_spectrum_is_the_squares_of_the_singular_values_over_their_sum(shape: tuple[int, int], rooted: bool) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    root = torch.randn(shape[1], shape[1], generator=torch.Generator().manual_seed(1)).tril() if rooted else None
    squares = torch.linalg.svdvals((weight if root is None else weight @ root).double()).square()
    assert torch.allclose(relative_spectrum(weight, root), squares / squares.sum(), rtol=0, atol=1e-7)
    assert torch.equal(relative_spectrum(torch.zeros(shape), root), torch.zeros(16, dtype=torch.float64))


def test_other_ranks_are_refused_and_the_model_stays() -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match="svd has no ranks 'even'; expected uniform or spectrum"):
        factorised(subject, 0.5, ranks="even")
    assert not any(isinstance(module, Factors) for module in subject.model.modules())
