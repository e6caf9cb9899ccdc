"""A change beside compressed layers: never the worse for it, behind any step that packs, before none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import matrices
from squeeze.layers.lora import LoraLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.eora import EoRA
from squeeze.techniques.low_rank.lqer import LQER
from squeeze.techniques.low_rank.residual import change
from squeeze.techniques.low_rank.svd import SVD
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.bitsandbytes import Float4
from squeeze.techniques.quantization.gptq import GPTQ
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.smoothquant import SmoothQuant
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.output_errors import output_errors
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TEXT = torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0))
EORA, L2QER = EoRA(4, sequential=False), LQER(4, scaled=True, sequential=False)
TWO_BITS, PRUNED = RoundToNearest(2, 32, symmetric=False), Wanda(0.5, run=None, sequential=True)


def after(subject: Subject, *steps: Any) -> Subject:
    """A tiny subject after these steps."""
    text = CalibrationText(TEXT, load_baseline=lambda: tiny_model(name_of(subject)))
    for step in steps:
        subject = step.apply(subject, text)
    return subject


def name_of(subject: Subject) -> str:
    return str(subject.model.config.model_type)


def adapters(subject: Subject) -> dict[str, LoraLinear]:
    return {name: layer for name, layer in subject.model.named_modules() if isinstance(layer, LoraLinear)}


@pytest.mark.parametrize("step", [EORA, EoRA(4, sequential=True), L2QER, LQER(4, scaled=False, sequential=False)])
@pytest.mark.parametrize("base", [TWO_BITS, PRUNED])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_layers_outputs_are_nearer_and_what_was_compressed_stays(name: str, base: Any, step: Any) -> None:
    before, subject = after(tiny_subject(name), base), after(tiny_subject(name), base, step)
    changed, layers = adapters(subject), dict(matrices(before.model))
    assert changed.keys() == layers.keys()
    for layer, adapter in changed.items():
        expected, found = layers[layer].state_dict(), adapter.base.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
        assert adapter.scaling == 1
    without, with_change = (output_errors(each, name, TEXT) for each in (before, subject))
    if step.sequential:  # nearer on other inputs than these
        assert sum(with_change.values()) < sum(without.values())
    else:
        assert all(with_change[layer] < error for layer, error in without.items())
    assert subject.claims == before.claims | {"residual_rank": 4}


def test_a_change_of_full_rank_is_all_that_was_taken() -> None:
    residual = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    down, up = change(residual, 6, torch.diag(torch.arange(9.0)))
    assert torch.allclose(up @ down, residual, atol=1e-5)
    assert float(up.norm()) == pytest.approx(float(down.norm()), rel=1e-5)


def test_where_nothing_was_taken_nothing_is_added() -> None:
    down, up = change(torch.zeros(4, 3), 2, torch.eye(3))
    assert torch.equal(up @ down, torch.zeros(4, 3))


@pytest.mark.parametrize(
    "base",
    [
        GPTQ(4, 32, symmetric=True, act_order=True, static_groups=True, damping=0.1, sequential=True),
        KMeans(4, rows=None),
        Magnitude(0.5),
        Float4("nf4", double_quant=False),
        TorchDynamic(per_channel=True, activation_bits=7),
    ],
    ids=lambda step: type(step).__name__,
)
def test_it_follows_what_packs_in_its_own_way(base: Any) -> None:
    without, with_change = (
        output_errors_of_forward(after(tiny_subject("llama"), *steps)) for steps in ([base], [base, EORA])
    )
    assert with_change < without


def output_errors_of_forward(subject: Subject) -> float:
    """How far the last block's last layer is off on inputs of the uncompressed model, by its own forward."""
    name = "model.layers.1.mlp.down_proj"
    original = tiny_model("llama").get_submodule(name)
    seen: list[torch.Tensor] = []
    model = tiny_model("llama")
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(TEXT)
        handle.remove()
        return float((subject.model.get_submodule(name)(seen[0]) - original(seen[0])).square().sum())


def test_inputs_come_through_corrected_blocks_or_from_the_uncompressed_model() -> None:
    subjects = [after(tiny_subject("llama"), TWO_BITS, EoRA(4, sequential=each)) for each in (False, True)]
    shared, sequential = (adapters(subject) for subject in subjects)
    first, last = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    assert torch.allclose(shared[first].lora_A, sequential[first].lora_A, atol=1e-5)
    assert not torch.allclose(shared[last].lora_A, sequential[last].lora_A, atol=1e-3)


@pytest.mark.parametrize("step", [TWO_BITS, Magnitude(0.5), SVD(0.5, whitened=False, damping=0.0, sequential=False)])
@pytest.mark.parametrize("base", [TWO_BITS, PRUNED])
def test_no_step_behind_it_packs_anew_and_the_order_that_works_is_named(base: Any, step: Any) -> None:
    subject = after(tiny_subject("llama"), base, EORA)
    kinds = {name: type(layer.base) for name, layer in adapters(subject).items()}
    with pytest.raises(Unsupported, match=r"would undo both; .* as in \[wanda, rtn, eora\]"):
        after(subject, step)
    assert {name: type(layer.base) for name, layer in adapters(subject).items()} == kinds


def test_the_order_that_works() -> None:
    subject = after(tiny_subject("llama"), PRUNED, RoundToNearest(4, 32, symmetric=True), EORA)
    assert subject.claims.items() >= {"sparsity": 0.5, "bits": 4, "residual_rank": 4}.items()
    zeros = [float((layer.base.dequantize() == 0).float().mean()) for layer in adapters(subject).values()]
    assert min(zeros) >= 0.5


def test_pruned_layers_stay_sparse_beside_it() -> None:
    subject = after(tiny_subject("llama"), PRUNED, L2QER)
    assert all(isinstance(layer.base, SparseLinear) for layer in adapters(subject).values())


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([EORA], r"found no compressed layer; .* \[rtn, eora\]"),
        ([L2QER], r"found no compressed layer; .* \[rtn, lqer\]"),
        ([TWO_BITS, EoRA(0, sequential=False)], "a change of rank 0; expected 1"),
        ([TWO_BITS, LQER(-3, scaled=False, sequential=False)], "a change of rank -3; expected 1"),
        ([TWO_BITS, EoRA(33, sequential=False)], "rank is 33, but .*k_proj has one of 32 at the most"),
        ([TWO_BITS, EORA, L2QER], "has an adapter already"),
        (
            [SVD(0.5, whitened=False, damping=0.0, sequential=False), RoundToNearest(4, None, True), EORA],
            "missing here and .* there",
        ),
        ([LayerDrop(0.5, "every_other"), TWO_BITS, EORA], r"layers\.1\.\S+ is missing here"),
        ([SmoothQuant(0.5), EORA], "layernorm.weight has changed"),
        ([Float4("nf4", double_quant=False), EoRA(4, sequential=True)], "Linear4bit, .* use sequential: false"),
    ],
)
def test_what_it_cannot_make_up_for_is_refused_and_nothing_is_touched(steps: list[Any], reason: str) -> None:
    *before, step = steps
    subject = after(tiny_subject("llama"), *before)
    layers = dict(subject.model.named_modules())
    with pytest.raises(Unsupported, match=reason):
        after(subject, step)
    assert dict(subject.model.named_modules()) == layers


def test_layers_that_were_left_in_floats_get_none() -> None:
    subject, left = tiny_subject("llama"), "model.layers.0.mlp.up_proj"
    plain = subject.model.get_submodule(left)
    compressed = after(subject, TWO_BITS)
    architecture.replace(compressed.model, left, plain)
    assert adapters(after(compressed, EORA)).keys() == dict(matrices(compressed.model)).keys() - {left}
