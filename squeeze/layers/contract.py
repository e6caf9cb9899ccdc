"""Define what a compressed layer must provide, and what can be done with any layer that provides it.

Finding such layers in a model, describing and making them, laying them out to run, and making them dense again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeGuard

import torch
from torch import nn

from squeeze.core import plugins
from squeeze.core.errors import IntegrityError, SqueezeError, Unsupported
from squeeze.models import architecture


class CompressedLayer(Protocol):
    """Stand for a dense matrix of (out_features, in_features), stored in fewer bytes.

    Each argument of its constructor is an attribute of the same name (``bias``: whether there is one; ``dtype``: its
    name), so that ``spec`` can describe it and ``of_spec`` make it again, empty.

    memory_real: whether it is small while running, too. compute_real: whether it multiplies in few bits or skips
    arithmetic, instead of widening its weights and multiplying in floating point.
    """

    in_features: int
    out_features: int
    bias: torch.Tensor | None

    @property
    def memory_real(self) -> bool: ...  # noqa: D102 - see above

    @property
    def compute_real(self) -> bool: ...  # noqa: D102

    @property
    def running_bits(self) -> float:
        """Return how many bits a weight's code takes in memory, in the layout that is there."""

    @property
    def opaque_bytes(self) -> int:
        """Count the bytes that it holds beside its parameters and buffers, in a kernel's layout."""

    def prepare(self) -> None:
        """Lay the weights out for the kernel that runs here; from then on the layer only runs."""

    def dequantize(self) -> torch.Tensor:
        """Return the matrix that it multiplies with, (out_features, in_features), in floating point."""

    @staticmethod
    def header(model: nn.Module) -> dict[str, str]:
        """Return what a library's reader wants, in the weight file's header, of all such layers; or nothing."""


class CompositeLayer(Protocol):
    """Stand for a dense matrix of (out_features, in_features), made of linear layers that are compressed on their own.

    Like that of a compressed layer, its constructor makes it again from ``spec``, empty. Its parts are the matrices of
    the model: they are counted, compressed and trained in its place.
    """

    in_features: int
    out_features: int
    is_composite: bool


OWED = ("memory_real", "compute_real", "running_bits", "opaque_bytes", "prepare", "dequantize", "header")


def is_compressed(module: object) -> TypeGuard[CompressedLayer]:
    """Tell whether a module keeps the contract."""
    return _keeps_contract(type(module))


def is_described(module: object) -> bool:
    """Tell whether a module is one that an artifact has to describe: a compressed layer, or a composite one."""
    return _is_described(type(module))


def compressed_layers(model: nn.Module) -> Iterator[CompressedLayer]:
    """Yield the compressed layers of a model, each once; what lies within one (the base of an adapter) is its part."""
    layers: dict[int, Any] = {id(layer): layer for _, layer in _topmost("", model, is_compressed)}
    yield from layers.values()


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers within the blocks that stand for one matrix each, by full name, their own parts passed over.

    A layer that stands in several places is yielded for each.
    """
    for name, block in architecture.named_blocks(model):
        yield from _topmost(name, block, _is_matrix)


def weight_numel(layer: CompressedLayer) -> int:
    """Count the weights that a layer stands for."""
    return layer.in_features * layer.out_features


def prepare_layers(model: nn.Module) -> None:
    """Let every compressed layer lay its weights out for the kernel that runs here."""
    for layer in list(compressed_layers(model)):
        layer.prepare()


def spec(layer: CompressedLayer | CompositeLayer) -> dict[str, Any]:
    """Return the arguments from which a layer's constructor makes one of the same shape: JSON-able values."""
    names = list(inspect.signature(type(layer)).parameters)
    return {name: _argument(name, getattr(layer, name)) for name in names}


def layer_specs(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Map the full name of each compressed or composite layer to its class's name and its constructor's arguments.

    The name is what ``layer_class`` takes, such as ``quantized.QuantizedLinear``.
    Raises SqueezeError for a layer of a package that is neither squeeze nor an installed plugin.
    """
    return {
        name: {"_target_": plugins.name_of(type(module)), **spec(module)}
        for name, module in model.named_modules()
        if is_described(module)
    }


def layer_class(name: str) -> type[nn.Module]:
    """Return the layer that is called ``FILE.CLASS`` of squeeze/layers, or ``PLUGIN:FILE.CLASS`` of a plugin's.

    Raises IntegrityError unless that very file defines such a class, and the class keeps the contract of compressed
    or of composite layers.
    """
    try:
        made = plugins.load(plugins.find("layers", name))
    except SqueezeError as error:
        raise IntegrityError(f"no layer {error}") from error
    if not (issubclass(made, nn.Module) and _is_described(made)):
        raise IntegrityError(f"no layer {name!r}: it does not keep the contract")
    return made


def shared_layers(model: nn.Module) -> dict[str, str]:
    """Map each further name of a layer that has several, a described or a plain linear one, to the first of them.

    It is the one that ``layer_specs`` has for it.
    """
    first = {id(module): name for name, module in model.named_modules()}
    return {
        name: first[id(module)]
        for name, module in model.named_modules(remove_duplicate=False)
        if first[id(module)] != name and (is_described(module) or _is_matrix(module))
    }


def count_parameters(model: nn.Module) -> int:
    """Count logical parameters: tied ones once, a compressed layer as many as the dense one it stands for."""
    compressed = list(compressed_layers(model))
    inside = {id(item) for layer in compressed for item in _module(layer).parameters()}
    dense = sum(item.numel() for item in model.parameters() if id(item) not in inside)
    biases = sum(0 if layer.bias is None else layer.bias.numel() for layer in compressed)
    return dense + biases + sum(map(weight_numel, compressed))


def live_bytes(model: nn.Module) -> int:
    """Count the bytes of all parameters and buffers, those that share memory once, and of kernels' own layouts."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    opaque = sum(int(getattr(module, "opaque_bytes", 0)) for module in model.modules())
    return sum(tensors.values()) + opaque


def float_linears(model: nn.Module) -> list[str]:
    """Return the full names of all linear layers within the blocks, ``nn.Linear`` or ``Conv1D`` in floating point.

    Names, not layers: a float layer that a step replaces is then held by nobody, and its memory free for the next one.
    A layer that stands in several places has one name here, its last: there all that it reads has been seen.
    Layers that an earlier step compressed are replaced by their dense equals: their values stay (zeros, grid points),
    how they are stored is for this step to decide.
    Raises Unsupported, before any of it, where a library's own layers have taken their place: those cannot be
    compressed further.
    """
    floats = (architecture.weight(layer).is_floating_point() for layer in architecture.block_linears(model).values())
    if all(floats):
        _make_dense(model)
    layers = architecture.block_linears(model)
    foreign = [layer for layer in layers.values() if not architecture.weight(layer).is_floating_point()]
    if foreign or not layers:
        found = type(foreign[0]).__name__ if foreign else "none"
        raise Unsupported(f"no float layers to compress in the blocks (found: {found}); put such a step first")
    return list({id(layer): name for name, layer in layers.items()}.values())


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Return a plain layer with this weight (out_features, in_features) and bias (out_features,), neither copied."""
    out_features, in_features = weight.shape
    with torch.device("meta"):
        layer = nn.Linear(in_features, out_features, bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return layer


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype without its package, such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def _keeps_contract(kind: type) -> bool:
    return all(hasattr(kind, name) for name in OWED)


def _is_described(kind: type) -> bool:
    return _keeps_contract(kind) or getattr(kind, "is_composite", False) is True


def _argument(name: str, value: Any) -> Any:
    if name == "bias":
        return value is not None
    return dtype_name(value) if isinstance(value, torch.dtype) else value


def _module(layer: CompressedLayer) -> nn.Module:
    assert isinstance(layer, nn.Module)
    return layer


def _is_matrix(module: nn.Module) -> bool:
    return is_compressed(module) or architecture.linears(module).get("") is module


def _make_dense(model: nn.Module) -> None:
    """Replace compressed layers within the blocks by their dense equals, one that stands in several places by one."""
    dense: dict[int, nn.Linear] = {}
    for name, layer in list(matrices(model)):
        if is_compressed(layer):
            if id(layer) not in dense:
                dense[id(layer)] = linear(layer.dequantize(), layer.bias)
            architecture.replace(model, name, dense[id(layer)])


def _topmost(name: str, module: nn.Module, wanted: Callable[[nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that are wanted by full name, and nothing of what lies within those."""
    if wanted(module):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _topmost(f"{name}.{child_name}" if name else child_name, child, wanted)
