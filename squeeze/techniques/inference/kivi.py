"""Quantize the KV cache (KIVI): keep earlier tokens in few bits, keys grouped per channel and values per token.

Liu, Yuan, Jin, Zhong, Xu, Braverman, Chen, Hu 2024, "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache"
(arXiv:2402.02750). Some channels of the keys are large for all tokens, so a scale of their own keeps the others sharp;
values have no such channels, and a token's error stays with the token (section 3.2).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Literal

from squeeze.core.errors import Unsupported
from squeeze.layers.kv_cache import QuantizedCache
from squeeze.models.architecture import text_config
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.inference.plain_cache import check_plain_cache

BITS = (8, 4, 2)


@dataclass(frozen=True)
class KIVI:
    """Quantize the KV cache that generation, and scoring with it, go through; keep the weights as they are.

    bits: 8, 4 or 2. group_size: tokens that share a scale in each channel of the keys, and channels of a token that
    share one in the values (all of a head's, where it has fewer); a multiple of 8. The paper's G is 32.
    residual: R, the newest tokens whose keys and values stay in the model's dtype; a multiple of group_size. The
    paper's is 128; with 0, tokens wait only until they fill a group.

    Of n tokens, Algorithm 1 keeps n mod R keys and the newest R values: R keys are rounded together once there are R,
    values one token at a time, and the token that completes R keys sees them rounded, its own among them. Here keys and
    values leave the residual a group at a time, after they have been attended to: at least the newest R of both, and at
    most R + group_size - 1, are as they were. So there is no moment without a residual, and what a token sees changes
    at the end of a group only: text is scored a group at a time with exactly what generation sees. It costs memory:
    R + (group_size - 1) / 2 tokens in the model's dtype on average, Algorithm 1 has R / 2 keys and R values.
    """

    bits: Literal[8, 4, 2]
    group_size: int
    residual: int = 0

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:  # noqa: ARG002 - it reads no data
        """Return the subject with a quantized KV cache.

        Raises Unsupported for other bits, groups or residuals, and as ``check_plain_cache`` does.
        """
        if self.bits not in BITS:
            raise Unsupported(f"kv_cache has no {self.bits}-bit codes; bits that work: {', '.join(map(str, BITS))}")
        check_plain_cache(subject, "kv_cache")
        config = text_config(subject.model)
        if self.group_size < 8 or self.group_size % 8:
            raise Unsupported(f"kv_cache cannot pack groups of {self.group_size} tokens; expected a multiple of 8")
        if self.residual < 0 or self.residual % self.group_size:
            raise Unsupported(
                f"kv_cache rounds whole groups of {self.group_size} tokens; expected residual, {self.residual}, to be a"
                " multiple of that"
            )
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        if head_dim % min(self.group_size, head_dim):
            raise Unsupported(
                f"kv_cache: group_size {self.group_size} does not divide the {head_dim} channels of a head"
            )
        return replace(subject, cache=QuantizedCache(**asdict(self))).claiming(kv_cache=asdict(self))
