"""Promise 11: compression is real. What a technique says and what it left are counted apart."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.recount import Recount, dense, matrices, most_levels, recount, stored_beside
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.low_rank.svd import SVD
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.pruning.sparsegpt import SparseGPT
from squeeze.techniques.pruning.wanda import Wanda
from squeeze.techniques.quantization.awq import AWQ
from squeeze.techniques.quantization.bitsandbytes import Float4, LLMInt8
from squeeze.techniques.quantization.gptq import GPTQ
from squeeze.techniques.quantization.hqq import HQQ
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.qat import QAT
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.smoothquant import SmoothQuant
from squeeze.techniques.quantization.static_int8 import StaticInt8
from squeeze.techniques.training.finetune import Finetune
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TEXT = CalibrationText(
    torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)),
    load_baseline=lambda: tiny_model("llama", "bfloat16"),
)
GRID: dict[str, Any] = {"bits": 4, "group_size": 32, "symmetric": True}
SCHEDULE: dict[str, Any] = {"training_steps": 2, "windows": 1, "learning_rate": 1e-2}
WANDA = Wanda(0.5, None, sequential=False)
KEEP_ZEROS: list[Any] = [
    RoundToNearest(**GRID),
    RoundToNearest(4, 32, symmetric=False),
    AWQ(**GRID, clip=True),
    SmoothQuant(0.5),
    StaticInt8(),
]
FACTORED = SVD(0.8, whitened=False, damping=0.01, sequential=False)
FILL_ZEROS: list[Any] = [
    GPTQ(**GRID, act_order=True, static_groups=True, damping=0.3, sequential=True),
    HQQ(4, 32),
    KMeans(4, None),
    QAT(**GRID, learned_step=False, temperature=1.0, **SCHEDULE),
    Finetune(**SCHEDULE),
    FACTORED,
]
STORE_FLOATS: list[Any] = [
    Finetune(**SCHEDULE),
    Magnitude(0.5),
    WANDA,
    SparseGPT(0.5, None, 0.1, sequential=False),
    FACTORED,
]


def counted(subject: Subject, folder: Path) -> tuple[Recount, list[str]]:
    artifact.save(subject, folder)
    stored = artifact.load(folder, prepare=False)
    found = recount(folder, stored, artifact.skeleton(folder))
    return found, found.mismatches(stored.claims)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_uncompressed_model_is_dense(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    weights = sum(architecture.weight(layer).numel() for layer in architecture.block_linears(subject.model).values())
    found, mismatches = counted(subject, tmp_path)
    expected = Recount(weights, 32.0, sparsity=0.0, levels=32, compressed_share=0.0, level_bits=5.0, dense_bits=32)
    assert replace(found, in_row=expected.in_row) == expected
    assert found.in_row >= 64
    assert mismatches == []


@pytest.mark.promise(11)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_quantized_weights_take_the_bits_that_they_claim(name: str, bits: int, tmp_path: Path) -> None:
    subject = RoundToNearest(bits, 32, symmetric=True).apply(tiny_subject(name, "bfloat16"), NO_DATA)
    found, mismatches = counted(subject, tmp_path)
    assert found.effective_bits == bits + 16 / 32
    assert found.levels <= 2**bits
    assert found.compressed_share == 1.0
    assert mismatches == []


@pytest.mark.promise(11)
@pytest.mark.parametrize("group_size", [32, None])
def test_codes_of_more_bits_than_claimed_are_caught(group_size: int | None, tmp_path: Path) -> None:
    """Where no group is claimed, stored bytes leave room for it: scales and zero points may take a bit a weight."""
    subject = RoundToNearest(3, group_size, symmetric=True).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    found, honest = counted(subject, tmp_path)
    assert honest == []
    stored = f"claimed 2 bits, stored {3 + 16 / (group_size or 64):.2f} a weight (0% left dense)"
    levels = "claimed 2 bits, found 8 values among 32 neighbours, expected 4 at the most"
    if group_size:
        assert found.mismatches({**subject.claims, "bits": 2}) == [stored]
    else:
        assert found.mismatches({"bits": 2}) == [levels]


def test_what_may_be_stored_beside_the_codes_is_what_the_claimed_groups_take() -> None:
    assert stored_beside({"group_size": 64}) == pytest.approx(0.5, abs=0.02)
    assert stored_beside({"group_size": 32}) == pytest.approx(1.0, abs=0.02)
    assert stored_beside({"group_size": None}) == pytest.approx(0.5, abs=0.02)
    assert stored_beside({"group_size": 32}, dense_bits=32) == pytest.approx(2.0, abs=0.02)
    assert stored_beside({"group_size": None}, in_row=16) == pytest.approx(2.0, abs=0.02)
    assert stored_beside({"group_size": None}, in_row=576) == stored_beside({"group_size": None})


def test_an_average_of_mixed_bits_is_no_mismatch() -> None:
    """Half the weights have 8 bits, of which 32 neighbours show 5."""
    mixed = Recount(1000, 5.9, sparsity=0.0, levels=32, compressed_share=1.0, level_bits=(5 + 3) / 2)
    assert mixed.mismatches({"bits": 5.5, "group_size": 64, "high_layers": 3}) == []
    assert mixed.mismatches({"bits": 3.9, "group_size": 16}) == []  # neighbours of two groups have two scales
    uniform = Recount(1000, 4.3, sparsity=0.0, levels=16, compressed_share=1.0, level_bits=4.0)
    assert uniform.mismatches({"bits": 4, "group_size": 64}) == []
    assert len(uniform.mismatches({"bits": 3.9, "group_size": 64})) == 1


@pytest.mark.promise(11)
def test_zeros_are_counted_in_the_saved_weights(tmp_path: Path, figure: Callable[[str], None]) -> None:
    subject = Magnitude(0.5).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    found, mismatches = counted(subject, tmp_path)
    assert found.sparsity == pytest.approx(0.5, abs=1e-4)
    assert found.effective_bits == pytest.approx(1 + 8, rel=1e-3)
    assert mismatches == []
    figure(f"half the weights pruned: {found.sparsity:.1%} zeros in the file, {found.effective_bits:.2f} bits a weight")


@pytest.mark.promise(11)
def test_a_technique_that_does_nothing_is_caught(tmp_path: Path, figure: Callable[[str], None]) -> None:
    _, mismatches = counted(tiny_subject("llama", "bfloat16").claiming(bits=4, sparsity=0.5), tmp_path)
    assert mismatches == ["claimed 4 bits, stored 16.00 a weight (100% left dense)", "claimed 50.0% zeros, found 0.0%"]
    figure(f"caught, a technique that does nothing: {'; '.join(mismatches)}")


@pytest.mark.promise(11)
def test_a_technique_that_leaves_half_the_layers_dense_is_caught(tmp_path: Path, figure: Callable[[str], None]) -> None:
    half = tiny_subject("llama", "bfloat16")
    whole = RoundToNearest(4, 32, symmetric=True).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    for name, layer in matrices(whole.model):
        if ".layers.0." in name:
            architecture.replace(half.model, name, layer)
    found, mismatches = counted(Subject(half.model, half.tokenizer, whole.claims), tmp_path)
    assert found.compressed_share == 0.5
    assert found.effective_bits == (4.5 + 16) / 2
    assert mismatches == ["claimed 4 bits, stored 10.25 a weight (50% left dense)"]
    figure(f"caught, one that leaves half the layers dense: {mismatches[0]}")


@pytest.mark.promise(11)
def test_too_few_zeros_are_caught(tmp_path: Path, figure: Callable[[str], None]) -> None:
    subject = Magnitude(0.45).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    _, mismatches = counted(subject.claiming(sparsity=0.5), tmp_path)
    assert mismatches == ["claimed 50.0% zeros, found 45.0%"]
    figure(f"caught, one that falls short: {mismatches[0]}")


def test_zeros_that_few_codes_add_to_claimed_ones_are_no_mismatch(tmp_path: Path) -> None:
    subject = tiny_subject("llama", "bfloat16")
    for layer in architecture.block_linears(subject.model).values():
        architecture.weight(layer).pow_(3)  # heavy tails, as trained weights have them
    rounded = RoundToNearest(3, 32, symmetric=True).apply(WANDA.apply(subject, TEXT), NO_DATA)
    found, mismatches = counted(rounded, tmp_path)
    assert found.sparsity > 0.55
    assert mismatches == []
    assert found.mismatches({"sparsity": 0.5}) == [f"claimed 50.0% zeros, found {found.sparsity:.1%}"]
    fewer = replace(found, sparsity=0.4)
    assert fewer.mismatches(rounded.claims) == ["claimed 50.0% zeros, found 40.0%"]


@pytest.mark.parametrize("step", KEEP_ZEROS + FILL_ZEROS, ids=lambda step: type(step).__name__)
def test_of_a_pruned_model_zeros_are_claimed_where_a_step_keeps_them(step: Any, tmp_path: Path) -> None:
    subject = step.apply(WANDA.apply(tiny_subject("llama", "bfloat16"), TEXT), TEXT)
    _, mismatches = counted(subject, tmp_path)
    assert mismatches == []
    assert ("sparsity" in subject.claims) is (step in KEEP_ZEROS)


@pytest.mark.parametrize("step", STORE_FLOATS, ids=lambda step: type(step).__name__)
def test_no_codes_are_claimed_where_a_step_stores_floats_again(step: Any, tmp_path: Path) -> None:
    subject = step.apply(RoundToNearest(**GRID).apply(tiny_subject("llama", "bfloat16"), NO_DATA), TEXT)
    _, mismatches = counted(subject, tmp_path)
    assert mismatches == []
    assert not subject.claims.keys() & {"bits", "group_size", "symmetric"}


def test_an_adapter_that_takes_more_than_the_claimed_codes_is_caught() -> None:
    small, large = (
        Recount(1000, 4.25 + bits, 0.0, levels=16, compressed_share=1.0, level_bits=4.0, adapter_bits=bits)
        for bits in (3.5, 4.5)
    )
    assert small.mismatches({"bits": 4, "group_size": 64}) == []
    caught = ["claimed 4 bits, stored 4.50 a weight in an adapter beside them"]
    assert large.mismatches({"bits": 4, "group_size": 64}) == caught
    assert large.mismatches({}) == []


class Foreign(nn.Linear):
    """A library's layer: codes in ``weight``, the values known to its forward alone."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__(values.shape[1], values.shape[0])
        self.hidden = values
        self.weight = nn.Parameter(torch.zeros(values.shape, dtype=torch.int8), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs @ self.hidden.T + self.bias


def test_a_foreign_layer_shows_its_weights_through_its_forward() -> None:
    values = torch.randn(10, 96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(dense(Foreign(values)), values[:, :64], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("technique", "bits"), [(Float4("nf4", double_quant=False), 4), (LLMInt8(6.0), 8)])
def test_a_librarys_own_format_is_counted_like_ours(technique: Float4 | LLMInt8, bits: int, tmp_path: Path) -> None:
    found, mismatches = counted(technique.apply(tiny_subject("llama", "bfloat16"), NO_DATA), tmp_path)
    assert bits < found.effective_bits < bits + 1.25
    assert found.levels <= min(2**bits, 32)
    assert found.compressed_share == 1.0
    assert mismatches == []


def test_levels_are_distinct_values_among_neighbours() -> None:
    row = torch.arange(64) % 5 * 1.0
    assert most_levels(row.repeat(3, 1)) == 5
    assert most_levels(torch.arange(64.0).repeat(3, 1)) == 32
    assert most_levels(torch.zeros(3, 64)) == 1
