from functools import partial

import pytest
import torch
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models.architecture import base_model, blocks, linears, named_blocks, replace, weight
from squeeze.techniques import block_walk
from squeeze.techniques.block_walk import AllSeen, observed_inputs, walk
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import InputStatistics, same_inputs
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKENS = torch.randint(0, 256, (5, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    """Five windows go through as 2 + 2 + 1."""
    monkeypatch.setattr(block_walk, "BATCH", 64)


@torch.no_grad()
def layer_inputs(model: nn.Module) -> dict[str, torch.Tensor]:
    """(tokens, in_features) of every linear layer of the blocks, seen in an ordinary forward of the whole model."""
    seen: dict[str, torch.Tensor] = {}

    def note(name, layer, inputs):
        seen[name] = inputs[0].flatten(0, -2).double()

    handles = [
        layer.register_forward_pre_hook(partial(note, f"{block_name}.{name}"))
        for block_name, block in named_blocks(model)
        for name, layer in linears(block).items()
    ]
    base_model(model)(input_ids=TOKENS)
    for handle in handles:
        handle.remove()
    return seen


def statistics(model: nn.Module, **options) -> dict[str, InputStatistics]:
    return {
        f"{block}.{name}": item for block, _, items in walk(model, TOKENS, **options) for name, item in items.items()
    }


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_statistics_are_those_of_an_ordinary_forward(architecture, sequential):
    model = tiny_model(architecture)
    expected = layer_inputs(model)
    found = statistics(model, sequential=sequential)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].tokens == len(x) == TOKENS.numel()
        torch.testing.assert_close(found[name].hessian.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[name].mean_abs.double(), x.abs().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[name].low.double(), x.amin(0).clamp(max=0))
        torch.testing.assert_close(found[name].high.double(), x.amax(0).clamp(min=0))
        torch.testing.assert_close(found[name].max_abs.double(), x.abs().amax(0))
        torch.testing.assert_close(found[name].norms.double(), x.norm(dim=0), rtol=1e-4, atol=1e-4)


def test_hessians_wider_than_a_panel_are_symmetric_and_whole(monkeypatch):
    monkeypatch.setattr(block_walk, "PANEL", 48)  # does not divide 64 or 128
    model = tiny_model("llama")
    for name, x in layer_inputs(model).items():
        hessian = statistics(model)[name].hessian
        assert torch.equal(hessian, hessian.T)
        torch.testing.assert_close(hessian.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_block_sees_its_predecessors_as_they_were_left_only_if_asked(sequential):
    model, changed = tiny_model("llama"), tiny_model("llama")
    weight(blocks(changed)[0].mlp.down_proj).mul_(3)
    expected = layer_inputs(changed if sequential else model)
    for name, block, items in walk(model, TOKENS, sequential=sequential):
        if name.endswith(".0"):
            weight(block.mlp.down_proj).mul_(3)
        else:
            x = expected[f"{name}.self_attn.q_proj"]
            torch.testing.assert_close(
                items["self_attn.q_proj"].hessian.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5
            )


def test_sequential_blocks_are_left_at_their_last_linear_layer_and_quantized_ones_widened_once(monkeypatch):
    quantized = RoundToNearest(bits=3, group_size=32, symmetric=True).apply(
        tiny_subject("llama"), CalibrationText.empty()
    )
    model, reference, calls = tiny_model("llama"), tiny_model("llama"), []
    layers = blocks(quantized.model)[0]
    for name in linears(blocks(reference)[0]):
        replace(blocks(reference)[0], name, layers.get_submodule(name))
    expected = layer_inputs(reference)
    widen, multiply = QuantizedLinear.dequantize, nn.Linear.forward
    monkeypatch.setattr(QuantizedLinear, "dequantize", lambda *rows: calls.append("widen") or widen(*rows))
    down = blocks(model)[0].mlp.down_proj
    monkeypatch.setattr(
        nn.Linear, "forward", lambda layer, x: (calls.append("down") if layer is down else None) or multiply(layer, x)
    )
    for name, block, items in walk(model, TOKENS, sequential=True):
        if name.endswith(".0"):
            for layer in items:
                replace(block, layer, layers.get_submodule(layer))
    assert calls == ["down"] + 7 * ["widen"]  # the first only to see how the model calls its blocks
    assert not any("forward" in vars(module) for module in model.modules())
    for layer, found in items.items():
        x = expected[f"{name}.{layer}"]
        torch.testing.assert_close(found.hessian.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-5)


def test_a_block_is_not_left_while_a_layer_may_still_be_called():
    block = nn.ModuleDict({"first": nn.Linear(4, 4), "last": nn.Linear(4, 4)})
    with observed_inputs(block, leave=True) as seen:
        for _ in range(2):
            block["first"](torch.ones(3, 4))
            with pytest.raises(AllSeen):
                block["last"](torch.ones(3, 4))
    assert [seen[name].statistics().tokens for name in ("first", "last")] == [6, 6]


def test_layers_that_read_the_same_inputs_share_their_statistics():
    _, _, items = next(walk(tiny_model("llama"), TOKENS))
    assert [names for names, _ in same_inputs(items)] == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]


def test_products_of_bfloat16_inputs_are_summed_in_float32():
    block = nn.Sequential(nn.Linear(96, 8, dtype=torch.bfloat16))
    x = (torch.randn(4096, 96, generator=torch.Generator().manual_seed(0)) + 1).bfloat16()
    with observed_inputs(block) as seen, torch.no_grad():
        block(x)
    exact = x.double().T @ x.double() / len(x)
    error = (seen["0"].statistics().hessian.double() - exact).norm() / exact.norm()
    assert error < 1e-5  # rounded to bfloat16, 2e-3


def test_a_layer_that_never_runs_has_no_tokens():
    block = nn.ModuleDict({"used": nn.Linear(4, 4), "idle": nn.Linear(6, 4)})
    with observed_inputs(block) as seen:
        block["used"](torch.ones(3, 4))
    assert seen["used"].statistics().tokens == 3
    idle = seen["idle"].statistics()
    assert idle.tokens == 0
    assert torch.equal(idle.hessian, torch.zeros(6, 6))


def test_nothing_stays_behind_on_model_or_torch():
    model = tiny_model("llama", dtype="bfloat16")
    before = model(input_ids=TOKENS).logits
    list(walk(model, TOKENS))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    assert torch.equal(model(input_ids=TOKENS).logits, before)


def test_without_tokens_it_says_what_is_missing():
    with pytest.raises(SqueezeError, match="no tokens"):
        next(walk(tiny_model("llama"), torch.empty((0, 0), dtype=torch.int64)))
