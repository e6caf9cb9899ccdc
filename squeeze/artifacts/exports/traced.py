"""Make an artifact's model ready for exporters that trace its forward: plain layers where packed ones stood.

A tracer records floats. So each packed layer gives its place to the plain layer of the values that it multiplies with,
and where these are codes on a grid, the exporter puts the codes back into the traced graph. It finds a matrix there by
its values, for tracers rename and transpose: ``Matrix`` is known by ``fingerprint``.

Layers that round what they multiply with (int8 activations) compute another function than their matrix says: refused.
Layers that store their values in another way than on a grid (zeros left out, codebooks) are exported as floats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache

from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.layers.contract import CompressedLayer, compressed_layers, is_compressed, linear
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.sparse_packed import SparsePackedLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject

WEIGHTS = ("stored", "int8", "int4")  # what an engine runs: as the artifact has them, or rounded by its own quantizer

# Of the text that a model is traced with: all unlike, so that no dimension is taken for another, and none is 1, which a
# tracer would take for fixed.
ROWS, READ, TOKENS, KEPT = 2, 11, 7, 5


@dataclass(frozen=True)
class Matrix:
    """Tell which layer's weights a traced graph holds.

    name: the layer's first full name. transposed: whether the graph holds them as (in_features, out_features).
    """

    name: str
    layer: QuantizedLinear
    transposed: bool


@dataclass(frozen=True)
class Traceable:
    """Hold a subject whose layers are plain.

    packed: those that were codes on a grid, by first full name, as stored. weights: the values in their places.
    """

    subject: Subject
    packed: Mapping[str, QuantizedLinear]
    weights: Mapping[str, nn.Parameter]

    def matrices(self) -> dict[str, Matrix]:
        """Map the fingerprints of the packed layers' values, and of their transposes, to the layers."""
        found: dict[str, Matrix] = {}
        for name, layer in self.packed.items():
            values = self.weights[name].detach().float().numpy()
            for array, transposed in ((values.T, True), (values, False)):
                found[fingerprint(array)] = Matrix(name, layer, transposed)
        return found

    def check_floats(self, engine: str) -> None:
        """Raise Unsupported where layers hold codes, which an engine's quantizer would round once more."""
        if self.packed:
            raise Unsupported(
                f"{next(iter(self.packed))} holds codes, which {engine}'s quantizer would round again; weights=stored"
                " runs them as they are, weights=int8 and int4 take technique=none or another that leaves floats"
            )


def traceable(source: Path) -> Traceable:
    """Load an artifact and make its layers plain; bias, dtype and what layers share stay.

    Raises IntegrityError for a folder that is no artifact; Unsupported for a model that reads pictures, for one with a
    cache of its own or a library's layers, for layers that round what they multiply with, and for a table whose rows
    are scaled as they are looked up.
    """
    subject = artifact.load(source, prepare=False)
    if architecture.reads_pictures(subject.model):
        raise Unsupported(
            "it reads pictures, of which a graph that is traced with text knows nothing; use runtime=eager"
        )
    if subject.cache is not None:
        raise Unsupported("its keys and values go through a cache of its own, which no engine has; use runtime=eager")
    if (loader := subject.claims["loader"]) != "squeeze":
        raise Unsupported(
            f"its layers are those of a library ({loader} loads them), not to be traced; export rtn or awq"
        )
    packed: dict[str, QuantizedLinear] = {}
    weights: dict[str, nn.Parameter] = {}
    for name, layer in list(subject.model.named_modules()):
        if list(layer.children()) or not is_compressed(layer):  # an adapter is traced as it is, around a plain base
            continue
        _check(name, layer)
        weight = nn.Parameter(layer.dequantize(), requires_grad=False)
        _replace(subject.model, layer, weight)
        if isinstance(layer, QuantizedLinear | SparsePackedLinear):
            packed[name] = layer.coded() if isinstance(layer, SparsePackedLinear) else layer
            weights[name] = weight
    for adapter in compressed_layers(subject.model):
        adapter.prepare()
    return Traceable(subject, packed, weights)


def sample(model: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the inputs to trace a model with, and which of their dimensions may have any length (torch.export's).

    A causal model reads TOKENS tokens of each row behind READ that its cache holds, and gives logits at the places
    ``logits_to_keep``, (n,) int64: so one graph reads prompts, decodes, and scores text.
    """
    any_length = torch.export.Dim.AUTO
    vocabulary: int = model.config.vocab_size  # type: ignore[union-attr,assignment]
    token_ids = torch.arange(ROWS * TOKENS).reshape(ROWS, TOKENS) % vocabulary
    inputs: dict[str, Any] = {"input_ids": token_ids}
    lengths: dict[str, Any] = {"input_ids": {0: any_length, 1: any_length}}
    if not is_causal(model):
        return inputs, lengths
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        before = torch.arange(ROWS * READ).reshape(ROWS, READ) % vocabulary
        model(input_ids=before, past_key_values=cache, use_cache=True)
    inputs |= {"past_key_values": cache, "logits_to_keep": torch.arange(KEPT), "use_cache": True}
    lengths |= {"past_key_values": [{0: any_length, 2: any_length}] * (2 * len(cache.layers))}
    return inputs, {**lengths, "logits_to_keep": {0: any_length}}


def is_causal(model: nn.Module) -> bool:
    """Tell whether a model predicts tokens one after the other; else it is an encoder, or a classifier."""
    if architecture.is_classifier(model):
        return False
    return model.get_output_embeddings() is not None  # type: ignore[operator]


def fingerprint(values: np.ndarray[Any, Any]) -> str:
    """Return the sha256 over shape and float32 values of an array."""
    array = np.ascontiguousarray(values, dtype=np.float32)
    return hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()


def check_installed(environment: str, *libraries: str) -> None:
    """Raise Unsupported, with the command to run, where libraries of an engine's environment are not here."""
    if missing := [library for library in libraries if find_spec(library) is None]:
        raise Unsupported(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed here; "
            f"`nox -s runtimes -- {environment}` makes the environment of runtime={environment}, which has all of it"
        )


def check_found(packed: Mapping[str, QuantizedLinear], found: set[str]) -> None:
    """Raise SqueezeError where a traced graph does not hold the values of all packed layers: it would run floats."""
    if missing := sorted(packed.keys() - found):
        raise SqueezeError(
            f"{missing[0]}: its values are not in the traced graph, nor are those of {len(missing) - 1} more of "
            f"{len(packed)} packed layers; the exporter changed them, which is a fault of squeeze's: please report it"
        )


def _check(name: str, layer: CompressedLayer) -> None:
    """Check a layer that is stored, not prepared: of those, only layers that multiply integers are ``compute_real``."""
    kind = type(layer).__name__
    if layer.compute_real:
        raise Unsupported(
            f"{name}: a {kind} rounds what it multiplies with, which a traced graph would not; export rtn, gptq or awq,"
            " or take the engine's own weights=int8 of technique=none"
        )
    if (scale := getattr(layer, "embedding_scale", 1.0)) != 1:
        raise Unsupported(f"{name}: its rows are multiplied by {scale:g} as they are looked up; use embed_bits=null")


def _replace(model: nn.Module, layer: Any, weight: nn.Parameter) -> None:
    """Put plain layers of one weight, (out_features, in_features), wherever a packed layer stands.

    It is the very tensor in all places: a table of embeddings that is the head, too, stays tied to it.
    """
    dense = linear(weight.data, layer.bias)
    dense.weight = weight
    tables = _tables(model) if model.get_input_embeddings() is layer else frozenset()  # type: ignore[operator]
    for place, module in list(model.named_modules(remove_duplicate=False)):
        if module is layer:
            architecture.put(model, place, _embedding(weight) if place in tables else dense)


def _tables(model: Any) -> frozenset[str]:
    """Return the full names of the places where a model that its configuration describes has embeddings."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    modules = plain.named_modules(remove_duplicate=False)
    return frozenset(name for name, module in modules if isinstance(module, nn.Embedding))


def _embedding(weight: nn.Parameter) -> nn.Embedding:
    rows, columns = weight.shape
    with torch.device("meta"):  # the weight takes the place of the constructor's
        embedding = nn.Embedding(rows, columns)
    embedding.weight = weight
    return embedding
