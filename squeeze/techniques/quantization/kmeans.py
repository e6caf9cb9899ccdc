"""Cluster the weights of a layer and store, for each, the index of its cluster's centroid (weight sharing).

Han, Mao, Dally 2015, "Deep Compression: Compressing Deep Neural Networks with Pruning, Trained Quantization and Huffman
Coding" (arXiv:1510.00149), section 3. A ``recover`` step behind it trains the centroids, as section 3.3 does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.affine import scale_dtype
from squeeze.layers.codebook import CodebookLinear
from squeeze.layers.contract import float_linears
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration

MOST_ITERATIONS = 300  # of Lloyd's algorithm; it ends before, where no centroid moves


@dataclass(frozen=True)
class KMeans:
    """Cluster all linear layers of the blocks; embeddings, head and norms stay as they are.

    bits: 8, 4, 3 or 2; 2^bits clusters. rows: output rows that share a codebook; None: all (the paper: one a layer).
    Stored bits a weight: bits + 16 * 2^bits / (rows * in_features).
    """

    bits: Literal[8, 4, 3, 2]
    rows: int | None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject.

        Raises Unsupported for other bits, and for rows that do not divide each layer's height.
        """
        affine.check_bits("kmeans", self.bits)
        model = subject.model
        names = float_linears(model)
        heights = {architecture.weight(model.get_submodule(name)).shape[0] for name in names}
        if misfits := sorted(height for height in heights if self.rows and height % self.rows):
            raise Unsupported(f"rows {self.rows} does not divide out_features {misfits[0]}; null: one codebook a layer")
        for name in names:
            layer = model.get_submodule(name)
            weight = architecture.weight(layer)
            groups = weight.float().reshape(len(weight) // (self.rows or len(weight)), -1).contiguous()
            codebooks = cluster(groups, self.bits).to(scale_dtype(weight.dtype))
            codes = nearest(groups, codebooks.float()).view(weight.shape)
            shared = CodebookLinear.of(codes, codebooks, architecture.bias(layer), weight.dtype)
            architecture.replace(model, name, shared)
        return subject.without("sparsity").claiming(bits=self.bits)  # no centroid lies at zero


def cluster(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Return k-means centroids, in rising order: (groups, n) float32 -> (groups, 2^bits) float32, each row by itself.

    They start evenly spread from the smallest value to the largest ("linear initialization", section 3.2), which keeps
    the few large weights represented. On a line a cluster is a run of the sorted values, so that Lloyd's algorithm
    needs one sort, and then only a search for the borders and differences of running sums: exact, and deterministic. A
    cluster without values keeps its centroid.
    """
    ordered = values.sort(dim=1).values.contiguous()
    running = F.pad(ordered.double().cumsum(dim=1), (1, 0))
    low, high = ordered[:, :1], ordered[:, -1:]
    centroids = low + (high - low) * torch.linspace(0, 1, 2**bits, device=values.device)
    for _ in range(MOST_ITERATIONS):
        edges = torch.searchsorted(ordered, _borders(centroids))
        edges = F.pad(F.pad(edges, (1, 0)), (0, 1), value=ordered.shape[1])
        counts, totals = edges.diff(dim=1), running.gather(1, edges).diff(dim=1)
        moved = torch.where(counts > 0, (totals / counts.clamp(min=1)).float(), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids


def nearest(values: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Return the index of each value's centroid: (groups, n), (groups, 2^bits) rising -> (groups, n) uint8."""
    return torch.searchsorted(_borders(centroids), values, out_int32=True).to(torch.uint8)


def _borders(centroids: torch.Tensor) -> torch.Tensor:
    """Return the midpoints between neighbouring centroids, (groups, 2^bits - 1)."""
    return (centroids[:, 1:] + centroids[:, :-1]).div_(2)
