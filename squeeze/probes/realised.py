"""Tell what an artifact is while it runs: the memory that its weights take, the work of a token and of a prompt.

What layers say of themselves is only compared with what is found.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from squeeze.layers.contract import count_parameters, dtype_name, is_compressed, matrices, weight_numel
from squeeze.models import architecture
from squeeze.models.layout import LAYOUTS, head_size, sizes
from squeeze.models.subject import Subject
from squeeze.probes import arithmetic, held
from squeeze.probes.arithmetic import Profile
from squeeze.probes.recount import logical_weights, weights_by_layer
from squeeze.records.roofline import prefill_operations
from squeeze.runtimes.contract import TorchEngine

SMALL = 0.95  # of what the uncompressed model takes in the same dtype
NARROWER = 1.0  # bits a weight: codebooks of a small layer may be larger than its codes
CODES = 2 / 3  # of the bytes that layers share, at least: of 4 bits in groups of 32 with zero points they are 0.73


def figures(
    engine: TorchEngine, weighed: Mapping[str, Any], baseline: nn.Module, protocol: Mapping[str, Any], text: Tensor
) -> dict[str, Any]:
    """Return the figures of an artifact that is ready to run.

    weighed: what ``size.figures`` found of it; baseline: the uncompressed model, whose shapes alone are read; protocol:
    its `latency` part; text: (1, tokens) int64, on which the model is watched.
    bytes_real: stored small; memory_real: small while running; compute_real: computes in low bits or skips
    arithmetic, instead of dequantising and multiplying; arithmetic: what the blocks multiply in ("int8", or a dtype).
    running_bits: of a weight's code within the blocks, on average: kernels for 4 bits run codes of 2 and 3 bits, too.
    positions: the most tokens that the model takes; None where nothing says so.
    mismatches: what layers claim of their memory, shapes and arithmetic, and is not so.
    live_bytes: of weights in memory, a draft's among them; bytes_per_token: of weights that one decoding step reads;
    prefill_operations: of one prompt, batch size -> operations of the dense matrices, without a draft's.
    """
    subject, model = engine.subject, engine.subject.model
    dtype = architecture.dtype(model)
    dense_bytes = weighed["parameters"] * dtype.itemsize
    compressed = compressed_modules(model)
    ran = arithmetic.profiled(model, low_bit_layers(model), text)  # first, so that what is made on first use is there
    closed, guessing = held.closed(), None if subject.draft is None else subject.draft.subject
    blocks = held.blocks((model, None if guessing is None else guessing.model), closed)
    reached, other = sum(blocks.values()), held.elsewhere(blocks)
    live = max(engine.bytes_held, weighed["bytes"])  # some libraries keep scales where no buffer shows them
    hidden = held.mismatches(live, reached, other)
    live = max(live, reached + other) if hidden else live
    weights = weights_by_layer(model, baseline)
    codes = codes_in_memory(model, weights, closed)
    real = computes_less(model, baseline, ran)
    return {
        "bytes_real": weighed["bytes"] < SMALL * dense_bytes,
        "memory_real": live < SMALL * dense_bytes and all(bool(layer.memory_real) for layer in compressed),
        "compute_real": real,
        "arithmetic": "int8" if real and "bits" in subject.claims else dtype_name(dtype),
        "running_bits": running_bits(model, weights, codes),
        "positions": positions(model),
        "mismatches": [
            *hidden,
            *shape_mismatches(model, ran),
            *width_mismatches(model, codes),
            *arithmetic_mismatches(subject, real),
        ],
        "live_bytes": live,
        "bytes_per_token": live - unread_bytes(model) + reread_bytes(model),
        "prefill_operations": {
            str(batch): operations(model, weights, protocol["prompt_tokens"], batch)
            for batch in protocol["batch_sizes"]
        },
    }


def positions(model: nn.Module) -> int | None:
    """Return the most tokens that the model takes at once; None where its configuration does not say."""
    most = getattr(architecture.text_config(model), "max_position_embeddings", None)
    return most if isinstance(most, int) else None


def computes_less(model: nn.Module, baseline: nn.Module, ran: Profile) -> bool:
    """Tell whether compressed layers multiply integers, or skip zeros, ours and a library's, by the operators they ran.

    A model without such layers has to have fewer parameters than the baseline, and to multiply less.
    """
    if low_bit_layers(model):
        return ran.multiplies_integers or ran.skips_zeros
    matrices_of_baseline = sum(weights_by_layer(baseline, baseline).values()) + _head_weights(baseline)
    fewer = count_parameters(model) < SMALL * count_parameters(baseline)
    return fewer and ran.multiplications < SMALL * matrices_of_baseline


def arithmetic_mismatches(subject: Subject, real: bool) -> list[str]:
    """Return the claim about arithmetic that does not hold: our layers' own, or the technique's of a library's."""
    compressed = compressed_modules(subject.model)
    if compressed:
        claimed = all(bool(layer.compute_real) for layer in compressed)
    else:
        claimed = bool(subject.claims.get("compute_real", real))
    pruned_only = "sparsity" in subject.claims and "bits" not in subject.claims
    names = {True: "nonzero weights alone" if pruned_only else "integers", False: "floating point"}
    return [] if claimed == real else [f"claimed products of {names[claimed]}, found {names[real]}"]


def shape_mismatches(model: nn.Module, ran: Profile) -> list[str]:
    """Return the compressed layers that multiply with a matrix of another size than they say."""
    found = []
    for name, (rows, columns) in ran.shapes.items():
        layer = model.get_submodule(name)
        if is_compressed(layer) and weight_numel(layer) != rows * columns:
            found.append(f"{name} claims {weight_numel(layer):,} weights, found {rows} x {columns}")
    return found


def width_mismatches(model: nn.Module, codes: Mapping[str, float]) -> list[str]:
    """Return the layers that say their codes are narrower in memory than they are. codes: see ``codes_in_memory``."""
    told = {name: model.get_submodule(name).running_bits for name in codes}
    return [
        f"{name} claims codes of {told[name]:g} bits in memory, found {found:g}"
        for name, found in codes.items()
        if found > told[name] + NARROWER  # type: ignore[operator]
    ]


def compressed_modules(model: nn.Module) -> list[Any]:
    """Return the layers of ours that hold compressed weights."""
    return [module for module in model.modules() if is_compressed(module)]


def low_bit_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers by full name that hold something else than a dense matrix of floats.

    They are ours, wherever they stand, and those within the blocks that a library's own class holds.
    """
    ours: dict[str, Any] = {name: module for name, module in model.named_modules() if is_compressed(module)}
    within = {name: layer for name, layer in matrices(model) if name not in ours}
    return ours | {name: layer for name, layer in within.items() if not architecture.weight(layer).is_floating_point()}


def running_bits(model: nn.Module, weights: Mapping[str, int], codes: Mapping[str, float]) -> float:
    """Return the bits that a weight within the blocks takes in memory, scales left out, on average.

    Compressed layers are believed unless ``codes`` shows that they take more.
    """
    bits = 0.0
    for name, layer in matrices(model):
        if is_compressed(layer):
            told = layer.running_bits
            bits += weights[name] * (codes[name] if codes[name] > told + NARROWER else told)
        else:
            bits += 8 * architecture.weight(layer).nbytes
    return bits / sum(weights.values())


def codes_in_memory(model: nn.Module, weights: Mapping[str, int], closed: Collection[int]) -> dict[str, float]:
    """Return, for each compressed layer, the bits a weight of the largest block that it can reach: its codes.

    A block that several layers reach (``layers.joined``) holds codes of all of them: its bits are spread over all their
    weights. Of such blocks that the same layers reach, all of the largest's size count, down to half of it: each layer
    may have one of its own there. And codes are the greater part of all of them, scales the rest: else one large block
    could stand before many.
    """
    layers = {name: layer for name, layer in matrices(model) if is_compressed(layer)}
    reached = {layer: held.blocks(vars(layer), closed) for layer in layers.values()}
    owners: dict[int, list[Any]] = defaultdict(list)
    for layer, blocks in reached.items():
        for address in blocks:
            owners[address].append(layer)
    sizes: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for address, sharing in owners.items():
        sizes[tuple(sharing)].append(reached[sharing[0]][address])
    numel = {layer: weights[name] for name, layer in layers.items()}  # once, where a layer stands in several places
    bits: dict[Any, float] = dict.fromkeys(reached, 0.0)
    for together, found in sizes.items():
        largest = max(found)
        codes = float(largest)
        if len(together) > 1:
            codes = max(sum(size for size in found if 2 * size >= largest), CODES * sum(found))
        for layer in together:
            bits[layer] = max(bits[layer], 8 * codes / sum(numel[each] for each in together))
    return {name: bits[layer] for name, layer in layers.items()}


def unread_bytes(model: nn.Module) -> int:
    """Return the bytes of an embedding table that serves as input only: a decoding step reads one of its rows."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    table = own_bytes(embedding)
    return 0 if head is not None and own_bytes(head).keys() & table.keys() else sum(table.values())


def reread_bytes(model: nn.Module) -> int:
    """Return the bytes that a decoding step reads beyond those that lie in memory: of layers that blocks share.

    Each of their places reads them; whether a processor's cache still holds them by then is not asked.
    """
    sizes = {id(layer): sum(own_bytes(layer).values()) for _, layer in matrices(model)}
    return sum(sizes[id(layer)] for _, layer in matrices(model)) - sum(sizes.values())


def own_bytes(layer: nn.Module) -> dict[int, int]:
    """Return address -> bytes of all that a layer holds."""
    tensors = [*layer.parameters(), *layer.buffers()]
    opaque = {id(layer): int(getattr(layer, "opaque_bytes", 0))}
    return {tensor.data_ptr(): tensor.nbytes for tensor in tensors} | opaque


def operations(model: nn.Module, weights: Mapping[str, int], tokens: int, batch: int) -> float:
    """Return the operations of one prefill, compressed layers counted as the dense ones they stand for.

    weights: of each matrix within the blocks.
    """
    return prefill_operations(
        block_weights=sum(weights.values()),
        head_weights=_head_weights(model),
        attention_width=attention_width(model),
        layers=len(architecture.blocks(model)),
        tokens=tokens,
        batch=batch,
    )


def attention_width(model: nn.Module) -> float:
    """Return the channels of all heads of a block, on average: those that the configuration says, or fewer.

    Blocks have heads of their own number where that is pruned (``own_sizes``).
    """
    config: Any = model.config
    said: int = architecture.text_config(model).num_attention_heads * head_size(model)
    return min(said, sizes(model).attention) if config.model_type in LAYOUTS else said


def _head_weights(model: nn.Module) -> int:
    head = None if model.get_output_embeddings() is None else architecture.head(model)  # type: ignore[operator]
    return 0 if head is None else logical_weights(head)
