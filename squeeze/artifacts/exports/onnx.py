"""Export artifacts to ONNX, ``model.onnx`` and ``.onnx.data``, traced and fused for ONNX Runtime's CPU provider.

The trace and the fusions are transformers' own (torch.onnx.export with dynamo, then norms, rotary embeddings and
sibling projections in ONNX Runtime's operators). The graph reads any number of tokens of any number of rows behind keys
and values that are given and handed back, ``input.past_key_values...`` and ``output.past_key_values...``, and gives
logits at the places ``logits_to_keep``. All floats are float32, for ONNX Runtime has hardly a kernel of bfloat16 on
CPUs: exact, and twice the bytes of an artifact in 16 bits. Codes on a grid are stored as such (``onnx_codes``).

Rounding on top is ONNX Runtime's: ``int8`` of all matrices, inputs too (``quantize_dynamic``), one scale an output;
``int4`` of all products with constants, the head's among them, in MatMulNBits with zero points, blocks of BLOCK_SIZE.

Where MatMulNBits is, ``model_int8_inputs.onnx`` is the same graph over the same data, whose kernels round inputs.
"""

from __future__ import annotations

import io
import logging
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

from squeeze.artifacts.exports.destination import becoming
from squeeze.artifacts.exports.onnx_codes import DOMAIN, FLOAT_INPUTS, INT8_INPUTS, put_codes
from squeeze.artifacts.exports.traced import WEIGHTS, check_found, check_installed, sample, traceable
from squeeze.core.errors import Unsupported
from squeeze.models.settings import quiet

FILE, INT8_INPUTS_FILE = "model.onnx", "model_int8_inputs.onnx"
BLOCK_SIZE = 32
QUANTIZER = "onnxruntime.quantization.matmul_nbits_quantizer"


def to_onnx(source: Path, folder: Path, weights: str = "stored") -> None:
    """Write the artifact in ``source`` to ``folder``, for ``onnxruntime.InferenceSession``.

    weights: "stored", "int8" or "int4". Raises IntegrityError for a source that is no artifact; Unsupported without
    onnx, onnxscript or onnxruntime, for what cannot be traced (``traced.traceable``), for codes where ONNX Runtime
    rounds, and for codes that its kernels do not read (``onnx_codes.blocks``).
    """
    if weights not in WEIGHTS:
        raise Unsupported(f"ONNX Runtime has no weights {weights!r}; expected one of {', '.join(WEIGHTS)}")
    check_installed("onnx", "onnx", "onnxscript", "onnx_ir", "onnxruntime")
    from transformers.exporters import OnnxConfig, OnnxExporter
    from transformers.exporters.onnxruntime_fusions import fuse_for_onnxruntime

    traced = traceable(source)
    if weights != "stored":
        traced.check_floats("ONNX Runtime")
    model = traced.subject.model.float()
    settings: Any = model.config
    settings.dtype = torch.float32
    inputs, lengths = sample(model)
    with becoming(folder) as part, quiet(), redirect_stdout(io.StringIO()):  # torch's exporter prints each stage
        exported = OnnxExporter().export(model, inputs, OnnxConfig(dynamic=True, dynamic_shapes=lengths))
        component = exported.components["model"]
        check_found(traced.packed, put_codes(component.program, traced.matrices()))
        if weights != "stored":
            _fold_transposes(component.program)
        fuse_for_onnxruntime(component.program, "cpu")
        component.program = _rounded(component.program, weights)
        exported.save_pretrained(part)
        _share_with_int8_inputs(part)
        traced.subject.tokenizer.save_pretrained(part)


def _rounded(program: Any, weights: str) -> Any:
    """Return the graph, ``onnx_ir.Model``, as ONNX Runtime's own tools round it."""
    return {"stored": lambda same: same, "int8": _in_int8, "int4": _in_int4}[weights](program)


def _in_int8(program: Any) -> Any:
    from transformers.exporters import ExportFormat, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    config = OnnxRuntimeDynamicConfig(per_channel=True)
    return OnnxRuntimeQuantizer(config).quantize(program, {}, ExportFormat.ONNX)


def _in_int4(program: Any) -> Any:
    import onnx_ir as ir
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger(QUANTIZER).setLevel(logging.WARNING)  # it tells of every node
    quantizer = MatMulNBitsQuantizer(
        ir.to_proto(program), block_size=BLOCK_SIZE, is_symmetric=False, accuracy_level=FLOAT_INPUTS
    )
    quantizer.process()
    return ir.from_proto(quantizer.model.model)


def _fold_transposes(program: Any) -> None:
    """Give products with the transpose of a constant, such as a tied head's, a constant that lies transposed.

    ONNX Runtime's tools round constants alone, and fusions would hide the transpose in the product.
    """
    import onnx_ir as ir

    graph = program.graph
    for node in list(graph):
        if node.op_type != "Transpose" or node.inputs[0].const_value is None:
            continue
        old, order = node.outputs[0], node.attributes.get_ints("perm", None)
        array = np.ascontiguousarray(np.transpose(node.inputs[0].const_value.numpy(), order))
        new = ir.Value(name=old.name, const_value=ir.tensor(array, name=old.name))
        new.dtype, new.shape = old.dtype, ir.Shape(array.shape)
        ir.convenience.replace_all_uses_with(old, new)
        graph.remove(node, safe=True)
        graph.register_initializer(new)


def _share_with_int8_inputs(folder: Path) -> None:
    """Write the graph once more, over the same data, with kernels that round inputs to int8, where there are any."""
    import onnx

    graph = onnx.load(str(folder / FILE), load_external_data=False)
    found = [node for node in graph.graph.node if (node.domain, node.op_type) == (DOMAIN, "MatMulNBits")]
    for node in found:
        kept = [attribute for attribute in node.attribute if attribute.name != "accuracy_level"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("accuracy_level", INT8_INPUTS)])
    if found:
        onnx.save(graph, str(folder / INT8_INPUTS_FILE))
