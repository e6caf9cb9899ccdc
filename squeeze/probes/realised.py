"""Tell what an artifact is while it runs: the memory that its weights take, the work of a token and of a prompt."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from squeeze.layers.contract import count_parameters, dtype_name, is_compressed
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.recount import logical_weights, matrices
from squeeze.records.roofline import prefill_operations
from squeeze.runtimes.contract import TorchEngine

SMALL = 0.95  # of what the uncompressed model takes in the same dtype


def figures(engine: TorchEngine, stored_bytes: int, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an artifact that is ready to run, whose weight files take `stored_bytes`.

    protocol: its `latency` part.
    bytes_real: stored small; memory_real: small while running; compute_real: computes in low bits or skips
    arithmetic, instead of dequantising and multiplying; arithmetic: what the blocks multiply in ("int8", or a dtype).
    running_bits: of a weight's code within the blocks, on average: kernels for 4 bits run codes of 2 and 3 bits, too.
    positions: the most tokens that the model takes; None where nothing says so.
    mismatches: what layers claim of their arithmetic, and do not do.
    live_bytes: of weights in memory; bytes_per_token: of weights that one decoding step reads; prefill_operations: of
    one prompt, batch size -> operations of the dense matrices.
    """
    subject, model = engine.subject, engine.subject.model
    dtype = architecture.dtype(model)
    dense_bytes = subject.claims["parameters"] * dtype.itemsize
    compressed = compressed_modules(model)
    live = max(engine.bytes_held, stored_bytes)  # some libraries keep scales where no buffer shows them
    real = computes_less(model, subject.claims["parameters"])
    arithmetic = "int8" if real and "bits" in subject.claims else dtype_name(dtype)
    return {
        "bytes_real": stored_bytes < SMALL * dense_bytes,
        "memory_real": live < SMALL * dense_bytes and all(bool(layer.memory_real) for layer in compressed),
        "compute_real": real,
        "arithmetic": arithmetic,
        "running_bits": running_bits(model),
        "positions": positions(model),
        "mismatches": arithmetic_mismatches(subject, real),
        "live_bytes": live,
        "bytes_per_token": live - unread_bytes(model),
        "prefill_operations": {
            str(batch): operations(model, protocol["prompt_tokens"], batch) for batch in protocol["batch_sizes"]
        },
    }


def positions(model: nn.Module) -> int | None:
    """Return the most tokens that the model takes at once; None where its configuration does not say."""
    most = getattr(model.config, "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def computes_less(model: nn.Module, parameters: int) -> bool:
    """Tell whether compressed layers multiply integers, ours and a library's, by the operators that they run.

    Of a model without such layers, what is left of its ``parameters`` tells whether arithmetic is saved.
    """
    layers = [*compressed_modules(model), *library_layers(model)]
    if layers:
        return multiplies_integers(layers, architecture.dtype(model), next(model.parameters()).device)
    return count_parameters(model) < SMALL * parameters


def arithmetic_mismatches(subject: Subject, real: bool) -> list[str]:
    """Return the claim about arithmetic that does not hold: our layers' own, or the technique's of a library's."""
    compressed = compressed_modules(subject.model)
    if compressed:
        claimed = all(bool(layer.compute_real) for layer in compressed)
    else:
        claimed = bool(subject.claims.get("compute_real", real))
    names = {True: "integers", False: "floating point"}
    return [] if claimed == real else [f"claimed products of {names[claimed]}, found {names[real]}"]


def compressed_modules(model: nn.Module) -> list[Any]:
    """Return the layers of ours that hold compressed weights."""
    return [module for module in model.modules() if is_compressed(module)]


def library_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers within the blocks that a library's own class holds as something else than floats."""
    ours = [layer for _, layer in matrices(model) if not is_compressed(layer)]
    return [layer for layer in ours if not architecture.weight(layer).is_floating_point()]


def running_bits(model: nn.Module) -> float:
    """Return the bits that a weight within the blocks takes in memory, scales left out, on average."""
    layers = [layer for _, layer in matrices(model)]
    bits = sum(logical_weights(layer) * bits_in_memory(layer) for layer in layers)
    return bits / sum(map(logical_weights, layers))


def bits_in_memory(layer: nn.Module) -> float:
    """Return the bits of a weight's code as the layer holds it now."""
    if is_compressed(layer):
        return layer.running_bits
    return 8 * architecture.weight(layer).nbytes / logical_weights(layer)


def unread_bytes(model: nn.Module) -> int:
    """Return the bytes of an embedding table that serves as input only: a decoding step reads one of its rows."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    table = own_bytes(embedding)
    return 0 if head is not None and own_bytes(head).keys() & table.keys() else sum(table.values())


def own_bytes(layer: nn.Module) -> dict[int, int]:
    """Return address -> bytes of all that a layer holds."""
    tensors = [*layer.parameters(), *layer.buffers()]
    opaque = {id(layer): int(getattr(layer, "opaque_bytes", 0))}
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors} | opaque


def operations(model: nn.Module, tokens: int, batch: int) -> float:
    """Return the operations of one prefill, compressed layers counted as the dense ones they stand for."""
    config: Any = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = None if model.get_output_embeddings() is None else architecture.head(model)  # type: ignore[operator]
    return prefill_operations(
        block_weights=sum(logical_weights(layer) for _, layer in matrices(model)),
        head_weights=0 if head is None else logical_weights(head),
        attention_width=config.num_attention_heads * head_dim,
        layers=len(architecture.blocks(model)),
        tokens=tokens,
        batch=batch,
    )


# Operators that multiply integers. What is in no list is taken for floating point.
INTEGER = frozenset({"aten::_int_mm", "quantized::linear_dynamic", "quantized::linear"})

INTEGER_ON_CUDA = frozenset({"bitsandbytes::int8_linear_matmul"})  # on CPUs it may widen, and multiply in float32

ROWS = (1, 64)  # of a decoding step, and of a prompt: both must be integers


def multiplies_integers(layers: Iterable[nn.Module], dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether each of these layers multiplies integers, for few rows and for many; one of a kind is run."""
    kinds = {_kind(layer): layer for layer in layers}
    known = INTEGER | INTEGER_ON_CUDA if device.type == "cuda" else INTEGER
    return bool(kinds) and all(
        operators(layer, _inputs(layer, rows, dtype, device)) & known for layer in kinds.values() for rows in ROWS
    )


@torch.inference_mode()
def operators(layer: nn.Module, inputs: Tensor) -> set[str]:
    """Return the names of all operators that one call runs, such as ``aten::mm``; those within others, too."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        layer(inputs)
    return {event.key for event in profiler.key_averages()}


def _kind(layer: nn.Module) -> tuple[object, ...]:
    """Return what decides the kernel that a layer runs."""
    return (type(layer), *_shape(layer), *(getattr(layer, name, None) for name in ("bits", "group_size", "dtype")))


def _inputs(layer: nn.Module, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones((1, rows, _shape(layer)[1]), dtype=dtype, device=device)


def _shape(layer: nn.Module) -> tuple[int, int]:
    """Return (out_features, in_features)."""
    if is_compressed(layer) or isinstance(layer, nn.Linear):
        return int(layer.out_features), int(layer.in_features)
    rows, columns = architecture.weight(layer).shape
    return rows, columns
