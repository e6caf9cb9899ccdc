"""Count what an artifact's matrices really hold. Nothing here believes a technique.

Bits come from bytes on disk, sparsity and levels from the weights that each stored layer multiplies with.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from squeeze.artifacts import adapter
from squeeze.layers.contract import is_compressed, matrices, weight_numel
from squeeze.layers.lora import LoraLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes.size import stored_tensors

SAMPLED_ROWS = 64  # of each matrix, for counting levels
NEIGHBOURS = 32  # weights, no more than share a scale in any usual grouping
PROBED_COLUMNS = 64  # of a matrix that only its own forward can show
DENSE = 0.9  # of the dtype's bits: what is stored in more is not compressed
GROUP_NUMBERS = 2  # stored beside the codes of a group: a scale and a zero point, in the model's dtype
FEWEST_IN_ROW = 64  # weights of a row, where that is the group; of thin factors fewer, as many as there are
UNKNOWN_TOLERANCE = 1.25  # bits a weight, where no group is claimed: a library's own blocks, or codebooks
ROUNDED = 0.01  # of claimed bits, which are an average where layers differ; and of codes that end at whole bytes
SPARSITY_TOLERANCE = 0.01


@dataclass(frozen=True)
class Recount:
    """Hold what was counted of all matrices within the blocks, one that stands in several places once.

    weights: their logical number. effective_bits: stored bits a weight. sparsity: share of the weights that are zero.
    levels: most distinct values found among 32 neighbours. compressed_share: share of the weights whose layer is stored
    in less than 90 % of the model dtype's bits. level_bits: log2 of each matrix's own levels, on average (5 at most, as
    of 32 neighbours): codes of b bits have at most 2^b of them. dense_bits: of the model's dtype. adapter_bits: how
    many of the stored bits a weight lie in an adapter beside its base; sparsity and levels are the base's. in_row:
    weights of a row, on average.
    """

    weights: int
    effective_bits: float
    sparsity: float
    levels: int
    compressed_share: float
    level_bits: float
    dense_bits: int = 16
    adapter_bits: float = 0.0
    in_row: float = FEWEST_IN_ROW

    def figures(self) -> dict[str, float | int]:
        """Return the sample names and values."""
        return {
            "block_weights": self.weights,
            "block_effective_bits": self.effective_bits,
            "sparsity": self.sparsity,
            "levels": self.levels,
            "compressed_share": self.compressed_share,
        }

    def mismatches(self, claims: Mapping[str, Any]) -> list[str]:
        """Return the claims that do not hold, with both numbers; none for an honest artifact."""
        bits, sparsity = claims.get("bits"), claims.get("sparsity")
        found: list[str] = [] if bits is None else self._of_codes(bits, claims)
        if sparsity is None:
            return found
        fewer = self.sparsity < sparsity - SPARSITY_TOLERANCE
        more = self.sparsity > sparsity + SPARSITY_TOLERANCE
        if fewer or (more and bits is None):  # codes of few bits make further zeros, which nobody claims
            found.append(f"claimed {sparsity:.1%} zeros, found {self.sparsity:.1%}")
        return found

    def _of_codes(self, bits: float, claims: Mapping[str, Any]) -> list[str]:
        """Return how the codes are not of the claimed bits, or an adapter beside them takes more than they do."""
        found = []
        of_codes = self.effective_bits - self.adapter_bits
        if of_codes > bits + stored_beside(claims, self.dense_bits, self.in_row):
            left = 1 - self.compressed_share
            found.append(f"claimed {bits:g} bits, stored {of_codes:.2f} a weight ({left:.0%} left dense)")
        elif share_a_scale(claims) and self.level_bits > math.log2(most_values(claims)) + ROUNDED:
            values = f"{2**self.level_bits:.3g} values among {NEIGHBOURS} neighbours"
            found.append(f"claimed {bits:g} bits, found {values}, expected {most_values(claims):.3g} at the most")
        if self.adapter_bits > bits:
            found.append(f"claimed {bits:g} bits, stored {self.adapter_bits:.2f} a weight in an adapter beside them")
        return found


def stored_beside(claims: Mapping[str, Any], dense_bits: int = 16, in_row: float = FEWEST_IN_ROW) -> float:
    """Return the bits a weight that may be stored beside claimed codes: what scales and zero points of a group take.

    dense_bits: of the model's dtype, which torchao's have. in_row: weights of a row, on average.
    """
    if "group_size" not in claims:
        return UNKNOWN_TOLERANCE
    return GROUP_NUMBERS * dense_bits / (claims["group_size"] or min(FEWEST_IN_ROW, in_row)) + ROUNDED


def most_values(claims: Mapping[str, Any]) -> float:
    """Return how many values codes of the claimed bits can tell apart, and zero where weights were pruned as well."""
    return float(2 ** claims["bits"] + (1 if "sparsity" in claims else 0))


def share_a_scale(claims: Mapping[str, Any]) -> bool:
    """Tell whether any 32 neighbours lie in one group: in groups of 16, or of 48, they may have two scales."""
    return (claims.get("group_size") or NEIGHBOURS) % NEIGHBOURS == 0


def recount(folder: Path, subject: Subject, baseline: nn.Module) -> Recount:
    """Count what the artifact in `folder` holds; subject: that artifact as stored (loaded with `prepare=False`).

    baseline: the uncompressed model, whose shapes alone are read.
    """
    layers, own = dict(matrices(subject.model)), weights_by_layer(subject.model, baseline)
    stored, beside = _bytes_by_layer(folder, layers)
    dtype = architecture.dtype(subject.model)
    dense_bits = 8 * dtype.itemsize
    weights = rows = compressed = levels = 0
    bits = zeros = level_bits = 0.0
    for name in {id(layer): name for name, layer in reversed(layers.items())}.values():  # where it stands first
        layer = layers[name]
        count, own_bits, values = own[name], 8 * stored[name], dense(_base(layer))
        weights += count
        rows += len(values)
        bits += own_bits
        zeros += count * (1 - int(values.count_nonzero()) / values.numel())
        found = most_levels(values)
        levels = max(levels, found)
        level_bits += count * math.log2(max(found, 1))
        compressed += count if own_bits < DENSE * dense_bits * count else 0
    shares = (bits / weights, zeros / weights, levels, compressed / weights, level_bits / weights)
    return Recount(weights, *shares, dense_bits, 8 * beside / weights, weights / rows)


def weights_by_layer(model: nn.Module, baseline: nn.Module) -> dict[str, int]:
    """Return how many weights each matrix within the blocks stands for, by full name.

    It is what the layer has, and at most what the baseline's of that name has, or of the matrix that it is a factor of:
    a layer that says it is wider than the one it stands for gains nothing by it.
    """
    most = {name: logical_weights(layer) for name, layer in matrices(baseline)}
    own = {name: logical_weights(layer) for name, layer in matrices(model)}
    return {name: min(count, most.get(_whole(name, most), count)) for name, count in own.items()}


def _whole(name: str, known: Collection[str]) -> str:
    """Return the name of the known matrix that this one is, or is a part of; empty where it is of none."""
    while name and name not in known:
        name = name.rpartition(".")[0]
    return name


def logical_weights(layer: nn.Module) -> int:
    """Return how many weights the dense matrix has that a layer stands for."""
    if is_compressed(layer):
        return weight_numel(layer)
    if isinstance(layer, nn.Linear):
        return layer.in_features * layer.out_features
    return architecture.weight(layer).numel()


@torch.inference_mode()
def dense(layer: nn.Module) -> Tensor:
    """Return the matrix a layer multiplies with, (out_features, columns): of a foreign packed one, its first columns.

    Those are found by sending unit vectors through its forward, whatever the library stores.
    """
    if hasattr(layer, "dequantize"):
        return layer.dequantize()  # type: ignore[no-any-return,operator]
    if architecture.weight(layer).is_floating_point():
        return architecture.weight(layer)
    features: int = layer.in_features  # type: ignore[assignment]
    units = torch.eye(PROBED_COLUMNS, features, device=architecture.weight(layer).device)
    return (layer(units) - layer(torch.zeros_like(units))).T  # type: ignore[no-any-return]


def most_levels(values: Tensor) -> int:
    """Return the largest number of distinct values among NEIGHBOURS weights of a row, in evenly spread rows."""
    rows = values[:: max(1, len(values) // SAMPLED_ROWS)]
    blocks = rows[:, : rows.shape[1] // NEIGHBOURS * NEIGHBOURS].reshape(-1, NEIGHBOURS)
    ordered = blocks.sort(dim=1).values
    return int((ordered.diff(dim=1) != 0).sum(dim=1).max()) + 1 if len(blocks) else 0


def _base(layer: nn.Module) -> nn.Module:
    """Return the layer that holds the codes: of an adapter, and of none that only calls itself one, its base."""
    return layer.base if type(layer) is LoraLinear else layer


def _bytes_by_layer(folder: Path, layers: Collection[str]) -> tuple[Counter[str], int]:
    """Return the stored bytes of each layer, its bias left out, and how many of all of them an adapter has."""
    found = Counter[str]()
    beside = 0
    for tensor in stored_tensors(folder):
        name = tensor.name.removeprefix(adapter.PREFIX)
        owner = name
        while owner and owner not in layers:
            owner = owner.rpartition(".")[0]
        if owner and name != f"{owner}.bias":
            found[owner] += tensor.bytes
            beside += tensor.bytes if name != tensor.name else 0
    return found, beside
