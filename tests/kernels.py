"""Techniques whose layers each run a kernel of their own: in all of them, what is honest differs by rounding alone."""

from __future__ import annotations

from squeeze.techniques.contract import Technique
from squeeze.techniques.quantization.bitsandbytes import Float4, LLMInt8
from squeeze.techniques.quantization.hqq import HQQ
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from squeeze.techniques.quantization.torchao import Int8 as TorchAO

KERNELS: tuple[Technique, ...] = (
    RoundToNearest(8, None, symmetric=True, embed_bits=8),
    HQQ(4, 32),
    KMeans(4, 16),
    TorchDynamic(per_channel=True, activation_bits=7),
    TorchAO(dynamic=True),
    LLMInt8(6.0),
    Float4("nf4", double_quant=True),
)
