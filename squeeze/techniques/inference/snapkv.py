"""Keep the tokens of a prompt that its last ones attend to most (SnapKV).

Li, Huang, Yang, Venkitesh, Locatelli, Ye, Cai, Lewis, Chen 2024, "SnapKV: LLM Knows What You are Looking for Before
Generation" (arXiv:2404.14469).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from squeeze.core.errors import Unsupported
from squeeze.layers.attended_cache import AttendedCache
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.inference.evicting import PIECE, check_evicting


@dataclass(frozen=True)
class SnapKV:
    """Keep the keys and values that an observation window of the newest tokens attends to most, and the window itself.

    cache_tokens: the most that the cache ever holds. window: tokens that vote with their attention and are kept, at
    most a piece. pooled: neighbours over which votes are averaged, so that what stands around a token stays with it
    (section 4.2); an odd number. piece: tokens of the text behind which is chosen anew.

    Each head of keys and values chooses for itself; the heads of queries that share it vote together. In the paper a
    prompt attends to all of itself, is cut down once, and then grows with what is generated. Here a text is cut down
    whenever the cache is full, a prompt and what follows it alike, so that scored text sees what generated text sees,
    and no prompt takes more memory than the cache has.
    """

    cache_tokens: int
    window: int = 32
    pooled: int = 5
    piece: int = PIECE

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject with such a cache.

        Raises Unsupported for sizes that do not fit one another, and as ``check_evicting`` does.
        """
        if self.pooled < 1 or self.pooled % 2 == 0:
            raise Unsupported(f"snapkv cannot average over {self.pooled} neighbours; expected an odd number")
        if not 0 < self.window <= self.piece:
            raise Unsupported(
                f"snapkv lets the last {self.window} of {self.piece} tokens vote; expected 1 to {self.piece}"
            )
        check_evicting(subject, "snapkv", self.cache_tokens, self.piece, self.window)
        cache = AttendedCache(
            self.cache_tokens, self.window, self.piece, voters=self.window, pooled=self.pooled, anew=True
        )
        return replace(subject, cache=cache).claiming(kv_cache=asdict(self))
