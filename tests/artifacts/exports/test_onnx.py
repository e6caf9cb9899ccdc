"""An ONNX graph stores our codes as MatMulNBits is documented to read them, and gives their values.

What needs the libraries is skipped where they are not installed; ``nox -s runtimes`` makes their environment.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.onnx import FILE, INT8_INPUTS_FILE, to_onnx
from squeeze.artifacts.exports.onnx_codes import Blocks, blocks
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers import affine
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.hqq import HQQ
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

NO_DATA = CalibrationText.empty()
NAME = "model.layers.1.mlp.down_proj"
OUT, IN = 6, 192
GRIDS = [
    (bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (32, 48, 64, 96, IN) for symmetric in (True, False)
]


def layer(bits: int, group_size: int, symmetric: bool) -> QuantizedLinear:
    weight = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(bits)).add_(0.3)
    grid = affine.fit(weight, bits, group_size, symmetric)
    return QuantizedLinear.of(grid.quantize(weight), grid, None, weight.dtype)


def read(parts: Blocks) -> np.ndarray[Any, Any]:
    """W (N, K) by the operator's documentation: codes of a block, two of 4 bits a byte, the low one first."""
    rows, count, _ = parts.codes.shape
    values = np.empty((rows, count * parts.block_size))
    for row in range(rows):
        for block in range(count):
            zero = half(parts.zero_points[row], block, parts.bits) if parts.zero_points is not None else None
            for place in range(parts.block_size):
                code = half(parts.codes[row, block], place, parts.bits)
                step = code - (2 ** (parts.bits - 1) if zero is None else zero)
                values[row, block * parts.block_size + place] = step * float(parts.scales[row, block])
    return values


def half(stream: np.ndarray[Any, Any], place: int, bits: int) -> int:
    return int(stream[place]) if bits == 8 else int(stream[place // 2]) >> (4 * (place % 2)) & 15


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_the_documented_reading_gives_the_layers_values(bits: int, group_size: int, symmetric: bool) -> None:
    packed = layer(bits, group_size, symmetric)
    parts = blocks("some", packed)
    assert parts.bits == (4 if bits <= 4 else 8)
    assert parts.block_size == {32: 32, 48: 16, 64: 64, 96: 32, 192: 64}[group_size]
    assert parts.codes.shape == (OUT, IN // parts.block_size, parts.block_size * parts.bits // 8)
    assert (parts.zero_points is None) == (symmetric and bits in (4, 8))
    np.testing.assert_allclose(read(parts), packed.dequantize().double().numpy(), rtol=1e-6)


def test_what_its_kernels_do_not_read_is_refused() -> None:
    with pytest.raises(Unsupported, match="group_size 24 has no divisor among 16, 32"):
        blocks("some", layer(4, 24, True))
    hqq = HQQ(4, 32).apply(tiny_subject("llama"), NO_DATA).model.get_submodule(NAME)
    with pytest.raises(Unsupported, match="zero points lie between codes"):
        blocks("some", hqq)


def rtn(bits: int, group_size: int | None, symmetric: bool, **also: Any) -> Subject:
    return RoundToNearest(bits, group_size, symmetric, **also).apply(tiny_subject("llama"), NO_DATA)


def graph(subject: Subject, folder: Path, weights: str = "stored") -> Any:
    """The graph of a subject's export, ``onnx.GraphProto``, its data with it."""
    onnx = pytest.importorskip("onnx", reason="nox -s runtimes -- onnx")
    pytest.importorskip("onnxruntime")
    artifact.save(subject, folder / "artifact")
    to_onnx(folder / "artifact", folder / "exported", weights)
    return onnx.load(str(folder / "exported" / FILE)).graph


def floats(found: Any) -> int:
    """Count the matrices of floats."""
    return sum(each.data_type == 1 and len(each.dims) == 2 and np.prod(each.dims) >= 2048 for each in found.initializer)


def attributes(node: Any) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def test_all_codes_of_the_blocks_are_in_the_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="nox -s runtimes -- onnx")
    subject = rtn(4, 32, False)
    found = graph(subject, tmp_path)
    products = [node for node in found.node if node.op_type == "MatMulNBits"]
    assert len(products) == 14
    assert all(attributes(node)["accuracy_level"] == 1 for node in products)
    assert floats(found) == 2, "the table and the head"
    packed = subject.model.get_submodule(NAME)
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in found.initializer}
    codes = tensors[f"{NAME}.codes"]
    parts = Blocks(4, 32, codes, tensors[f"{NAME}.scales"], tensors[f"{NAME}.zero_points"])
    np.testing.assert_allclose(read(parts), packed.dequantize().double().numpy(), rtol=1e-6)  # type: ignore[operator]


def test_the_graph_that_rounds_inputs_is_the_same_but_for_that(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="nox -s runtimes -- onnx")
    found = graph(rtn(4, 32, True), tmp_path)
    other = onnx.load(str(tmp_path / "exported" / INT8_INPUTS_FILE), load_external_data=False).graph
    assert Counter(node.op_type for node in other.node) == Counter(node.op_type for node in found.node)
    assert {attributes(node)["accuracy_level"] for node in other.node if node.op_type == "MatMulNBits"} == {4}
    assert {path.name for path in (tmp_path / "exported").glob("*.data")} == {f"{FILE}.data"}
    graph(tiny_subject("llama"), tmp_path / "floats")
    assert not (tmp_path / "floats" / "exported" / INT8_INPUTS_FILE).exists()


@pytest.mark.parametrize("embed_bits", [8, 4])
def test_a_rounded_table_is_read_as_codes(embed_bits: int, tmp_path: Path) -> None:
    found = graph(rtn(4, 32, True, embed_bits=embed_bits), tmp_path)
    assert floats(found) == 0
    assert Counter(node.op_type for node in found.node)["MatMulNBits"] == 15


def test_its_own_tools_round_to_the_bits_that_are_asked_for(tmp_path: Path) -> None:
    found = graph(tiny_subject("llama"), tmp_path / "4", "int4")
    constants = {each.name for each in found.initializer}
    assert not [node.name for node in found.node if node.op_type == "MatMul" and constants & set(node.input)]
    assert {attributes(node)["block_size"] for node in found.node if node.op_type == "MatMulNBits"} == {32}
    assert floats(found) == 1, "the table"
    assert floats(graph(tiny_subject("llama"), tmp_path / "8", "int8")) == 0


def test_what_it_cannot_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="nox -s runtimes -- onnx")
    cases = {
        "codes": (rtn(4, 32, True), "int4", "holds codes, which ONNX Runtime's quantizer would round again"),
        "weights": (tiny_subject("llama"), "int2", "no weights 'int2'; expected one of stored, int8, int4"),
        "hqq": (HQQ(4, 32).apply(tiny_subject("llama"), NO_DATA), "stored", "zero points lie between codes"),
    }
    for name, (subject, weights, message) in cases.items():
        artifact.save(subject, tmp_path / name)
        with pytest.raises(Unsupported, match=message):
            to_onnx(tmp_path / name, tmp_path / "exported", weights)
    assert not (tmp_path / "exported").exists()


def test_codes_that_the_graph_does_not_hold_are_no_silent_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an exporter that changes weights on the way."""
    monkeypatch.setattr("squeeze.artifacts.exports.onnx.put_codes", lambda *_: set())
    with pytest.raises(SqueezeError, match="values are not in the traced graph"):
        graph(rtn(4, 32, True), tmp_path)
