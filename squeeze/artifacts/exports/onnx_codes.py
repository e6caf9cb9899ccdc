"""Write codes on a grid into an ONNX graph, as ONNX Runtime's MatMulNBits reads them.

Of the operator (com.microsoft, version 1; docs/ContribOperators.md of ONNX Runtime), y = x W^T with W (N, K):

    B            (N, K / block_size, block_size * bits / 8) uint8: codes of a block, two of 4 bits a byte, the low first
    scales       (N, K / block_size) float32
    zero_points  (N, bytes) uint8, packed likewise along a row; 2^(bits - 1) where there are none
    bits         4 or 8; block_size: a power of two, at least 16
    accuracy_level   1: inputs stay float32; 4: they are rounded to int8 block by block

Codes of fewer bits are stored in 4, between 4 and 8 in 8. Groups that are no power of two become several blocks of one
scale. A table of embeddings that is the head, too, shares its codes: looked up rows are widened by plain operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from squeeze.artifacts.exports import checkpoint
from squeeze.artifacts.exports.traced import Matrix, fingerprint
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.packing import pack, unpack
from squeeze.layers.quantized import QuantizedLinear

Array = np.ndarray[Any, Any]

DOMAIN = "com.microsoft"
FLOAT_INPUTS, INT8_INPUTS = 1, 4  # accuracy levels
SMALLEST_BLOCK, LARGEST_BLOCK = 16, 256  # for which there are kernels on CPUs


@dataclass(frozen=True)
class Blocks:
    """Hold what MatMulNBits reads. codes, scales, zero_points: as the module has them; zero_points may be None."""

    bits: int
    block_size: int
    codes: Array
    scales: Array
    zero_points: Array | None


def blocks(name: str, layer: QuantizedLinear) -> Blocks:
    """Return what MatMulNBits reads of a layer that is not prepared.

    Raises Unsupported for zero points between codes, and for groups that no block divides.
    """
    if layer.real_zeros:
        raise Unsupported(
            f"{name}: its zero points lie between codes, where ONNX Runtime's kernels have none; export rtn or gptq, or"
            " use runtime=openvino"
        )
    size = min(layer.group_size & -layer.group_size, LARGEST_BLOCK)  # the largest power of two that divides it
    if size < SMALLEST_BLOCK:
        raise Unsupported(
            f"{name}: group_size {layer.group_size} has no divisor among {SMALLEST_BLOCK}, 32, ... {LARGEST_BLOCK}, the"
            " blocks of MatMulNBits; use group_size=32 or 64, or runtime=openvino"
        )
    assert layer.codes is not None
    assert layer.scales is not None
    bits, repeats = (4 if layer.bits <= 4 else 8), layer.group_size // size
    codes = pack(unpack(layer.codes, layer.bits, layer.in_features), bits)
    scales = layer.scales.float().repeat_interleave(repeats, dim=1)
    middle = layer.symmetric and layer.bits == bits
    zeros = None if middle else pack(checkpoint.zero_points(layer).repeat_interleave(repeats, dim=1), bits)
    return Blocks(
        bits,
        size,
        codes.reshape(layer.out_features, layer.in_features // size, size * bits // 8).numpy(),
        scales.numpy(),
        None if zeros is None else zeros.numpy(),
    )


def put_codes(model: Any, matrices: Mapping[str, Matrix]) -> set[str]:
    """Put codes in the places of the float weights of a graph, ``onnx_ir.Model``, that have the same values.

    matrices: by ``fingerprint``. Returns the names of the layers that were found. Raises Unsupported as ``blocks``
    does, SqueezeError where a packed matrix is multiplied from another side than a layer's.
    """
    seen: dict[int, Matrix | None] = {}
    made: dict[str, _Values] = {}
    for node in list(model.graph) if matrices else []:
        place = {"MatMul": 1, "Gather": 0}.get(node.op_type)
        if place is None:
            continue
        held, turned = _held(node.inputs[place])
        if held is None:
            continue
        if id(held) not in seen:
            seen[id(held)] = matrices.get(fingerprint(held.const_value.numpy()))
        if (matrix := seen[id(held)]) is None:
            continue
        if (matrix.transposed != turned) != (node.op_type == "MatMul"):
            raise SqueezeError(f"{matrix.name}: {node.op_type} reads its values transposed, which is no linear layer")
        if matrix.name not in made:
            made[matrix.name] = _Values.of(model.graph, matrix)
        put = _multiply if node.op_type == "MatMul" else _look_up
        put(node, made[matrix.name], matrix.layer)
    if made:
        model.graph.opset_imports[DOMAIN] = 1
    return set(made)


@dataclass(frozen=True)
class _Values:
    """Hold the values of a graph, ``onnx_ir.Value``, that stand for blocks."""

    blocks: Blocks
    codes: Any
    scales: Any
    zero_points: Any

    @classmethod
    def of(cls, graph: Any, matrix: Matrix) -> _Values:
        """Add them to a graph."""
        found = blocks(matrix.name, matrix.layer)
        parts = {"codes": found.codes, "scales": found.scales, "zero_points": found.zero_points}
        values = {part: _initializer(graph, f"{matrix.name}.{part}", array) for part, array in parts.items()}
        return cls(found, **values)


def _multiply(node: Any, values: _Values, layer: QuantizedLinear) -> None:
    """Put MatMulNBits in the place of a MatMul."""
    import onnx_ir as ir

    attributes = {
        "K": layer.in_features,
        "N": layer.out_features,
        "bits": values.blocks.bits,
        "block_size": values.blocks.block_size,
        "accuracy_level": FLOAT_INPUTS,
    }
    given = [node.inputs[0], values.codes, values.scales]
    given += [] if values.zero_points is None else [values.zero_points]
    _replace(node, [ir.node("MatMulNBits", given, attributes=attributes, domain=DOMAIN)])


def _look_up(node: Any, values: _Values, layer: QuantizedLinear) -> None:
    """Put what looks rows of codes up, and widens them, in the place of a Gather of whole rows.

    Raises Unsupported for zero points of their own, which tables do not have.
    """
    import onnx_ir as ir

    if values.zero_points is not None:
        raise Unsupported("a table of embeddings has zero points of its own; use embed_bits=4 or 8, which has none")
    graph, bits, numbers = node.graph, values.blocks.bits, node.inputs[1]
    nodes: list[Any] = []

    def step(kind: str, *given: Any, **attributes: Any) -> Any:
        nodes.append(ir.node(kind, list(given), attributes=attributes))
        return nodes[-1].outputs[0]

    def constant(name: str, value: Any, kind: type) -> Any:
        return _initializer(graph, f"{values.codes.name}.{name}", np.array(value, dtype=kind))

    rows = step("Gather", values.codes, numbers, axis=0)
    if bits == 4:  # the low half of a byte comes first
        last = constant("last", [-1], np.int64)
        low = step("BitwiseAnd", rows, constant("low", 15, np.uint8))
        high = step("BitShift", rows, constant("high", 4, np.uint8), direction="RIGHT")
        pair = step("Concat", step("Unsqueeze", low, last), step("Unsqueeze", high, last), axis=-1)
        blocked = np.array([0, 0, -1, values.blocks.block_size])  # 0: as it was
        rows = step("Reshape", pair, constant("blocked", blocked, np.int64))
    steps = step("Sub", step("Cast", rows, to=ir.DataType.FLOAT.value), constant("zero", 2 ** (bits - 1), np.float32))
    scales = step("Unsqueeze", step("Gather", values.scales, numbers, axis=0), constant("axis", [-1], np.int64))
    whole = constant("whole", [0, 0, layer.in_features], np.int64)
    step("Reshape", step("Mul", steps, scales), whole)
    _replace(node, nodes)


def _held(value: Any) -> tuple[Any, bool]:
    """Return the constant matrix of float32 that a value is, or whose transpose it is, and whether it is turned."""
    import onnx_ir as ir

    turned = False
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Transpose":
        value, turned = producer.inputs[0], True
    tensor = None if value is None else value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
        return None, turned
    return value, turned


def _initializer(graph: Any, name: str, array: Array | None) -> Any:
    import onnx_ir as ir

    if array is None:
        return None
    if name in graph.initializers:
        return graph.initializers[name]
    value = ir.Value(name=name, const_value=ir.tensor(np.ascontiguousarray(array), name=name))
    value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _replace(node: Any, nodes: list[Any]) -> None:
    """Put nodes, the last of which gives what a node gave, in its place."""
    import onnx_ir as ir

    old, new = node.outputs[0], nodes[-1].outputs[0]
    new.shape, new.dtype = old.shape, old.dtype
    node.graph.insert_before(node, nodes)
    name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)
    new.name = name
