"""Compute the physical limits of a machine, and a model's speed as a share of them. No torch import.

Decode of one sequence reads every weight once per token, so it cannot be faster than read bandwidth / bytes touched;
prefill is bound by matrix products. The limits are measured by squeeze.probes.peaks, once per session.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Machine:
    """Hold a machine's limits.

    read_bandwidth: bytes/s; matmul: dtype name -> operations/s (a multiply-add counts two).
    """

    threads: int
    read_bandwidth: float
    matmul: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a record's environment."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Machine":
        """Return the machine that `to_json` described."""
        return cls(**data)


def mbu(tokens_per_s: float, bytes_per_token: float, bandwidth: float) -> float:
    """Return model bandwidth utilisation: bytes that decoding really reads each second / read bandwidth (bytes/s)."""
    return tokens_per_s * bytes_per_token / bandwidth


def mfu(seconds: float, operations: float, peak: float) -> float:
    """Return model arithmetic utilisation: operations / seconds / peak operations/s."""
    return operations / seconds / peak


def prefill_operations(
    *, block_weights: int, head_weights: int, attention_width: float, layers: int, tokens: int, batch: int = 1
) -> float:
    """Return multiply-adds x 2 of one prefill that applies the head to the last position only.

    block_weights: logical weights of all linear layers in the blocks; attention_width: heads x head size, the mean of
    all blocks.
    Causal attention: query-key and weights-value products, 2 tokens^2 x width each, of which one half is masked.
    """
    linear = 2 * block_weights * tokens
    attention = 2 * layers * attention_width * tokens**2
    return float(batch * (linear + attention + 2 * head_weights))
