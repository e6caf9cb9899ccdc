"""torchao: its numbers, in its format, by its kernels; where it is missing, one line says how to get it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from squeeze.artifacts import format as artifact
from squeeze.artifacts.build import resolve_step
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import layer_specs, live_bytes, prepare_layers
from squeeze.models import architecture
from squeeze.probes.batching import batch_dependent
from squeeze.probes.recount import recount
from squeeze.request.expand import cells
from squeeze.runtimes.compiled import Compiled
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization import torchao
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torchao import Int4WeightOnly, Int8
from tests.tiny import tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)
NAME = "model.layers.1.mlp.up_proj"
PRODUCTS = {"aten::mm", "aten::addmm", "aten::_int_mm", "aten::_weight_int4pack_mm_for_cpu"}


def layer_of(technique: Int8 | Int4WeightOnly, weight: torch.Tensor) -> nn.Module:
    """What becomes of a model's layer with this weight."""
    subject = tiny_subject("llama", str(weight.dtype).removeprefix("torch."))
    architecture.replace(subject.model, NAME, layer := nn.Linear(*reversed(weight.shape), bias=False))
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return technique.apply(subject, NO_DATA).model.get_submodule(NAME)


@torch.inference_mode()
def test_int8_by_hand() -> None:
    """A step is the largest magnitude / 127.5. Here steps are powers of two, and all but the largest values on them."""
    generator = torch.Generator().manual_seed(0)
    codes, tokens = (torch.randint(-127, 128, (rows, 64), generator=generator) for rows in (48, 3))
    codes[:, 5] = tokens[:, 9] = 127
    step, loudness = 2.0 ** -(torch.arange(48)[:, None] % 3), torch.tensor([[1.0], [4.0], [0.5]])
    weight, inputs = codes * step, tokens * loudness
    beyond = weight + 0.5 * step * (torch.arange(64) == 5)
    floats, dynamic = (layer_of(Int8(activations), beyond) for activations in (False, True))
    for layer in (floats, dynamic):
        assert torch.equal(layer.get_buffer("_weight_qdata"), codes.to(torch.int8))
        assert torch.equal(layer.dequantize(), weight)
    beyond = inputs + 0.5 * loudness * (torch.arange(64) == 9)
    torch.testing.assert_close(dynamic(beyond), inputs @ weight.T, rtol=1e-6, atol=0)
    torch.testing.assert_close(floats(beyond), beyond @ weight.T, rtol=1e-6, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int4_by_hand(dtype: torch.dtype) -> None:
    """Groups that use all 16 codes of a grid of their own come back exactly: stored, and laid out for this CPU."""
    codes = torch.stack([torch.arange(64).roll(row) % 16 for row in range(48)])
    scale = 2.0 ** (torch.arange(96).reshape(48, 2) % 3)
    zero = torch.arange(96).reshape(48, 2) % 7 * 8.0
    weight = (((codes - 8).reshape(48, 2, 32) * scale[:, :, None]) + zero[:, :, None]).flatten(1).to(dtype)
    layer = layer_of(Int4WeightOnly(32), weight)
    assert torch.equal(layer.dequantize(), weight)
    assert layer.get_buffer("_weight_qdata")[0, :2].tolist() == [(-8 & 15) | (-7 << 4), (-6 & 15) | (-5 << 4)]
    assert torch.equal(layer.get_buffer("_weight_scale"), scale.T.to(dtype))
    assert torch.equal(layer.get_buffer("_weight_zero_point"), zero.T.to(dtype))
    layer.bias = torch.arange(48).to(dtype)
    assert torch.equal(layer(torch.eye(64, dtype=dtype)), weight.T + layer.bias)
    layer.prepare()
    assert torch.equal(layer(torch.eye(64, dtype=dtype)), weight.T + layer.bias)


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("technique", [Int8(False), Int8(True), Int4WeightOnly(32)])
@pytest.mark.parametrize("name", ["llama", "opt"])
def test_plain_transformers_reads_the_artifact(name: str, technique: Int8 | Int4WeightOnly, tmp_path: Path) -> None:
    ours = technique.apply(tiny_subject(name, "bfloat16"), NO_DATA)
    artifact.save(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert type(theirs.get_output_embeddings().weight) is nn.Parameter
    for path, plain in architecture.block_linears(tiny_model(name, "bfloat16")).items():
        layer, read = ours.model.get_submodule(path), theirs.get_submodule(path)
        weight = read.weight
        assert read.bias is plain.bias is None or torch.equal(read.bias, plain.bias)
        assert type(weight) is type(layer.stored())
        for part in weight.tensor_data_names:
            assert torch.equal(getattr(weight, part), layer.get_buffer(f"_weight_{part}"))
    if isinstance(technique, Int8):  # its products with a plain int4 tensor are for GPUs
        assert torch.equal(theirs(TOKEN_IDS)[0], ours.model(TOKEN_IDS)[0])


@pytest.mark.parametrize(
    ("technique", "product", "real"),
    [
        (Int8(False), "aten::mm", False),
        (Int8(True), "aten::_int_mm", True),
        (Int4WeightOnly(64), "aten::_weight_int4pack_mm_for_cpu", False),
    ],
)
def test_what_it_says_of_itself_is_what_runs(
    technique: Int8 | Int4WeightOnly, product: str, real: bool, tmp_path: Path
) -> None:
    artifact.save(technique.apply(tiny_subject("llama", "bfloat16"), NO_DATA), tmp_path)
    stored, running = artifact.load(tmp_path, prepare=False), artifact.load(tmp_path)
    assert recount(tmp_path, stored, artifact.skeleton(tmp_path)).mismatches(stored.claims) == []
    assert live_bytes(running.model) == live_bytes(stored.model)
    layer = running.model.get_submodule(NAME)
    with torch.inference_mode(), torch.profiler.profile() as profile:
        layer(torch.randn(3, 64, dtype=torch.bfloat16))
    assert {event.key for event in profile.key_averages()} & PRODUCTS == {product}
    assert (layer.memory_real, layer.compute_real) == (True, real)


def test_activations_have_a_scale_a_token_so_that_batches_do_not_matter() -> None:
    dynamic = Int8(True).apply(tiny_subject("llama", "bfloat16"), NO_DATA).model
    prepare_layers(dynamic)
    assert not batch_dependent(dynamic)
    layer, tokens = dynamic.get_submodule(NAME), torch.randn(4, 64, dtype=torch.bfloat16)
    loud = torch.cat([tokens, 1000 * tokens[:1]])
    assert torch.equal(layer(loud)[:4], layer(tokens))


@torch.inference_mode()
@pytest.mark.parametrize("technique", [Int8(False), Int8(True)])
def test_its_decode_step_compiles_whole_and_picks_the_same_tokens(
    technique: Int8, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured as for any compiler, and run as captured: code generation takes a minute, and rounds otherwise."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    found = []
    for runtime in (Compiled("cpu", 1), Eager("cpu", 1)):
        subject = technique.apply(tiny_subject("llama", "bfloat16"), NO_DATA)
        prepare_layers(subject.model)
        generation = runtime.engine(subject).begin(20)
        generation.prefill(TOKEN_IDS)
        found.append([generation.decode().tolist() for _ in range(8)])
    assert found[0] == found[1]
    assert len({token for step in found[0] for row in step for token in row}) > 2


def test_it_follows_and_precedes_other_steps() -> None:
    pruned = Magnitude(0.5).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    zero = pruned.model.get_submodule(NAME).dequantize() == 0
    both = Int8(False).apply(pruned, NO_DATA)
    assert torch.equal(both.model.get_submodule(NAME).dequantize() == 0, zero)
    coarser = RoundToNearest(2, 32, True).apply(both, NO_DATA)
    assert layer_specs(coarser.model)[NAME]["bits"] == 2


@pytest.mark.parametrize("group_size", [16, 48, 256, None])
def test_groups_that_the_kernel_does_not_have_are_refused(group_size: int | None) -> None:
    with pytest.raises(Unsupported, match=f"groups of {group_size}; expected 32, 64 or 128"):
        Int4WeightOnly(group_size).apply(tiny_subject("llama"), NO_DATA)


@pytest.mark.parametrize(("rows", "columns"), [(40, 64), (48, 96)])
def test_a_shape_that_the_kernel_cannot_take_is_refused_before_any_work(rows: int, columns: int) -> None:
    subject = tiny_subject("llama")
    architecture.replace(subject.model, NAME, nn.Linear(columns, rows))
    with pytest.raises(Unsupported, match=f"{NAME} is {rows} x {columns}, .* multiples of 16 x 64"):
        Int4WeightOnly(64).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
    assert not hasattr(subject.model.config, "quantization_config")


@pytest.mark.parametrize("name", ["torchao_int8", "torchao_int8_dynamic", "torchao_int4"])
def test_where_the_library_is_missing_it_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchao, "find_spec", lambda _: None)
    (cell,) = cells(["model=tiny_llama", f"technique={name}"])
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=r'run `pip install "squeeze-bench\[torchao\]"`'):
        resolve_step(cell.technique["steps"][0]).apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
