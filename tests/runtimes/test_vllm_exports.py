"""Which folder vLLM reads of which artifact: by the artifacts themselves, and the exporters that must not refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
from squeeze.artifacts.exports.gptq import to_gptq
from squeeze.core.errors import Unsupported
from squeeze.runtimes.vllm_exports import chosen
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.fastv import FastV
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.kmeans import KMeans
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from tests.tiny import tiny_subject

NO_TEXT = CalibrationText.empty()
EXPORTERS = {"compressed-tensors": to_compressed_tensors, "gptq": to_gptq}


def described(folder: Path, name: str, *steps: Any, dtype: str = "bfloat16") -> dict[str, Any]:
    subject = tiny_subject(name, dtype)
    for step in steps:
        subject = step.apply(subject, NO_TEXT)
    artifact.save(subject, folder / "artifact")
    return artifact.describe(folder / "artifact")


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gpt_neox"])
def test_floats_are_read_as_they_lie(name: str, tmp_path: Path) -> None:
    assert chosen(described(tmp_path, name)) is None


@pytest.mark.parametrize(
    ("name", "step", "expected"),
    [
        ("llama", RoundToNearest(4, 32, symmetric=True), "compressed-tensors"),
        ("llama", RoundToNearest(3, 32, symmetric=True), "compressed-tensors"),
        ("llama", RoundToNearest(8, None, symmetric=True), "compressed-tensors"),
        ("llama", RoundToNearest(4, 32, symmetric=False), "compressed-tensors"),
        ("gpt2", RoundToNearest(4, 32, symmetric=True), "gptq"),
        ("gpt2", RoundToNearest(8, 32, symmetric=True), "gptq"),
    ],
)
def test_packed_codes_go_to_a_format_that_holds_them(name: str, step: Any, expected: str, tmp_path: Path) -> None:
    assert chosen(described(tmp_path, name, step)) == expected
    EXPORTERS[expected](tmp_path / "artifact", tmp_path / "exported")
    assert (tmp_path / "exported" / "config.json").is_file()


@pytest.mark.parametrize(
    ("name", "steps", "dtype", "reason"),
    [
        ("bert", [], "bfloat16", "for models that predict tokens here, found BertModel"),
        ("llava", [], "bfloat16", "found LlavaForConditionalGeneration; use runtime=eager"),
        ("llama", [KIVI(4, 8)], "bfloat16", "a cache of keys and values of its own, which vllm knows nothing of"),
        ("llama", [SharedBlocks(2)], "bfloat16", "layers that stand in several places"),
        ("llama", [KMeans(4, 16)], "bfloat16", "it has layers codebook.* expected quantized.QuantizedLinear alone"),
        ("llama", [RoundToNearest(4, 32, True)], "float32", "multiplies packed codes in 16 bits, found float32"),
        (
            "llama",
            [RoundToNearest(3, 32, False)],
            "bfloat16",
            "asymmetric codes of 3 bits in compressed-tensors; .* 4, 8",
        ),
        ("gpt2", [RoundToNearest(3, 32, True)], "bfloat16", "symmetric codes of 3 bits in gptq; it has those of 4, 8"),
        ("gpt2", [RoundToNearest(4, 32, False)], "bfloat16", "codes of 4 bits in gptq; it has symmetric ones alone"),
    ],
)
def test_what_no_kernel_holds_is_refused_in_words(
    name: str, steps: list[Any], dtype: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(Unsupported, match=reason):
        chosen(described(tmp_path, name, *steps, dtype=dtype))


def test_zeros_and_pictures_and_a_librarys_own_format(tmp_path: Path) -> None:
    """Zeros in packed layers of their own; a form; and what transformers has written, by its description alone."""
    with pytest.raises(Unsupported, match="it has layers sparse"):
        chosen(described(tmp_path / "sparse", "llama", Magnitude(0.5)))
    plain = described(tmp_path / "plain", "llama")
    with pytest.raises(Unsupported, match="as transformers writes them, for its own kernels; use rtn"):
        chosen({**plain, "loader": "transformers"})
    pictures = described(tmp_path / "pictures", "llava", FastV(0.5))
    with pytest.raises(Unsupported, match=r"a form of its own \(sliced hidden states, pruned pictures\)"):
        chosen({**pictures, "architecture": "LlamaForCausalLM"})
