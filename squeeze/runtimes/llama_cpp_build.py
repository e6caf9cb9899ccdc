"""Say how llama.cpp is built: for the processor that is here but for AMX, in whose code its builds have crashed.

It is read when the environment is made, and when a row is fingerprinted. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PROCESSOR = Path("/proc/cpuinfo")
# Of each option of ggml's build, what the processor has to have for it, as Linux calls it.
INSTRUCTIONS: Mapping[str, frozenset[str]] = {
    "GGML_SSE42": frozenset({"sse4_2"}),
    "GGML_AVX": frozenset({"avx"}),
    "GGML_AVX2": frozenset({"avx2"}),
    "GGML_BMI2": frozenset({"bmi2"}),
    "GGML_FMA": frozenset({"fma"}),
    "GGML_F16C": frozenset({"f16c"}),
    "GGML_AVX_VNNI": frozenset({"avx_vnni"}),
    "GGML_AVX512": frozenset({"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}),
    "GGML_AVX512_VBMI": frozenset({"avx512vbmi"}),
    "GGML_AVX512_VNNI": frozenset({"avx512_vnni"}),
    "GGML_AVX512_BF16": frozenset({"avx512_bf16"}),
}


def build_flags() -> Mapping[str, str]:
    """Return the environment variables with which pip builds the library for the processor that is here.

    On one that is not of the x86 family, ggml finds out for itself what it can use.
    """
    has = _instructions()
    options = {name: needed <= has for name, needed in INSTRUCTIONS.items()}
    if not any(options.values()):
        return {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}
    options |= {"GGML_NATIVE": False, "LLAVA_BUILD": False}
    flags = (f"-D{name}={'ON' if wanted else 'OFF'}" for name, wanted in sorted(options.items()))
    return {"CMAKE_ARGS": " ".join(flags)}


def _instructions() -> frozenset[str]:
    try:
        lines = PROCESSOR.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())
