"""Write codes on a grid into an OpenVINO graph, as its CPU plugin reads compressed weights.

    Constant u4, i4, u8 or i8, (out_features, groups, group_size)
      Convert to f32, Subtract the zero points (Convert of a constant), Multiply by the scales (f32)
      Reshape to (out_features, in_features); with one group a row, all of it is of two dimensions from the start

Codes are stored in 4 bits where they have at most 4, else in 8: signed and without zero points on a symmetric grid,
unsigned beside zero points on others, real zero points as floats. Scales are stored in float32: of those in bfloat16
that is exact, where float16, the custom here, would not be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeeze.artifacts.exports import checkpoint
from squeeze.artifacts.exports.traced import Matrix, fingerprint
from squeeze.layers.packing import unpack
from squeeze.layers.quantized import QuantizedLinear

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stored:
    """Hold what a graph stores of a layer.

    type: of the codes, as OpenVINO names it. codes: (out_features, groups, group_size), or (out_features, in_features)
    with one group a row. scales: as many dimensions, the last of length 1, float32. zeros: likewise, of the codes' type
    or float32; None on a symmetric grid, whose codes are signed.
    """

    type: str
    codes: Array
    scales: Array
    zeros: Array | None


def stored(layer: QuantizedLinear) -> Stored:
    """Return what a graph stores of a layer that is not prepared."""
    assert layer.codes is not None
    assert layer.scales is not None
    rows, groups = layer.scales.shape
    width = 4 if layer.bits <= 4 else 8
    shape = (rows, groups, -1) if groups > 1 else (rows, layer.in_features)
    last = (*shape[:-1], 1)
    codes = unpack(layer.codes, layer.bits, layer.in_features).numpy().reshape(shape)
    scales = layer.scales.float().numpy().reshape(last)
    if layer.symmetric:
        signed = (codes.astype(np.int16) - 2 ** (layer.bits - 1)).astype(np.int8)
        return Stored(f"i{width}", signed, scales, None)
    if layer.real_zeros:
        assert layer.zeros is not None
        return Stored(f"u{width}", codes, scales, layer.zeros.float().numpy().reshape(last))
    return Stored(f"u{width}", codes, scales, checkpoint.zero_points(layer).numpy().reshape(last))


def put_codes(model: Any, matrices: Mapping[str, Matrix]) -> set[str]:
    """Put codes in the places of the float constants of a graph, ``openvino.Model``, that have the same values.

    matrices: by ``fingerprint``. Returns the names of the layers that were found.
    """
    found: set[str] = set()
    if not matrices:
        return found
    for node in model.get_ordered_ops():
        if not _may_be_weights(node):
            continue
        matrix = matrices.get(fingerprint(node.get_data(dtype=np.float32)))
        if matrix is None:
            continue
        constants = _constants(matrix)
        for reader in list(_readers(node)):
            reader.replace_source_output(_values(constants, matrix).output(0))
        found.add(matrix.name)
    model.validate_nodes_and_infer_types()
    return found


def _may_be_weights(node: Any) -> bool:
    from openvino import Type

    if node.get_type_name() != "Constant" or len(node.get_output_shape(0)) != 2:
        return False
    return node.get_element_type() in (Type.f32, Type.bf16, Type.f16)


def _readers(constant: Any) -> Iterator[Any]:
    """Yield the inputs that read a constant in f32: what reads its widening, where it has 16 bits."""
    for reader in constant.output(0).get_target_inputs():
        node = reader.get_node()
        if node.get_type_name() == "Convert":
            yield from node.output(0).get_target_inputs()
        else:
            yield reader


def _constants(matrix: Matrix) -> tuple[Any, Any, Any]:
    """Return the constants of codes, scales and zero points, the last of which may be None."""
    import openvino
    from openvino import opset14 as ops

    parts = stored(matrix.layer)
    kind = getattr(openvino.Type, parts.type)
    codes = ops.constant(parts.codes, dtype=kind, name=f"{matrix.name}.codes")
    scales = ops.constant(parts.scales, name=f"{matrix.name}.scales")
    if parts.zeros is None:
        return codes, scales, None
    if matrix.layer.real_zeros:
        return codes, scales, ops.constant(parts.zeros, name=f"{matrix.name}.zeros")
    return codes, scales, ops.constant(parts.zeros, dtype=kind, name=f"{matrix.name}.zeros")


def _values(constants: tuple[Any, Any, Any], matrix: Matrix) -> Any:
    """Return the node that gives a matrix's values, (out_features, in_features), or transposed, in f32."""
    from openvino import opset14 as ops

    codes, scales, zeros = constants
    values = ops.convert(codes, "f32")
    if zeros is not None:
        values = ops.subtract(values, zeros if matrix.layer.real_zeros else ops.convert(zeros, "f32"))
    values = ops.multiply(values, scales)
    shape = (matrix.layer.out_features, matrix.layer.in_features)
    if matrix.layer.group_size < matrix.layer.in_features:
        values = ops.reshape(values, ops.constant(np.array(shape, dtype=np.int64)), special_zero=False)
    if matrix.transposed:
        values = ops.transpose(values, ops.constant(np.array([1, 0], dtype=np.int64)))
    return values
