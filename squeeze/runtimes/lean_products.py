"""Multiply by the linear layers of a model without going through their modules, several at once where that can be.

Layers that read the same inputs (queries, keys and values; an MLP's gate and its way up) make one product where their
weights are plain, or lie in layouts of one kernel. Their weights then lie one below the other in one tensor, of which
each layer holds a view: the model still runs, shows what it holds, and holds it once. All other layers are called as
they are, one after the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.layers.joined import Part, joined
from squeeze.layers.kernels import MOST_ROWS, Layout, product_by_parts
from squeeze.layers.quantized import QuantizedLinear
from squeeze.layers.sparse_packed import SparsePackedLinear
from squeeze.models.architecture import shape

Product = Callable[[Tensor], Tensor]  # (rows, in_features) -> (rows, out_features), which nothing else holds
Layers = tuple[Any, ...]  # modules that read the same inputs


@dataclass(frozen=True, slots=True)
class Packed:
    """Multiply by weights in a kernel's layout, as ``QuantizedLinear`` does: few rows in it, many as floats."""

    layout: Layout
    out_features: int
    bias: Tensor | None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the inputs times W^T, and the bias: (rows, in_features) -> (rows, out_features)."""
        if len(inputs) > MOST_ROWS:
            return product_by_parts(inputs, self.layout.dequantize, self.out_features, self.bias)
        outputs = self.layout.multiply(inputs)
        return outputs if self.bias is None else outputs + self.bias


@dataclass(frozen=True, slots=True)
class Apart:
    """Multiply by several layers on their own, and put what they give side by side."""

    products: tuple[Product, ...]

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return all outputs in order: (rows, in_features) -> (rows, their out_features together)."""
        return torch.cat([product(inputs) for product in self.products], dim=-1)


def products(sets: Sequence[Layers]) -> list[Product]:
    """Return one product for each set of layers that read the same inputs; its outputs lie side by side, in order.

    Layers of a set are joined, in place, unless one of them stands in another set, too: it can lie in one place only.
    Equal sets, as of blocks that share their layers, have the same product.
    """
    different = dict.fromkeys(sets)
    places = Counter(layer for layers in different for layer in layers)
    made = {
        layers: together(layers) if all(places[layer] == 1 for layer in layers) else Apart(tuple(map(alone, layers)))
        for layers in different
    }
    return [made[layers] for layers in sets]


def together(layers: Layers) -> Product:
    """Return one product of layers that read the same inputs, joined in place where one kernel takes them all."""
    if len(layers) == 1:
        return alone(layers[0])
    if all(map(_is_plain, layers)):
        joint = _dense(layers)
    else:
        running = tuple(map(_running, layers))
        joint = (
            _packed(layers, running) if all(each is not None and each.layout is not None for each in running) else None
        )
    return joint or Apart(tuple(map(alone, layers)))


def alone(layer: Any) -> Product:
    """Return the product of one layer: of a plain or a packed one without its module, of any other the module."""
    if _is_plain(layer):
        return partial(F.linear, weight=layer.weight, bias=layer.bias)
    running = _running(layer)
    if running is not None and running.layout is not None:
        return Packed(running.layout, running.out_features, running.bias)
    product: Product = layer
    return product


def _dense(layers: Layers) -> Product | None:
    """Join plain layers; None where they differ in dtype or device, or some have a bias."""
    kinds = {(layer.weight.dtype, layer.weight.device, layer.bias is None) for layer in layers}
    if len(kinds) > 1:
        return None
    weight = torch.cat([layer.weight.data for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.data for layer in layers])
    for layer, (start, stop) in zip(layers, _ranges(layers), strict=True):
        layer.weight = nn.Parameter(weight[start:stop], requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias[start:stop], requires_grad=False)
    return partial(F.linear, weight=weight, bias=bias)


def _packed(layers: Layers, running: Layers) -> Product | None:
    """Join layers whose weights lie in layouts; None where no kernel takes them together, or some have a bias.

    running: the packed layers that they are, or run as.
    """
    if len({layer.bias is None for layer in layers}) > 1:
        return None
    whole = joined([each.layout for each in running])
    if whole is None:
        return None
    ranges = _ranges(layers)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    for layer, inner, (start, stop) in zip(layers, running, ranges, strict=True):
        inner.layout = Part(whole, start, stop)
        if bias is not None:
            layer.bias = inner.bias = bias[start:stop]
    return Packed(whole, ranges[-1][1], bias)


def _ranges(layers: Layers) -> list[tuple[int, int]]:
    """Return where each layer's outputs lie among those of all."""
    return list(pairwise(accumulate((shape(layer)[0] for layer in layers), initial=0)))


def _is_plain(layer: Any) -> bool:
    """Tell whether a layer is torch's own, its weight a plain tensor of floats."""
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter:
        return False
    weight = layer.weight.data
    return type(weight) is Tensor and weight.layout == torch.strided and weight.is_floating_point()


def _running(layer: Any) -> QuantizedLinear | None:
    """Return the packed layer that a layer is, or runs as."""
    inner = layer.running[0] if isinstance(layer, SparsePackedLinear) and layer.running else layer
    return inner if isinstance(inner, QuantizedLinear) else None
