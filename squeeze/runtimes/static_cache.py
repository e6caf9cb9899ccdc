"""Keep the keys and values of all blocks in tensors that are made once, for texts whose longest is known beforehand.

A cache that grows copies all that it holds for each token. Here a token's keys and values are written to their place,
and what is read is a view of what was written so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Seen = tuple[Tensor, Tensor]  # keys and values, each (rows, heads, tokens, channels)


@dataclass(frozen=True)
class KeysAndValues:
    """Hold keys and values of some texts, in every block.

    tensors: (blocks, rows, positions, 2 * heads, channels), the keys' heads first; blocks with as many heads share one.
    places: of each block, the number of its tensor, and its own place in it.
    """

    tensors: tuple[Tensor, ...]
    places: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, heads: Sequence[int], rows: int, positions: int, channels: int, like: Tensor) -> KeysAndValues:
        """Make an empty cache. heads: of keys, and of values, in each block. like: of its dtype and device."""
        kinds = list(dict.fromkeys(heads))
        shapes = [(heads.count(kind), rows, positions, 2 * kind, channels) for kind in kinds]
        places = [(kinds.index(own), heads[:block].count(own)) for block, own in enumerate(heads)]
        return cls(tuple(like.new_empty(shape) for shape in shapes), tuple(places))

    @property
    def positions(self) -> int:
        """Return the most tokens that there is room for."""
        return self.tensors[0].shape[2]

    @property
    def nbytes(self) -> int:
        """Count the bytes that it takes, whether they are written to or not."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def slots(self, start: int, stop: int) -> list[Tensor]:
        """Return where each block writes these tokens: (rows, stop - start, 2 * heads, channels).

        Raises IndexError where there is no room for them.
        """
        if stop > self.positions:
            raise IndexError(f"there is room for {self.positions} tokens, {stop} are asked for; begin(positions=...)")
        cut = [tensor[:, :, start:stop].unbind(0) for tensor in self.tensors]
        return [cut[number][at] for number, at in self.places]

    def seen(self, stop: int) -> list[Seen]:
        """Return what each block reads of the first ``stop`` tokens."""
        cut = []
        for tensor in self.tensors:
            keys, values = tensor[:, :, :stop].transpose(2, 3).chunk(2, dim=2)
            cut.append(list(zip(keys.unbind(0), values.unbind(0), strict=True)))
        return [cut[number][at] for number, at in self.places]
