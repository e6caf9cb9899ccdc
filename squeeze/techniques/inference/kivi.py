"""KIVI: what attention keeps of earlier tokens in few bits, keys grouped per channel and values per token.

Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache"
(arXiv:2402.02750). Some channels of the keys are large for all tokens, so a scale of their own keeps the others sharp;
values have no such channels, and a token's error stays with the token (section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration

BITS = (8, 4, 2)


@dataclass(frozen=True)
class KIVI:
    """The weights stay as they are; generation, and scoring with it, goes through a quantized cache.

    bits: 8, 4 or 2. group_size: tokens that share a scale in each channel of the keys, and channels of a token that
    share one in the values (all of a head's, where it has fewer); a multiple of 8. The paper's G is 32. Tokens wait in
    the model's dtype until they fill a group, so at most group_size - 1 do (the paper's residual R, there 128).
    """

    bits: int
    group_size: int

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Raises Unsupported for other bits or groups, and for a model that keeps no keys and values of all tokens."""
        if self.bits not in BITS:
            raise Unsupported(f"kv_cache has no {self.bits}-bit codes; bits that work: {', '.join(map(str, BITS))}")
        architecture.head(subject.model)
        config: Any = subject.model.config
        if self.group_size < 8 or self.group_size % 8:
            raise Unsupported(f"kv_cache cannot pack groups of {self.group_size} tokens; expected a multiple of 8")
        plain = DynamicCache(config=config)
        if any(type(layer) is not DynamicLayer for layer in plain.layers):
            raise Unsupported(
                f"{type(subject.model).__name__} forgets tokens by itself; expected attention to all of them"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if head_dim % min(self.group_size, head_dim):
            raise Unsupported(
                f"kv_cache: group_size {self.group_size} does not divide the {head_dim} channels of a head"
            )
        return subject.claiming(kv_cache={"bits": self.bits, "group_size": self.group_size})
