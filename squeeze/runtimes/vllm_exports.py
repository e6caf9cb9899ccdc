"""Choose what vLLM reads of an artifact: the folder itself, or the format of packed weights that it has kernels for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from squeeze.core.errors import Unsupported

PACKED, GPTQ = "compressed-tensors", "gptq"
CODES = "quantized.QuantizedLinear"  # the layers that both formats hold
# By format, and whether its grid is symmetric, the bits of codes that vLLM has kernels for.
BITS: Mapping[tuple[str, bool], tuple[int, ...]] = {
    (PACKED, True): (2, 3, 4, 5, 6, 7, 8),
    (PACKED, False): (4, 8),
    (GPTQ, True): (4, 8),
}
# Of these the blocks are of Conv1D, in whose place compressed-tensors has no layer.
TRANSPOSED = ("GPT2LMHeadModel",)
LANGUAGE = ("ForCausalLM", "LMHeadModel")  # how transformers calls models that predict tokens
# What an artifact may have that vLLM, which makes the model of its configuration, knows nothing of.
UNKNOWN: Mapping[str, str] = {
    "form": "a form of its own (sliced hidden states, pruned pictures)",
    "own_sizes": "blocks with sizes of their own",
    "shared": "layers that stand in several places",
    "cache": "a cache of keys and values of its own",
    "adapter": "an adapter beside its weights",
}


def chosen(description: Mapping[str, Any]) -> str | None:
    """Return the format to export to, or None for an artifact whose own folder is read as it is.

    description: what ``artifact.json`` says. Packed codes go to compressed-tensors, those of GPT-2 to GPTQ. Raises
    Unsupported for all that neither format, or no kernel, holds, with what would work.
    """
    architecture, dtype, layers = description["architecture"], description["dtype"], description["layers"]
    if not architecture.endswith(LANGUAGE):
        raise Unsupported(f"vllm is for models that predict tokens here, found {architecture}; use runtime=eager")
    if description["loader"] != "squeeze":
        raise Unsupported("its weights lie as transformers writes them, for its own kernels; use rtn, gptq or awq")
    for part, words in UNKNOWN.items():
        if description.get(part):
            raise Unsupported(f"it has {words}, which vllm knows nothing of; use runtime=eager")
    if not layers:
        return None
    kinds = sorted({spec["_target_"] for spec in layers.values()} - {CODES})
    if kinds:
        raise Unsupported(f"it has layers {kinds[0]}, expected {CODES} alone: use rtn, gptq or awq")
    if heads := [name for name in layers if "." not in name]:
        raise Unsupported(f"its head {heads[0]} is packed, which vllm multiplies with in floats; use embed_bits=null")
    if dtype == "float32":
        raise Unsupported("vllm multiplies packed codes in 16 bits, found float32; use dtype=bfloat16 or float16")
    return _format(architecture, layers)


def _format(architecture: str, layers: Mapping[str, Mapping[str, Any]]) -> str:
    form = GPTQ if architecture in TRANSPOSED else PACKED
    for name, spec in layers.items():
        if spec.get("real_zeros"):
            raise Unsupported(
                f"{name} has zero points that are no whole numbers, which {form} has no place for; use rtn"
            )
        known = BITS.get((form, bool(spec["symmetric"])), ())
        if spec["bits"] not in known:
            grid = "symmetric" if spec["symmetric"] else "asymmetric"
            has = f"those of {', '.join(map(str, known))}" if known else "symmetric ones alone"
            raise Unsupported(f"vllm has no kernel for {grid} codes of {spec['bits']} bits in {form}; it has {has}")
    return form
