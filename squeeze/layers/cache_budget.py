"""Say how many tokens a cache holds that forgets some, and how many of a text may be read at a time."""

from __future__ import annotations

from dataclasses import dataclass

from squeeze.core.errors import SqueezeError


@dataclass(frozen=True)
class Budget:
    """Hold how many tokens a cache has room for, and how many it forgets at a time.

    tokens: the most that are ever held, those that are being read among them; a multiple of piece. piece: tokens of a
    text, counted from its beginning, behind whose last one as many are forgotten, where the next ones would find no
    room. So what a token sees hangs on its place in the text alone: reading the tokens of a piece together, or one
    after the other, is the same.
    """

    tokens: int
    piece: int

    def held(self, read: int) -> int:
        """Return how many tokens are held behind so many that were read."""
        return min(read, self.tokens - self.piece + read % self.piece)

    def check(self, read: int, coming: int) -> None:
        """Raise SqueezeError where more tokens come at once than are left of the piece that has begun."""
        left = self.piece - read % self.piece
        if coming > left:
            raise SqueezeError(
                f"{coming} tokens at once behind {read}, expected at most {left}: none may see what it would not have"
                f" seen, had it come alone; read {self.piece} at a time"
            )
