"""Export artifacts as GGUF, which llama.cpp loads: one file, ``model.gguf``, with the tokenizer in it.

    floats              as they are: F32, BF16 or F16, and vectors in F32
    codes of a grid     bit for bit, in the blocks that ``layers.ggml_blocks`` tells of
    blocks of ggml      bit for bit
    zeros left out      as the floats, or the codes, that they stand among: a GGUF has no place for a mask

Matrices that blocks share are written for each. Each row of queries and keys lies where llama.cpp's rotary embeddings
look for it (``models.gguf_names``), which moves whole rows and no bit of them.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.destination import becoming
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_described
from squeeze.layers.ggml_blocks import blocks_of
from squeeze.layers.ggml_linear import GgmlLinear
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.layers.sparse_packed import SparsePackedLinear
from squeeze.models import architecture, gguf_file
from squeeze.models.gguf_file import Stored
from squeeze.models.own_sizes import check_described
from squeeze.models.subject import Subject

FILE = "model.gguf"


def to_gguf(source: Path, folder: Path) -> None:
    """Write the artifact in ``source`` to ``folder``, for llama.cpp.

    Raises IntegrityError for a source that is no artifact; Unsupported for an architecture or a tokenizer that is not
    written here, for layers that a GGUF has no place for, and for a model with a cache or sizes of its own.
    """
    subject = artifact.load(source, prepare=False)
    _check_plain(subject)
    tensors = gguf_file.tensors(subject.model, _weight)
    with becoming(folder) as part:
        gguf_file.write(subject, tensors, part / FILE)


def _check_plain(subject: Subject) -> None:
    if subject.cache is not None:
        raise Unsupported("its keys and values go through a cache of its own, which llama.cpp lacks; use runtime=eager")
    if (form := architecture.form(subject.model)) is not None:
        raise Unsupported(f"GGUF has no word for its form {form}; use runtime=eager")
    check_described(subject.model)


def _weight(name: str, layer: nn.Module) -> Stored:
    """Return what a GGUF stores of a layer's weight, rows in their order here."""
    match layer:
        case QuantizedLinear(embedding_scale=1.0):
            return blocks_of(name, layer)
        case SparsePackedLinear():
            return blocks_of(name, layer.coded())
        case GgmlLinear(blocks=blocks) if blocks is not None:
            return Stored(layer.kind, blocks)
        case SparseLinear():
            return gguf_file.of_floats(layer.dequantize())
    if is_described(layer) or not architecture.weight(layer).is_floating_point():
        kind = type(layer).__name__
        raise Unsupported(
            f"{name}: GGUF has no place for a {kind}; it has floats, zeros among them, codes of rtn, gptq, awq or hqq,"
            " and the blocks of gguf_quantize"
        )
    return gguf_file.plain_weight(name, layer)
