"""Tell in what a model multiplies, by the operators that a forward of the whole of it runs: no layer is asked.

A layer multiplies integers where integer products do its work and no floating-point product of its own shape runs
beside them; so one that runs a kernel for show is told from one that uses it. It skips zeros where a product of fewer
values than its matrix has does its work, likewise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

# Operators that multiply integers, and those that multiply floats. What is in neither list does no product.
INTEGER = frozenset({"aten::_int_mm", "quantized::linear_dynamic", "quantized::linear"})
INTEGER_ON_CUDA = frozenset({"bitsandbytes::int8_linear_matmul"})  # on CPUs it may widen, and multiply in float32
BY_SHAPE = frozenset(
    f"aten::{name}"
    for name in ("mm", "addmm", "_addmm_activation", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "matmul")
) | {"aten::_int_mm"}  # the last two operands, (..., rows, n) and (..., n, columns), tell the number of multiplications
FLOATING = frozenset(
    {
        *("aten::linear", "aten::einsum", "aten::inner", "aten::tensordot", "aten::vdot", "aten::mkldnn_linear"),
        *("aten::conv1d", "aten::conv2d", "aten::convolution", "aten::_convolution", "mkldnn::_linear_pointwise"),
        *("aten::_weight_int4pack_mm", "aten::_weight_int4pack_mm_for_cpu", "aten::_weight_int8pack_mm"),
        "aten::embedding_bag",  # with weights of its own for each row it is a product, too
        *("aten::_scaled_mm", "bitsandbytes::gemv_4bit", "bitsandbytes::int8_linear_matmul"),
    }
)
# Operators that multiply by half of a matrix in the 2:4 pattern. Those that multiply by one in compressed sparse rows
# have the names of dense ones, and ask for its values.
SEMI_STRUCTURED = frozenset(
    f"aten::{name}"
    for name in (
        *("_cslt_sparse_mm", "_sparse_semi_structured_mm", "_sparse_semi_structured_addmm"),
        "_sparse_semi_structured_linear",
    )
)
VALUES = "aten::values"
PRODUCTS = INTEGER | BY_SHAPE | FLOATING | SEMI_STRUCTURED

DONE = 0.5  # of a layer's multiplications, by integer products: less is for show
# Of them, by floating-point products: input columns with outliers, which LLM.int8 leaves in floats; small adapters.
LEFT = 0.25
FEWER = 0.95  # of them, by all products of a layer that skips zeros
TOKENS = 64  # of the prompt that is read; the step after it is of one
RANGE = "squeeze layer "
FORWARD = "squeeze forward"


@dataclass(frozen=True)
class Call:
    """Hold one call of a layer. own: multiplications of its dense equal; the others: those that were seen.

    sparse: of floats as well, by products that skip zeros; they are not among the floating ones.
    """

    own: int
    integer: int
    floating: int
    sparse: int = 0

    @property
    def in_integers(self) -> bool:
        """Tell whether integer products did its work, and floating-point ones did not."""
        return self.integer >= DONE * self.own and self.floating + self.sparse <= LEFT * self.own

    @property
    def skips_zeros(self) -> bool:
        """Tell whether products that skip zeros did its work, in fewer multiplications than its dense equal has."""
        return self.sparse > 0 and self.integer + self.floating + self.sparse <= FEWER * self.own


@dataclass(frozen=True)
class Profile:
    """Hold what the forwards of a prompt, and of the token after it, ran.

    shapes: layer -> (out_features, in_features) as its inputs and outputs showed; calls: layer -> its calls that
    multiplied, in order. Layers that nothing reached have neither. multiplications: of all products of the prompt's
    forward, for each token; those of attention are among them, where torch shows them.
    """

    shapes: Mapping[str, tuple[int, int]]
    calls: Mapping[str, list[Call]]
    multiplications: float

    @property
    def multiplies_integers(self) -> bool:
        """Tell whether every layer that was reached multiplied integers, in each of its calls."""
        return bool(self.calls) and all(call.in_integers for calls in self.calls.values() for call in calls)

    @property
    def skips_zeros(self) -> bool:
        """Tell whether every layer that was reached skipped zeros, in each of its calls."""
        return bool(self.calls) and all(call.skips_zeros for calls in self.calls.values() for call in calls)


@torch.inference_mode()
def profiled(model: nn.Module, layers: Mapping[str, nn.Module], token_ids: Tensor) -> Profile:
    """Run a prompt and, where the model predicts tokens, one more token; return what the layers ran.

    token_ids: (1, tokens) int64 on the model's device, of which the first 64 are read.
    """
    prompt = token_ids[:, :TOKENS]
    known = INTEGER | INTEGER_ON_CUDA if prompt.device.type == "cuda" else INTEGER
    decodes = model.get_output_embeddings() is not None  # type: ignore[operator]
    seen = _Seen()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler, seen.watching(layers):
        with record_function(FORWARD):
            out = model(input_ids=prompt, **({"use_cache": True} if decodes else {}))
        if decodes:
            model(input_ids=prompt[:, -1:], past_key_values=out.past_key_values)
    calls: dict[str, list[Call]] = {}
    multiplications = 0.0
    for event in sorted(profiler.events() or (), key=lambda event: event.time_range.start):
        if event.name == FORWARD:
            multiplications = sum(_multiplications(product, 0) for product in _products(event)) / prompt.shape[1]
        elif event.name.startswith(RANGE):
            name = event.name.removeprefix(RANGE)
            own = math.prod(seen.shapes[name]) * seen.rows[name][len(calls.setdefault(name, []))]
            calls[name].append(_call(event, own, known))
    return Profile(seen.shapes, calls, multiplications)


@dataclass
class _Seen:
    """Collect the shapes of layers' inputs and outputs. rows: of each call of a layer, in order."""

    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)
    rows: dict[str, list[int]] = field(default_factory=dict)

    @contextmanager
    def watching(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """Mark each product of these layers as a range of the profile, within the body."""
        hooks = [hook for name, layer in layers.items() for hook in self._hooks(name, layer)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self, name: str, layer: nn.Module) -> list[Any]:
        open_ranges: list[record_function] = []

        def enter(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            if arguments and arguments[0].is_floating_point():  # integers are looked up, not multiplied
                open_ranges.append(record_function(f"{RANGE}{name}"))
                open_ranges[-1].__enter__()  # type: ignore[no-untyped-call]

        def leave(_: nn.Module, arguments: tuple[Any, ...], outputs: Tensor) -> None:
            if open_ranges:
                open_ranges.pop().__exit__(None, None, None)
                width = arguments[0].shape[-1]
                self.shapes[name] = (outputs.shape[-1], width)
                self.rows.setdefault(name, []).append(arguments[0].numel() // width)

        return [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]


def _call(event: Any, own: int, known: frozenset[str]) -> Call:
    done = dict.fromkeys(("integer", "floating", "sparse"), 0)
    for product in _products(event):
        sparse = product.name in SEMI_STRUCTURED or _values(product) is not None
        kind = "integer" if product.name in known else "sparse" if sparse else "floating"
        done[kind] += _multiplications(product, own)
    return Call(own, **done)


def _products(event: Any) -> list[Any]:
    """Return the innermost products that run within an event."""
    inner = [product for child in event.cpu_children for product in _products(child)]
    return inner or ([event] if event.name in PRODUCTS else [])


def _multiplications(product: Any, own: int) -> int:
    """Return how many multiplications a product does; ``own`` where its operands do not show it, being packed."""
    operands: list[list[int]] = [shape for shape in product.input_shapes if shape]
    if product.name in SEMI_STRUCTURED:
        return own // 2
    if (values := _values(product)) is not None:  # beside the result of the same shape, what is added to it
        _, left, right = operands[:3]
        dense = math.prod(left) * (right[1] if len(right) > 1 else 1)
        matrix, nonzero = values
        return max(dense * nonzero // matrix, 1)
    if product.name == "aten::linear" and len(operands) > 1:
        return math.prod(operands[0]) * operands[1][0]
    if product.name not in BY_SHAPE or len(operands) < 2:
        return own
    left, right = operands[-2:]
    batch = math.prod(left[:-2]) if len(right) > 2 else 1
    return math.prod(left) * math.prod(right) // max(left[-1] * batch, 1)


def _values(product: Any) -> tuple[int, int] | None:
    """Return how many weights the matrix of a product has, and how many of them as values; None of a dense matrix."""
    for child in product.cpu_children:
        if child.name == VALUES and child.cpu_children:
            return math.prod(child.input_shapes[0]), child.cpu_children[0].input_shapes[0][0]
    return None
