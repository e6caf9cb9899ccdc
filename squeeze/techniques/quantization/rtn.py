"""Round to nearest: every weight to the closest code of its group's grid, without looking at data."""

from __future__ import annotations

from dataclasses import dataclass

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import float_linears
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.quantization import vocabulary

BITS = (8, 4, 3, 2)
RANGES = {"minmax": affine.fit, "mse": affine.search}


@dataclass(frozen=True)
class RoundToNearest:
    """q = round(r / s) + z (Jacob et al. 2018, arXiv:1712.05877, eq. 1); see ``squeeze.layers.affine`` for s and z.

    bits: 8, 4, 3 or 2. group_size: neighbours in an output row that share a scale; None: the whole row ("per channel").
    symmetric: whether zero points are fixed at the middle code. ranges: "minmax", each group's own, or "mse", shrunk to
    where the squared error is least. embed_bits: of the token embedding and the head, 8 or 4; None leaves them alone.

    All linear layers of the blocks; norms, and embeddings of positions, stay as they are.
    """

    bits: int
    group_size: int | None
    symmetric: bool
    ranges: str = "minmax"
    embed_bits: int | None = None

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Raises Unsupported for other bits or ranges, and for a group size that does not divide each layer's width."""
        if self.bits not in BITS:
            raise Unsupported(f"rtn has no {self.bits}-bit codes; bits that work: {', '.join(map(str, BITS))}")
        if self.ranges not in RANGES:
            raise Unsupported(f"rtn has no ranges {self.ranges!r}; expected {' or '.join(RANGES)}")
        layers = float_linears(subject.model)
        affine.check_group_size(self.group_size, [architecture.weight(layer).shape[1] for layer in layers.values()])
        if self.embed_bits is not None:
            vocabulary.check(subject.model, self.embed_bits, self.group_size)
            vocabulary.quantize(subject.model, self.embed_bits, self.group_size)
        for name, layer in layers.items():
            weight = architecture.weight(layer)
            grid = RANGES[self.ranges](weight, self.bits, self.group_size or weight.shape[1], self.symmetric)
            quantized = QuantizedLinear.of(grid.quantize(weight), grid, architecture.bias(layer), weight.dtype)
            architecture.replace(subject.model, name, quantized)
        claims = {} if self.embed_bits is None else {"embed_bits": self.embed_bits}
        return subject.claiming(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, **claims)
