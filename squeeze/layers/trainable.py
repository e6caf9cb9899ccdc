"""Stand in for layers while they are trained, so that what was compressed stays so: zeros, sharing, factors, codes.

``full`` trains what a layer stores, ``low_rank`` a low-rank change of it. Both multiply, while they train, with what
the finished layer will have, in the model's dtype, and train in float32 (see ``master_weights``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.codebook import CodebookLinear
from squeeze.layers.contract import count_parameters, is_compressed, linear, matrices
from squeeze.layers.lora import LoraLinear, bias_of, features, matrix_of, starting_pair
from squeeze.layers.master_weights import Held, MasterLinear
from squeeze.layers.sparse import SparseLinear
from squeeze.models import architecture


@dataclass(frozen=True)
class Trainable:
    """Hold what stands in for a layer. finish: returns the layer that takes its place when it has been trained.

    parameters: what is trained. count: of how many numbers; of a pruned layer, of those that are not zero.
    """

    module: nn.Module
    parameters: Sequence[nn.Parameter]
    count: int
    finish: Callable[[], nn.Module]


def check(name: str, layer: nn.Module, *, weights: bool) -> None:
    """Refuse a layer that cannot be trained: its own ``weights``, or a low-rank change of them.

    Raises Unsupported with what would work.
    """
    kind = type(layer).__name__
    if isinstance(layer, LoraLinear):
        raise Unsupported(f"{name} has an adapter already; expected a layer without one")
    if is_packed(layer) and weights and not isinstance(layer, CodebookLinear):
        raise Unsupported(f"{name} is a {kind}, whose codes cannot be trained; how: lora keeps a change beside them")
    if is_packed(layer) and not is_compressed(layer) and kind != "Linear4bit":
        raise Unsupported(f"{name} is a {kind}, through which no gradients pass; bitsandbytes nf4 lets them pass")


def full(layer: nn.Module, dtype: torch.dtype) -> Trainable:
    """Return what trains all floats that a layer stores, codebooks among them; its bias stays. dtype: of the model."""
    if isinstance(layer, CodebookLinear):
        shared = MasterValues(layer)
        return Trainable(shared, [shared.values], shared.values.numel(), shared.finish)
    in_parts = is_compressed(layer) and not isinstance(layer, SparseLinear)
    if in_parts:
        parts = MasterTensors(layer)
        return Trainable(parts, list(parts.masters), sum(part.numel() for part in parts.masters), parts.finish)
    view = _view(layer, dtype)
    master = MasterLinear(linear(matrix_of(layer, dtype), bias_of(layer)), view)
    count = int(view.kept.sum()) if isinstance(view, Masked) else master.weight.numel()
    return Trainable(master, [master.weight], count, lambda: _with_weight(layer, master.view(master.weight).detach()))


def low_rank(layer: nn.Module, rank: int, alpha: float, dtype: torch.dtype, generator: torch.Generator) -> Trainable:
    """Return what trains a change s B A of a layer: merged into one of floats at the end, kept beside a packed one.

    Of a pruned layer it changes what is not zero. dtype: of the model. generator: of the CPU, for A.
    """
    count = rank * sum(features(layer))
    if is_packed(layer):
        ours = is_compressed(layer)
        beside = LoraLinear.starting(layer, rank, alpha, dtype, generator)
        beside.base = Widened(layer) if ours else layer
        return Trainable(beside, [beside.lora_A, beside.lora_B], count, lambda: _kept_beside(beside, layer))
    merged = Merged(layer, _view(layer, dtype), starting_pair(features(layer), rank, generator), alpha / rank)
    return Trainable(merged, [merged.lora_A, merged.lora_B], count, lambda: _with_weight(layer, merged.weight()))


def stand_in(model: nn.Module, make: Callable[[nn.Module], Trainable]) -> dict[str, Trainable]:
    """Put what is trained in the places of all linear layers within the blocks; return it by full name.

    A layer that stands in several places is trained as one, and so is a weight that several layers share.
    """
    of_layer: dict[nn.Module, Trainable] = {}
    first: dict[Any, Trainable] = {}
    found = list(matrices(model))
    for name, layer in found:
        if layer not in of_layer:
            key: Any = layer if is_compressed(layer) else architecture.weight(layer).data_ptr()
            made = make(layer)
            of_layer[layer] = _as_one(made, first[key], layer) if key in first else made
            first.setdefault(key, made)
        architecture.replace(model, name, of_layer[layer].module)
    return {name: of_layer[layer] for name, layer in found}


def finish(model: nn.Module, trained: Mapping[str, Trainable]) -> None:
    """Put the finished layers in the places of what stood in for them; what stands in several is finished once."""
    finished: dict[nn.Module, nn.Module] = {}
    for name, each in trained.items():
        if each.module not in finished:
            finished[each.module] = each.finish()
        architecture.replace(model, name, finished[each.module])


@contextmanager
def gradients_pass(model: nn.Module) -> Iterator[None]:
    """Keep a library's packed layers in the layout that gradients pass through, within the body.

    On processors with bfloat16 instructions bitsandbytes packs the codes anew when a layer in evaluation mode first
    runs, and forgets the graph from then on. In training mode it does not; what was packed so, saving unpacks, but for
    scales of one level, which it leaves as they lie then: (columns / block, rows).
    """
    layers = [layer for layer in architecture.linears(model).values() if is_packed(layer)]
    for layer in layers:
        state: Any = getattr(layer.weight, "quant_state", None)
        packed_anew = getattr(state, "packing_format_for_cpu", False)
        layer.state_dict()
        if packed_anew and not state.nested:
            state.absmax = state.absmax.T.reshape(-1).float()
        layer.train()
    yield
    for layer in layers:
        layer.eval()


def numbers(model: nn.Module) -> int:
    """Count the numbers of a model as peft does: tied ones once, of a packed layer as many as its matrix has."""
    packed = {layer for _, layer in matrices(model) if is_packed(layer) and not is_compressed(layer)}
    more = sum(math.prod(features(layer)) - architecture.weight(layer).numel() for layer in packed)
    return count_parameters(model) + more


def is_packed(layer: nn.Module) -> bool:
    """Tell whether a layer holds codes: something else than floats, were it with their zeros left out."""
    if isinstance(layer, SparseLinear):
        return False
    ours = is_compressed(layer)
    stored = layer.state_dict().values() if ours else [architecture.weight(layer)]
    return not all(tensor.is_floating_point() for tensor in stored)


class Masked(nn.Module):
    """Hold a master in ``dtype`` where ``kept`` is true, (out_features, in_features), and zero elsewhere.

    So zeros stay zeros, in whatever pattern they lie, and no gradient reaches what would fill them.
    """

    def __init__(self, kept: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.kept, self.dtype = kept, dtype

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the master with its zeros: (out_features, in_features) float32 -> ``dtype``."""
        return (weight * self.kept).to(self.dtype)


class Merged(nn.Module):
    """Multiply as y = x view(W + s B A)^T + b. W: the layer's, as it is. pair: A and B, float32, trained."""

    def __init__(
        self, layer: nn.Module, view: nn.Module, pair: tuple[torch.Tensor, torch.Tensor], scaling: float
    ) -> None:
        super().__init__()
        self.fixed = matrix_of(layer, torch.float32)
        self.bias, self.view, self.scaling = bias_of(layer), view, scaling
        self.lora_A, self.lora_B = (nn.Parameter(tensor.to(self.fixed.device)) for tensor in pair)

    def sum(self) -> torch.Tensor:
        """Return view(W + s B A), (out_features, in_features)."""
        total: torch.Tensor = self.view(self.fixed.float() + self.scaling * (self.lora_B @ self.lora_A))
        return total

    @torch.no_grad()
    def weight(self) -> torch.Tensor:
        """Return the same as a tensor of its own."""
        return self.sum()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        return F.linear(inputs, self.sum(), self.bias)


class MasterTensors(nn.Module):
    """Run a layer on float32 masters of all that it stores, such as factors in a plugin's; its bias stays."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        stored = {name: tensor for name, tensor in layer.state_dict().items() if name != "bias"}
        self.names, self.layer = list(stored), [layer]  # in a list: its tensors are no part of this module
        self.masters = nn.ParameterList(nn.Parameter(tensor.float().clone()) for tensor in stored.values())

    def held(self) -> dict[str, torch.Tensor]:
        """Return the masters by name, in the dtypes of what they stand for."""
        stored = self.layer[0].state_dict()
        pairs = zip(self.names, self.masters, strict=True)
        return {name: master.to(stored[name].dtype) for name, master in pairs}

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """Write the masters into the layer and return it."""
        self.layer[0].load_state_dict(self.held(), strict=False)
        return self.layer[0]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        outputs: torch.Tensor = torch.func.functional_call(self.layer[0], self.held(), (inputs,))
        return outputs


class MasterValues(nn.Module):
    """Run a layer of codebooks on float32 masters of the values that its weights share; who shares which stays.

    A value's gradient is the sum of those of all weights that share it (Han, Mao, Dally 2015, arXiv:1510.00149,
    section 3.3), added up in float32: a sum of so many numbers in bfloat16 soon stops growing.
    """

    def __init__(self, layer: CodebookLinear) -> None:
        super().__init__()
        self.layer = [layer]  # in a list: its tensors are no part of this module
        self.values = nn.Parameter(layer.codebooks.float())

    def weight(self) -> torch.Tensor:
        """Return the weights as the finished layer will have them, (out_features, in_features)."""
        [layer] = self.layer
        places = layer.places()
        shared = self.values.flatten().index_select(0, places.flatten()).view(places.shape)
        return shared.to(layer.codebooks.dtype).to(layer.dtype)

    @torch.no_grad()
    def finish(self) -> nn.Module:
        """Write the masters into the layer's codebooks and return it."""
        [layer] = self.layer
        layer.codebooks.copy_(self.values)
        return layer

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        return F.linear(inputs, self.weight(), self.layer[0].bias)


class Widened(nn.Module):
    """Multiply with what a packed layer widens to, in floating point: gradients pass to its inputs, codes stay."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.out_features, self.in_features = features(layer)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the layer's outputs: (..., in_features) -> (..., out_features)."""
        return F.linear(inputs, matrix_of(self.layer, inputs.dtype), bias_of(self.layer))


def _view(layer: nn.Module, dtype: torch.dtype) -> Held | Masked:
    """Return what a master is multiplied as: with the zeros of a layer that has any."""
    kept = matrix_of(layer, dtype) != 0
    return Held(dtype) if bool(kept.all()) else Masked(kept, dtype)


def _as_one(made: Trainable, first: Trainable, layer: nn.Module) -> Trainable:
    """Let what stands in for another layer of the same weight train the parameters of the first, which writes it."""
    for name, parameter in first.module.named_parameters(recurse=False):
        setattr(made.module, name, parameter)
    return replace(made, parameters=(), count=0, finish=lambda: layer)


def _with_weight(layer: nn.Module, weight: torch.Tensor) -> nn.Module:
    """Return the layer with this weight, (out_features, in_features): itself, or a sparse one in its place."""
    if isinstance(layer, SparseLinear):
        return SparseLinear.of(weight, layer.bias)
    architecture.weight(layer).copy_(weight)
    return layer


def _kept_beside(adapter: LoraLinear, base: nn.Module) -> nn.Module:
    """Return a trained adapter on its base, A and B in the model's dtype."""
    pair = (tensor.detach().to(adapter.dtype) for tensor in (adapter.lora_A, adapter.lora_B))
    return LoraLinear.of(base, *pair, alpha=adapter.alpha, dtype=adapter.dtype)
