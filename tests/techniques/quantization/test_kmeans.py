"""k-means: Lloyd's algorithm to the letter, by hand and against a plain one, and layers that hold its centroids."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers import kernels
from squeeze.layers.codebook import CodebookLinear
from squeeze.layers.contract import layer_specs, weight_numel
from squeeze.layers.kernels import product_by_parts
from squeeze.models import architecture
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.kmeans import KMeans, cluster, nearest
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
TOKEN_IDS = torch.arange(24).reshape(2, 12)


def lloyd(values: list[float], clusters: int) -> list[float]:
    """The textbook's form: every value to its nearest centroid, every centroid to its values' mean."""
    low, high = min(values), max(values)
    centroids = [low + (high - low) * i / (clusters - 1) for i in range(clusters)]
    while True:
        members: list[list[float]] = [[] for _ in centroids]
        for value in values:
            members[min(range(clusters), key=lambda i: abs(value - centroids[i]))].append(value)
        moved = [sum(m) / len(m) if m else c for m, c in zip(members, centroids, strict=True)]
        if max(abs(a - b) for a, b in zip(moved, centroids, strict=True)) < 1e-9:
            return moved
        centroids = moved


def test_by_hand() -> None:
    """Starting at 0, 3, 6, 9: {0, 1}, {2, 4}, none, {8, 9}; the empty cluster stays."""
    values = torch.tensor([[9.0, 0.0, 4.0, 1.0, 2.0, 8.0]])
    centroids = cluster(values, 2)
    torch.testing.assert_close(centroids, torch.tensor([[0.5, 3.0, 6.0, 8.5]]))
    assert nearest(values, centroids).tolist() == [[3, 0, 1, 0, 1, 3]]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_centroids_are_those_of_lloyds_algorithm(bits: int) -> None:
    values = torch.randn(3, 200, generator=torch.Generator().manual_seed(bits)) * torch.tensor([[1.0], [5.0], [0.1]])
    expected = torch.tensor([lloyd(row, 2**bits) for row in values.tolist()])
    torch.testing.assert_close(cluster(values, bits), expected, rtol=1e-5, atol=1e-6)


def test_sums_of_large_values_do_not_swallow_small_ones() -> None:
    values = torch.cat([torch.full((1000,), -1e4), torch.linspace(0, 1.0008, 1000)])[None]
    assert cluster(values, 2)[0, -1].item() == pytest.approx(0.5004, rel=1e-5)  # a sum of 500.4 beside one of -1e7


@pytest.mark.parametrize("rows", [None, 16, 1])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_is_its_nearest_centroid(name: str, rows: int | None) -> None:
    original, subject = tiny_model(name), KMeans(3, rows).apply(tiny_subject(name), NO_DATA)
    for layer_name, layer in architecture.block_linears(original).items():
        weight, shared = architecture.weight(layer), subject.model.get_submodule(layer_name)
        bias = architecture.bias(layer)
        assert shared.bias is bias is None or torch.equal(shared.bias, bias)
        stored = shared.dequantize()
        for start in range(0, len(weight), rows or len(weight)):
            group = slice(start, start + (rows or len(weight)))
            centroids = stored[group].unique()
            assert len(centroids) <= 8
            distances = (weight[group][..., None] - centroids).abs()
            torch.testing.assert_close((stored[group] - weight[group]).abs(), distances.amin(-1), rtol=0, atol=1e-6)
    assert subject.claims == {"bits": 3}


def test_smaller_groups_and_more_bits_lose_less() -> None:
    expected = tiny_model("llama")(TOKEN_IDS)[0]
    kinds = [(2, None), (3, None), (3, 1), (4, 1), (8, 1)]
    outputs = [KMeans(*kind).apply(tiny_subject("llama"), NO_DATA).model(TOKEN_IDS)[0] for kind in kinds]
    errors = [float((output - expected).norm()) for output in outputs]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_stored_bits_are_the_bits(bits: int, tmp_path: Path) -> None:
    artifact.save(KMeans(bits, 16).apply(tiny_subject("llama", "bfloat16"), NO_DATA), tmp_path)
    layers = [module for module in artifact.load(tmp_path).model.modules() if isinstance(module, CodebookLinear)]
    assert len(layers) == 14
    for layer in layers:
        assert 8 * layer.codes.nbytes == bits * weight_numel(layer)
        assert 8 * layer.codebooks.nbytes == 16 * 2**bits * layer.out_features // 16


def test_blocks_of_rows_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(8, (80, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codebooks = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    layer = CodebookLinear.of(codes, codebooks, torch.ones(80), torch.float32)
    weight = torch.stack([codebooks[row // 16].float()[codes[row].long()] for row in range(80)])
    assert torch.equal(layer.dequantize(), weight)
    monkeypatch.setattr(kernels, "WEIGHTS_AT_ONCE", 64 * 24)
    given = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(layer(given), given @ weight.T + 1)


def test_no_block_holds_more_weights_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "WEIGHTS_AT_ONCE", 3000)
    weight, bias = torch.randn(300, 20), torch.arange(300.0)
    spans = []

    def dequantize(start: int, stop: int) -> torch.Tensor:
        spans.append((start, stop))
        return weight[start:stop]

    given = torch.randn(2, 20)
    torch.testing.assert_close(product_by_parts(given, dequantize, 300, bias), given @ weight.T + bias)
    assert spans == [(0, 128), (128, 256), (256, 300)]  # 150 rows fit, whole blocks of 64 are taken


@pytest.mark.parametrize(
    ("technique", "message"),
    [
        (KMeans(5, None), "no 5-bit codes; bits that work: 8, 4, 3, 2"),
        (KMeans(4, 24), "rows 24 does not divide out_features 32; null: one codebook a layer"),
    ],
)
def test_what_it_cannot_do_is_refused_before_any_work(technique: KMeans, message: str) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        technique.apply(subject, NO_DATA)
    assert not layer_specs(subject.model)
