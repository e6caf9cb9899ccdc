"""Lay weights that multiply the same inputs side by side, in one layout: one call of a kernel where there were several.

Nothing is copied for good. The joined layout takes the place of those that it was made of, and each layer then holds
its own rows of it, as a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from squeeze.layers.kernels import Int4Layout, Int8Layout, Layout


@dataclass(frozen=True)
class Part:
    """Hold the output rows ``start`` to ``stop`` of a layout, for the one of its layers whose rows they are.

    Its products are the whole layout's, cut: right, and slower than those of a layout of its own.
    """

    whole: Layout
    start: int
    stop: int

    def multiply(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs times W^T; see ``Layout``."""
        return self.whole.multiply(inputs)[:, self.start : self.stop]

    def dequantize(self, start: int, stop: int) -> torch.Tensor:
        """Return a range of output rows as floats; see ``Layout``."""
        return self.whole.dequantize(self.start + start, self.start + stop)

    def rows(self, numbers: torch.Tensor) -> torch.Tensor:
        """Return single output rows as floats; see ``Layout``."""
        return self.whole.rows(numbers + self.start)

    @property
    def codes_bytes(self) -> int:
        """Return the bytes that the codes take; see ``Layout``."""
        return self.whole.codes_bytes * (self.stop - self.start) // rows_of(self.whole)

    def tensors(self) -> list[torch.Tensor]:
        """Return views of its rows in all tensors of the whole layout; see ``Layout``."""
        rows = slice(self.start, self.stop)
        if isinstance(self.whole, Int4Layout):  # scales and zero points lie group by group
            planes, others = self.whole.planes, self.whole.tensors()[len(self.whole.planes) :]
            return [*(plane[rows] for plane in planes), *(each[:, rows] for each in others)]
        return [tensor[rows] for tensor in self.whole.tensors()]


def joined(layouts: Sequence[Layout]) -> Layout | None:
    """Return the layout of several, one below the other; None where no kernel takes them together.

    All have the same in_features. Layouts that are the parts of one, in order, are that one.
    """
    if all(isinstance(each, Part) for each in layouts):
        return _whole(layouts)  # type: ignore[arg-type]
    if all(isinstance(each, Int8Layout) for each in layouts):
        return _int8(layouts)  # type: ignore[arg-type]
    if all(isinstance(each, Int4Layout) for each in layouts):
        return _int4(layouts)  # type: ignore[arg-type]
    return None


def rows_of(layout: Layout) -> int:
    """Return how many output rows a layout has, its padding among them."""
    return len(layout.tensors()[0])


def _whole(parts: Sequence[Part]) -> Layout | None:
    whole = parts[0].whole
    ends = [0, *(part.stop for part in parts)]
    follow = all(part.start == end for part, end in zip(parts, ends, strict=False))
    return whole if follow and ends[-1] == rows_of(whole) and all(part.whole is whole for part in parts) else None


def _int8(layouts: Sequence[Int8Layout]) -> Int8Layout:
    codes, scales = (torch.cat([getattr(each, name) for each in layouts]) for name in ("codes", "scales"))
    return Int8Layout(codes, scales, layouts[0].in_features)


def _int4(layouts: Sequence[Int4Layout]) -> Int4Layout | None:
    """Join layouts of as many planes and groups, none padded: a block of the kernel must not hold rows of two."""
    zeros = [each.zeros for each in layouts]
    tensors = [each for each in zeros if isinstance(each, torch.Tensor)]
    points = [each.dtype if isinstance(each, torch.Tensor) else each for each in zeros]
    kinds = {(len(each.planes), each.group_size, point) for each, point in zip(layouts, points, strict=True)}
    if len(kinds) > 1 or any(rows_of(each) != each.out_features for each in layouts):
        return None
    first = layouts[0]
    return Int4Layout(
        tuple(torch.cat(planes) for planes in zip(*(each.planes for each in layouts), strict=True)),
        tuple(torch.cat(grids, dim=1) for grids in zip(*(each.grids for each in layouts), strict=True)),
        torch.cat(tensors, dim=1) if tensors else first.zeros,
        first.group_size,
        sum(each.out_features for each in layouts),
    )
