"""Export artifacts to OpenVINO's IR, ``openvino_model.xml`` and ``.bin``, traced by transformers' own exporter.

The graph reads any number of tokens of any number of rows behind those that it has read: keys and values stay in the
engine (a stateful model, whose variables start empty), and ``beam_idx`` says which row goes on which one. Its inputs
are ``input_ids``, ``beam_idx`` and ``logits_to_keep``, the places of whose tokens it gives logits; an encoder's is
``input_ids``. Weights in 16 bits stay so, and are widened where they are multiplied; codes on a grid are stored as
such (``openvino_codes``).

Rounding on top is NNCF's, without data: ``int8`` of all matrices with zero points, one scale a row; ``int4`` of the
blocks' in groups of GROUP_SIZE with zero points, table and head in int8, as NNCF does where nothing else is asked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from squeeze.artifacts.exports.destination import becoming
from squeeze.artifacts.exports.openvino_codes import put_codes
from squeeze.artifacts.exports.traced import WEIGHTS, Traceable, check_found, check_installed, sample, traceable
from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.models import architecture
from squeeze.models.settings import quiet

FILE = "openvino_model.xml"
GROUP_SIZE = 64  # NNCF's own choice of 128 does not divide a width of 576, SmolLM2-135M's


def to_openvino(source: Path, folder: Path, weights: str = "stored") -> None:
    """Write the artifact in ``source`` to ``folder``, for ``openvino.Core().read_model``.

    weights: "stored", "int8" or "int4". Raises IntegrityError for a source that is no artifact; Unsupported without
    openvino, or nncf where it rounds, for what cannot be traced (``traced.traceable``), and for codes, or groups that
    do not fit, where NNCF rounds.
    """
    if weights not in WEIGHTS:
        raise Unsupported(f"OpenVINO has no weights {weights!r}; expected one of {', '.join(WEIGHTS)}")
    check_installed("openvino", "openvino", *(["nncf"] if weights != "stored" else []))
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    traced = traceable(source)
    _check(traced, weights)
    inputs, lengths = sample(traced.subject.model)
    with becoming(folder) as part, quiet():
        config = OpenVINOConfig(dynamic=True, dynamic_shapes=lengths)
        exported = OpenVINOExporter().export(traced.subject.model, inputs, config)
        component = exported.components["model"]
        check_found(traced.packed, put_codes(component.program, traced.matrices()))
        component.program = _rounded(component.program, weights)
        exported.save_pretrained(part)
        traced.subject.tokenizer.save_pretrained(part)


def _check(traced: Traceable, weights: str) -> None:
    if weights == "stored":
        return
    traced.check_floats("NNCF")
    if weights == "int4":
        linears = architecture.block_linears(traced.subject.model).values()
        affine.check_group_size(GROUP_SIZE, [architecture.weight(layer).shape[1] for layer in linears])


def _rounded(model: Any, weights: str) -> Any:
    if weights == "stored":
        return model
    import nncf

    if weights == "int8":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    mode = nncf.CompressWeightsMode.INT4_ASYM
    return nncf.compress_weights(model, mode=mode, group_size=GROUP_SIZE, ratio=1.0)
