"""What is small, and what computes less, while it runs."""

from pathlib import Path

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.layers.contract import count_parameters, dtype_name, live_bytes
from squeeze.layers.int8 import Int8Linear
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import realised, size
from squeeze.probes.recount import weights_by_layer
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.lean import Lean
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.bitsandbytes import LLMInt8
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from tests.students import subject_of
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

EAGER = Eager("cpu", 1)
PROTOCOL = {"prompt_tokens": 16, "batch_sizes": [1, 4]}
TEXT = (torch.arange(64) * 7 % 251)[None]


def loaded(subject: Subject, folder: Path, name: str = "llama") -> dict[str, object]:
    """The figures of a subject, against the tiny model of that name."""
    artifact.save(subject, folder / "own")
    artifact.save(tiny_subject(name, dtype_name(subject.model.dtype)), folder / "baseline")
    weighed = size.figures(folder / "own", folder / "baseline")
    return realised.figures(EAGER.load(folder / "own"), weighed, tiny_model(name), PROTOCOL, TEXT)


def running(subject: Subject) -> dict[str, object]:
    """The figures of a subject that was never saved."""
    baseline = tiny_model("llama")
    weighed = {"bytes": 0, "parameters": count_parameters(baseline)}
    return realised.figures(EAGER.engine(subject), weighed, baseline, PROTOCOL, TEXT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_uncompressed_model_has_none_of_the_three(name: str, tmp_path: Path) -> None:
    found = loaded(tiny_subject(name), tmp_path, name)
    assert (found["bytes_real"], found["memory_real"], found["compute_real"]) == (False, False, False)


@pytest.mark.parametrize("technique", [RoundToNearest(4, 32, symmetric=True), KMeans(4, 16)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_packed_weights_stay_small_while_running(
    dtype: str, technique: RoundToNearest | KMeans, tmp_path: Path
) -> None:
    found = loaded(technique.apply(tiny_subject("llama", dtype), CalibrationText.empty()), tmp_path)
    assert (found["bytes_real"], found["memory_real"], found["compute_real"]) == (True, True, False)


def test_integer_arithmetic_is_told_from_widened_weights(tmp_path: Path) -> None:
    widened = RoundToNearest(8, None, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    assert loaded(widened, tmp_path / "widened")["arithmetic"] == "float32"
    integers = TorchDynamic(per_channel=True, activation_bits=7).apply(tiny_subject("llama"), CalibrationText.empty())
    found = loaded(integers, tmp_path / "integers")
    assert (found["compute_real"], found["arithmetic"]) == (True, "int8")


class Pretender(Int8Linear):
    """Claims integers and multiplies floats, as a library does on a CPU without the kernel."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.dequantize(), self.bias)


def test_arithmetic_is_what_runs_not_what_a_layer_says() -> None:
    subject = tiny_subject("llama")
    for name, layer in architecture.block_linears(subject.model).items():
        architecture.replace(subject.model, name, Pretender.of(architecture.weight(layer), None))
    found = running(subject.claiming(bits=8))
    assert (found["compute_real"], found["arithmetic"]) == (False, "float32")
    assert found["mismatches"] == ["claimed products of integers, found floating point"]


def test_a_librarys_arithmetic_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = LLMInt8(6.0).apply(tiny_subject("llama"), CalibrationText.empty())
    found = running(subject)
    assert (found["compute_real"], found["mismatches"]) == (True, [])
    monkeypatch.setattr("squeeze.probes.arithmetic.INTEGER", frozenset())  # as where the library falls back
    found = running(subject)
    assert found["compute_real"] is False
    assert found["mismatches"] == ["claimed products of integers, found floating point"]


@pytest.mark.parametrize(("bits", "expected"), [(2, 4), (3, 4), (4, 4), (8, 8)])
def test_the_width_that_runs_is_the_kernels(bits: int, expected: int, tmp_path: Path) -> None:
    subject = RoundToNearest(bits, 32, symmetric=True).apply(tiny_subject("gpt2", "bfloat16"), CalibrationText.empty())
    assert loaded(subject, tmp_path, "gpt2")["running_bits"] == expected


@pytest.mark.parametrize("technique", [RoundToNearest(4, 32, symmetric=True), RoundToNearest(8, 32, symmetric=False)])
def test_codes_that_several_layers_reach_are_those_of_all(
    technique: RoundToNearest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the lean path lays them: one block holds the codes of queries, keys and values."""
    sizes = {"hidden_size": 128, "intermediate_size": 256}
    baseline = subject_of("llama", "bfloat16", **sizes)
    artifact.save(baseline, tmp_path / "baseline")
    own = technique.apply(subject_of("llama", "bfloat16", **sizes), CalibrationText.empty())
    artifact.save(own, tmp_path / "own")
    engine, weighed = Lean("cpu", 1).load(tmp_path / "own"), size.figures(tmp_path / "own", tmp_path / "baseline")
    found = realised.figures(engine, weighed, baseline.model, PROTOCOL, TEXT)
    assert (found["running_bits"], found["memory_real"], found["mismatches"]) == (technique.bits, True, [])
    monkeypatch.setattr(QuantizedLinear, "running_bits", technique.bits - 2.0)
    told = realised.figures(engine, weighed, baseline.model, PROTOCOL, TEXT)["mismatches"]
    lie = f"_proj claims codes of {technique.bits - 2} bits in memory, found {technique.bits}"
    assert {f"model.layers.{block}.self_attn.{name}{lie}" for block in (0, 1) for name in "qkv"} <= {*told}
    assert {f"model.layers.{block}.mlp.{name}{lie}" for block in (0, 1) for name in ("gate", "up")} <= {*told}


def test_a_sparse_file_that_runs_dense_is_no_memory_gain(tmp_path: Path) -> None:
    found = loaded(Magnitude(0.5).apply(tiny_subject("llama"), CalibrationText.empty()), tmp_path)
    assert (found["bytes_real"], found["memory_real"], found["compute_real"]) == (True, False, False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_skips_nearly_all_weights_has_all_three(dtype: str, tmp_path: Path) -> None:
    found = loaded(Magnitude(0.97).apply(tiny_subject("llama", dtype), CalibrationText.empty()), tmp_path)
    assert (found["bytes_real"], found["memory_real"], found["compute_real"]) == (True, True, True)
    assert (found["arithmetic"], found["mismatches"]) == (dtype, [])
    assert found["running_bits"] < 3


class Widened(SparseLinear):
    """Claims to skip zeros and multiplies with all of the matrix."""

    compute_real = True

    def prepare(self) -> None:
        self.weight = self.dequantize()


def test_zeros_that_are_multiplied_are_not_skipped() -> None:
    subject = tiny_subject("llama")
    for name, layer in architecture.block_linears(subject.model).items():
        weight = architecture.weight(layer)
        made = Widened.of(weight.masked_fill(weight.abs() < 0.05, 0), None)
        made.prepare()
        architecture.replace(subject.model, name, made)
    found = running(subject.claiming(sparsity=0.5))
    assert found["compute_real"] is False
    assert found["mismatches"] == ["claimed products of nonzero weights alone, found floating point"]


def test_a_model_of_fewer_layers_has_all_three(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    parameters = count_parameters(subject.model)
    del subject.model.model.layers[1]
    subject.model.config.num_hidden_layers = 1
    found = loaded(subject.claiming(parameters=parameters), tmp_path)
    assert (found["bytes_real"], found["memory_real"], found["compute_real"]) == (True, True, True)


def test_shared_memory_is_counted_once() -> None:
    layer = nn.Linear(8, 4, bias=False)
    tied = nn.Linear(8, 4, bias=False)
    tied.weight = layer.weight
    assert live_bytes(nn.ModuleList([layer, tied])) == 8 * 4 * 4


def test_a_tied_table_is_read_whole_and_an_untied_one_is_not() -> None:
    tied, untied = tiny_subject("gpt2").model, tiny_subject("llama").model
    assert realised.unread_bytes(tied) == 0
    table = untied.get_input_embeddings().weight
    assert realised.unread_bytes(untied) == table.nbytes


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_operations_equal_those_that_torch_counts(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_subject(name).model
    model.set_attn_implementation("eager")  # torch counts the products of this one, and the masked half, too
    linear = operations_of_linears(model, tokens=16)
    attention = 2 * 2 * 2 * 16 * 16 * 64 // 2  # two products, a multiply-add is two, layers, half masked
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros((3, 16), dtype=torch.int64), logits_to_keep=1)
    weights = weights_by_layer(model, model)
    assert realised.operations(model, weights, tokens=16, batch=3) == 3 * (linear + attention)
    assert counter.get_total_flops() == pytest.approx(3 * (linear + 2 * attention), rel=0.01)


def operations_of_linears(model: nn.Module, tokens: int) -> int:
    blocks = sum(architecture.weight(layer).numel() for layer in architecture.block_linears(model).values())
    return 2 * (blocks * tokens + model.get_output_embeddings().weight.numel())


def test_a_decoding_step_reads_what_blocks_share_in_each_of_its_places(tmp_path: Path) -> None:
    whole = loaded(tiny_subject("llama"), tmp_path / "whole")
    shared = loaded(SharedBlocks().apply(tiny_subject("llama"), CalibrationText.empty()), tmp_path / "shared")
    assert shared["live_bytes"] < 0.9 * whole["live_bytes"]
    assert shared["bytes_per_token"] == pytest.approx(whole["bytes_per_token"], rel=0.01)
