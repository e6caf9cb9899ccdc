"""Keep the tokens that have been attended to most since they came, the heavy hitters, and the newest ones (H2O).

Zhang, Sheng, Zhou, Chen, Zheng, Cai, Song, Tian, Re, Barrett, Wang, Chen 2023, "H2O: Heavy-Hitter Oracle for Efficient
Generative Inference of Large Language Models" (arXiv:2306.14048).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from squeeze.core.errors import Unsupported
from squeeze.layers.attended_cache import AttendedCache
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.inference.evicting import PIECE, check_evicting


@dataclass(frozen=True)
class HeavyHitters:
    """Keep the keys and values of the tokens of the greatest attention, summed over all later tokens so far.

    cache_tokens: the most that the cache ever holds. recent_share: of what is kept, the newest tokens; the paper's is a
    half. piece: tokens that are forgotten at a time, counted from the text's beginning; Algorithm 1 forgets one.

    Each head of keys and values keeps its own; the heads of queries that share it are summed. Positions are those of
    the text.
    """

    cache_tokens: int
    recent_share: float = 0.5
    piece: int = PIECE

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject with such a cache.

        Raises Unsupported for sizes that do not fit one another, and as ``check_evicting`` does.
        """
        if not 0 <= self.recent_share < 1:
            raise Unsupported(f"h2o cannot keep a share of {self.recent_share} for the newest; expected 0 to below 1")
        recent = round(self.recent_share * (self.cache_tokens - self.piece))
        check_evicting(subject, "h2o", self.cache_tokens, self.piece, recent)
        cache = AttendedCache(self.cache_tokens, recent, self.piece, voters=self.piece, pooled=1, anew=False)
        return replace(subject, cache=cache).claiming(kv_cache=asdict(self))
