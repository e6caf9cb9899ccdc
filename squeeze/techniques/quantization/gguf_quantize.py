"""Quantize by llama.cpp's own quantizer: its blocks, in its mixtures of types, as a user of its files has them.

K-quants and IQ types are its own; there is no paper. A file type such as Q4_K_M names a mixture, in which some kinds of
layers have more bits; embedding and head are quantized, too. Blocks of those types hold 256 neighbours of a row: of a
layer whose width 256 does not divide, blocks of 32 take their place (Q4_K: Q5_0, Q6_K: Q8_0, Q2_K and Q3_K: Q4_0, IQ
types: IQ4_NL). In SmolLM2-135M, 576 wide, that is every layer but ``down_proj``.

The importance matrix is the mean square of each input channel over the calibration text. What llama.cpp's own tool
sums up while it reads a text is the same; here it comes from the statistics that all calibrated techniques share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears, is_described, shared_layers
from squeeze.layers.ggml_blocks import KINDS
from squeeze.layers.ggml_linear import GgmlLinear
from squeeze.models import architecture, gguf_file
from squeeze.models.gguf_names import EMBEDDING, is_tied, parts
from squeeze.models.llama_library import library
from squeeze.models.own_sizes import check_described
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration, InputStatistics
from squeeze.techniques.quantization.llama_quantizer import Importance, quantize

FLOATS = frozenset(gguf_file.FLOATS.values())
# Types that llama.cpp makes with an importance matrix alone.
NEED_IMATRIX = frozenset({"Q2_K_S", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS"})
# Of a channel's importance, which share of the mean it has at least: a block of channels that were always zero has one.
LEAST = 1e-6


@dataclass(frozen=True)
class GGUFQuantize:
    """Quantize all matrices of a model, embedding and head among them, to a file type of llama.cpp's.

    gguf_type: as llama.cpp calls it, such as Q4_K_M. imatrix: whether errors are weighed by the inputs' mean squares.

    Claims: ``bits``, of a code within the blocks on average; ``low_bits``, the fewest; ``group_size``, the fewest
    neighbours of any layer that have a scale, or an entry of a codebook, of their own.
    """

    gguf_type: Literal[
        "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
        "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S",
        "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
    ]  # fmt: skip
    imatrix: bool = True

    environment: ClassVar[str] = "llama_cpp"  # its build runs there

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """Return the compressed subject.

        Raises Unsupported where llama.cpp's library is missing, for a type that it has not, or makes with an importance
        matrix alone, for models that are not written as GGUF, and for layers that are not plain.
        """
        file_type = _file_type(self.gguf_type)
        if self.gguf_type in NEED_IMATRIX and not self.imatrix:
            raise Unsupported(f"llama.cpp makes {self.gguf_type} with an importance matrix alone; use imatrix=true")
        library()
        model = subject.model
        _check_plain(model)
        with TemporaryDirectory() as folder:
            floats, quantized = Path(folder) / "floats.gguf", Path(folder) / "quantized.gguf"
            gguf_file.write(subject, gguf_file.tensors(model), floats)
            importance = importance_of(model, calibration) if self.imatrix else {}
            quantize(floats, quantized, file_type, importance, torch.get_num_threads())
            claims = put_blocks(model, quantized)
        return subject.without("sparsity").claiming(**claims)  # types with a minimum have no code at zero


def importance_of(model: nn.Module, calibration: Calibration) -> Importance:
    """Return the mean square of each input channel, (in_features,) float32, by the GGUF's name of a layer's weight."""
    names = {part.module: part.name for part in parts(model)}
    return {
        f"{names[f'{block_name}.{name}']}.weight": _mean_squares(statistics).cpu().numpy()
        for block_name, _, inputs in calibration.input_statistics(model)
        for name, statistics in inputs.items()
    }


def put_blocks(model: nn.Module, file: Path) -> dict[str, Any]:
    """Put the blocks of a quantized GGUF of this model in the place of its matrices; return what can be claimed then.

    A matrix that the file has as floats stays as it is. Where embedding and head are tied, one layer takes both places
    and the model is no longer tied by its configuration.
    Raises Unsupported where no matrix of the blocks is quantized.
    """
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    names = {module: name for name, module in model.named_modules()}
    head = names[architecture.head(model)]
    tied = is_tied(model)
    of_blocks: list[tuple[str, int]] = []
    claims: dict[str, Any] = {}
    for part in list(parts(model)):
        tensor = stored[f"{part.name}.weight"]
        kind = tensor.tensor_type.name
        if kind in FLOATS:
            continue
        layer: Any = model.get_submodule(part.module)
        blocks = torch.from_numpy(np.array(tensor.data)).to(layer.weight.device)
        if part.rows is not None:
            ordered = blocks
            blocks = torch.empty_like(ordered)
            blocks[part.rows] = ordered
        made = GgmlLinear.of(kind, blocks, layer.weight.shape[1], architecture.bias(layer), layer.weight.dtype)
        architecture.replace(model, part.module, made)
        if part.name == EMBEDDING:
            claims["embed_bits"] = KINDS[kind].bits
            if tied:
                architecture.replace(model, head, made)
                model.config.tie_word_embeddings = False  # type: ignore[union-attr]
        elif part.module != head:
            of_blocks.append((kind, made.in_features * made.out_features))
    if not of_blocks:
        raise Unsupported("no layer of the blocks has rows of whole blocks of 32 weights, as all types of ggml want")
    return claims | _claims(of_blocks)


def _claims(of_blocks: Iterable[tuple[str, int]]) -> dict[str, Any]:
    """Return what can be claimed of matrices of these kinds and sizes."""
    sized = [(KINDS[kind], size) for kind, size in of_blocks]
    average = sum(kind.bits * size for kind, size in sized) / sum(size for _, size in sized)
    return {
        "bits": round(average, 3),
        "low_bits": min(kind.bits for kind, _ in sized),
        "group_size": min(kind.shared for kind, _ in sized),
        "symmetric": all(kind.symmetric for kind, _ in sized),
    }


def _file_type(name: str) -> int:
    import gguf

    found = gguf.LlamaFileType.__members__.get(f"MOSTLY_{name}")
    if found is None:
        raise Unsupported(f"llama.cpp has no type {name!r}; expected one such as Q4_K_M, Q8_0 or IQ3_S")
    return int(found)


def _check_plain(model: nn.Module) -> None:
    """Make the layers of the blocks dense. Raises Unsupported where a layer is another than a plain one even so."""
    check_described(model)
    if architecture.form(model) is not None:
        raise Unsupported("gguf_quantize writes the model anew, whose hidden states are sliced; use technique=rtn")
    found = list(parts(model))
    if shared := shared_layers(model):
        raise Unsupported(f"{min(shared)} is shared with another block, which gets a type of its own; put sharing last")
    float_linears(model)
    for part in found:
        if is_described(layer := model.get_submodule(part.module)):
            raise Unsupported(
                f"{part.module} is a {type(layer).__name__}, and llama.cpp quantizes plain floats; put this step first"
            )


def _mean_squares(statistics: InputStatistics) -> Tensor:
    squares = statistics.hessian.diagonal()
    return squares.clamp(min=LEAST * float(squares.mean())) if squares.any() else torch.ones_like(squares)
