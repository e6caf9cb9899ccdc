"""Round to nearest: every weight to the closest code of its group's grid, without looking at data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from squeeze.core.errors import Unsupported
from squeeze.layers import affine
from squeeze.layers.contract import float_linears
from squeeze.layers.quantized import put
from squeeze.layers.sparse_packed import leave_zeros_out
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.quantization import vocabulary
from squeeze.techniques.quantization.vocabulary import RANGES


@dataclass(frozen=True)
class RoundToNearest:
    """Round to q = round(r / s) + z (Jacob et al. 2018, arXiv:1712.05877, eq. 1); for s and z see ``layers.affine``.

    bits: 8, 4, 3 or 2. group_size: neighbours in an output row that share a scale; None: the whole row ("per channel").
    symmetric: whether zero points are fixed at the middle code. grid: where they are, "signed" or "absmax". ranges:
    "minmax", each group's own, or "mse", shrunk to where the squared error is least.
    embed_bits: of the token embedding and the head, 8 or 4; None leaves them alone. embed_ranges: theirs; "mse" where
    nothing is said, which is how every table was rounded before there was a choice.
    zeros_left_out: whether weights that are zero, pruned or rounded, are stored as a bit each instead of a code, in
    layers where that takes fewer bytes.

    All linear layers of the blocks; norms, and embeddings of positions, stay as they are.
    """

    bits: Literal[8, 4, 3, 2]
    group_size: int | None
    symmetric: bool
    ranges: Literal["minmax", "mse"] = "minmax"
    embed_bits: Literal[8, 4] | None = None
    embed_ranges: Literal["minmax", "mse"] = "mse"
    grid: Literal["signed", "absmax"] = "signed"
    zeros_left_out: bool = False

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the compressed subject.

        Raises Unsupported for other bits, ranges or grids, and for a group size that does not divide each width.
        """
        model = subject.model
        for ranges in (self.ranges, self.embed_ranges):
            if ranges not in RANGES:
                raise Unsupported(f"rtn has no ranges {ranges!r}; expected {' or '.join(RANGES)}")
        names = float_linears(model)
        affine.check("rtn", self.bits, self.group_size, map(model.get_submodule, names), self.grid)
        vocabulary.check(model, self.embed_bits, self.group_size)
        for name in names:
            weight = architecture.weight(model.get_submodule(name))
            grid = RANGES[self.ranges](weight, self.bits, self.group_size or weight.shape[1], self.symmetric, self.grid)
            put(model, name, grid.quantize(weight), grid)
        if self.zeros_left_out:
            leave_zeros_out(model)
        claims = vocabulary.quantize(model, self.embed_bits, self.group_size, self.embed_ranges)
        return subject.claiming(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric, **claims)
