"""An OpenVINO graph stores our codes, and gives their values; what NNCF rounds has as many bits as it says.

What needs the library is skipped where it is not installed; ``nox -s runtimes`` makes its environment.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.openvino import FILE, to_openvino
from squeeze.artifacts.exports.openvino_codes import stored
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.hqq import HQQ
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

NO_DATA = CalibrationText.empty()
NAME = "model.layers.1.mlp.down_proj"
GRIDS = [(bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (16, 32, None) for symmetric in (True, False)]


def rtn(bits: int, group_size: int | None, symmetric: bool, name: str = "llama", **also: Any) -> Subject:
    return RoundToNearest(bits, group_size, symmetric, **also).apply(tiny_subject(name), NO_DATA)


def layer_of(subject: Subject) -> QuantizedLinear:
    layer = subject.model.get_submodule(NAME)
    assert isinstance(layer, QuantizedLinear)
    return layer


@pytest.mark.parametrize(("bits", "group_size", "symmetric"), GRIDS)
def test_what_is_stored_gives_the_layers_values(bits: int, group_size: int | None, symmetric: bool) -> None:
    layer = layer_of(rtn(bits, group_size, symmetric))
    parts = stored(layer)
    width = 4 if bits <= 4 else 8
    assert parts.type == f"{'i' if symmetric else 'u'}{width}"
    least, most = (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if symmetric else (0, 2**width - 1)
    assert least <= parts.codes.min() < parts.codes.max() <= most
    steps = parts.codes.astype(np.float64) - (0 if parts.zeros is None else parts.zeros.astype(np.float64))
    values = (steps * parts.scales.astype(np.float64)).reshape(layer.out_features, layer.in_features)
    np.testing.assert_allclose(values, layer.dequantize().double().numpy(), rtol=1e-6)
    assert (parts.codes.ndim == 2) == (group_size is None)


def test_real_zero_points_stay_real() -> None:
    layer = layer_of(HQQ(4, 32).apply(tiny_subject("llama"), NO_DATA))
    parts = stored(layer)
    assert parts.type == "u4"
    assert parts.zeros is not None
    assert parts.zeros.dtype == np.float32
    values = ((parts.codes - parts.zeros) * parts.scales).reshape(layer.out_features, layer.in_features)
    np.testing.assert_allclose(values, layer.dequantize().numpy(), rtol=1e-5, atol=1e-6)


def graph(subject: Subject, folder: Path, weights: str = "stored") -> Any:
    """The graph of a subject's export, ``openvino.Model``."""
    openvino = pytest.importorskip("openvino", reason="nox -s runtimes -- openvino")
    artifact.save(subject, folder / "artifact")
    to_openvino(folder / "artifact", folder / "exported", weights)
    return openvino.Core().read_model(str(folder / "exported" / FILE))


def constants(model: Any) -> dict[str, list[Any]]:
    """The matrices, and groups of codes, of each element type that there is."""
    openvino = pytest.importorskip("openvino")
    large = [
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Constant" and np.prod(node.get_output_shape(0)) >= 64 * 32
    ]
    kinds = {kind: getattr(openvino.Type, kind) for kind in ("f32", "f16", "bf16", "i4", "u4", "i8", "u8")}
    found = {name: [node for node in large if node.get_element_type() == kind] for name, kind in kinds.items()}
    assert sum(map(len, found.values())) == len(large)
    return {name: nodes for name, nodes in found.items() if nodes}


@pytest.mark.parametrize(
    ("bits", "symmetric", "kind"), [(4, True, "i4"), (4, False, "u4"), (3, False, "u4"), (8, True, "i8")]
)
def test_all_codes_of_the_blocks_are_in_the_graph(bits: int, symmetric: bool, kind: str, tmp_path: Path) -> None:
    subject = rtn(bits, 32, symmetric)
    found = constants(graph(subject, tmp_path))
    assert len(found[kind]) == 14
    assert len(found["f32"]) == 2, "the table and the head"
    node = next(node for node in found[kind] if NAME in node.get_friendly_name())
    codes = stored(layer_of(subject)).codes
    np.testing.assert_array_equal(node.get_data(dtype=np.float32), codes.astype(np.float32))


def test_a_rounded_table_is_stored_once_and_read_as_codes(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    subject.model.lm_head.weight = subject.model.model.embed_tokens.weight
    subject.model.config.tie_word_embeddings = True
    found = constants(graph(RoundToNearest(4, 32, True, embed_bits=8).apply(subject, NO_DATA), tmp_path))
    assert "f32" not in found
    assert len(found["i8"]) == 1


def test_floats_in_16_bits_stay_in_16_bits(tmp_path: Path) -> None:
    found = constants(graph(tiny_subject("llama", "bfloat16"), tmp_path))
    assert {kind: len(nodes) for kind, nodes in found.items()} == {"bf16": 16}


def test_nncf_rounds_to_the_bits_that_are_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="nox -s runtimes -- openvino")
    assert len(constants(graph(tiny_subject("llama"), tmp_path / "8", "int8"))["u8"]) == 16
    found = constants(graph(tiny_subject("llama"), tmp_path / "4", "int4"))
    assert (len(found["u4"]), len(found["u8"])) == (14, 2)


def test_what_it_cannot_hold_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="nox -s runtimes -- openvino")
    pytest.importorskip("nncf")
    cases = {
        "codes": (rtn(4, 32, True), "int8", "holds codes, which NNCF's quantizer would round again"),
        "weights": (tiny_subject("llama"), "int2", "no weights 'int2'; expected one of stored, int8, int4"),
    }
    for name, (subject, weights, message) in cases.items():
        artifact.save(subject, tmp_path / name)
        with pytest.raises(Unsupported, match=message):
            to_openvino(tmp_path / name, tmp_path / "exported", weights)
    assert not (tmp_path / "exported").exists()


def test_codes_that_the_graph_does_not_hold_are_no_silent_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an exporter that changes weights on the way."""
    monkeypatch.setattr("squeeze.artifacts.exports.openvino.put_codes", lambda *_: set())
    with pytest.raises(SqueezeError, match="values are not in the traced graph"):
        graph(rtn(4, 32, True), tmp_path)
    assert not (tmp_path / "exported").exists()
