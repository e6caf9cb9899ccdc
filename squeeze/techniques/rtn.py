"""Round to nearest: every weight to the closest code of its group's grid, without looking at data."""

from __future__ import annotations

from dataclasses import dataclass

from squeeze import architecture
from squeeze.calibration import Calibration
from squeeze.errors import Unsupported
from squeeze.subject import Subject
from squeeze.techniques import affine
from squeeze.techniques.dense import float_linears
from squeeze.techniques.quantized import QuantizedLinear

BITS = (8, 4, 3, 2)


@dataclass(frozen=True)
class RoundToNearest:
    """q = round(r / s) + z (Jacob et al. 2018, arXiv:1712.05877, eq. 1); see ``squeeze.techniques.affine`` for s and z.

    bits: 8, 4, 3 or 2. group_size: neighbours in an output row that share a scale; None: the whole row ("per channel").
    symmetric: whether zero points are fixed at the middle code.

    All linear layers of the blocks; embeddings, head and norms stay as they are.
    """

    bits: int
    group_size: int | None
    symmetric: bool

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Raises Unsupported for other bits, and for a group size that does not divide each layer's width."""
        if self.bits not in BITS:
            raise Unsupported(f"rtn has no {self.bits}-bit codes; bits that work: {', '.join(map(str, BITS))}")
        layers = float_linears(subject.model)
        affine.check_group_size(self.group_size, [architecture.weight(layer).shape[1] for layer in layers.values()])
        for name, layer in layers.items():
            weight = architecture.weight(layer)
            grid = affine.fit(weight, self.bits, self.group_size or weight.shape[1], self.symmetric)
            quantized = QuantizedLinear.of(grid.quantize(weight), grid, architecture.bias(layer), weight.dtype)
            architecture.replace(subject.model, name, quantized)
        return subject.claiming(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric)
