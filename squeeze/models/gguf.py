"""Convert GGUF into a folder of float32 safetensors with its tokenizer, which transformers reads as any other."""

from __future__ import annotations

import copy
import struct
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from squeeze.core.errors import IntegrityError
from squeeze.core.progress import progress
from squeeze.models.settings import quiet
from squeeze.sources.checkpoint import advice

MAGIC = b"GGUF"
HEADER = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of key-value pairs
SMALLEST_TENSOR = 24  # bytes that the description of a tensor takes at the least
SMALLEST_PAIR = 13  # and a key with its value

# What readers raise that are led astray by a damaged file.
UNREADABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

# The pre-tokenizers that transformers loses, by the name under which the GGUF states them (tokenizer.ggml.pre).
# Without Digits, a digit after white space gets other ids than llama.cpp (and the model's training) give it.
PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
}


def convert(source: Path, folder: Path) -> None:
    """Write the dequantised model and its repaired tokenizer to ``folder`` (float32 safetensors).

    Raises IntegrityError for a file that is no GGUF, is truncated, or holds what transformers cannot read.
    """
    _check_header(source)
    arguments: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    with progress(f"converting {source.name} to safetensors"), quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.parent, **arguments)
            repair(tokenizer, _pre_tokenizer_name(source))
            model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **arguments)
        except UNREADABLE as error:
            message = " ".join(str(error).split())[:200]
            raise IntegrityError(f"{source.name}: not a readable GGUF model ({message}); {advice(source)}") from error
        # These two say "quantized by gguf", which the weights no longer are; save_pretrained would refuse them.
        model.config = copy.deepcopy(model.config)
        del model.config.quantization_config
        del model.hf_quantizer
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def repair(tokenizer: PreTrainedTokenizerBase, pre_tokenizer_name: str) -> None:
    """Restore, in place, the pre-tokenizer that the conversion from GGUF loses (none for names not listed)."""
    if pre_tokenizer_name in PRE_TOKENIZERS:
        tokenizer.backend_tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre_tokenizer_name]()


def _check_header(source: Path) -> None:
    """Refuse, before the reader walks through it, a header that promises more than the file can hold."""
    size = source.stat().st_size
    with source.open("rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise IntegrityError(f"{source.name}: not a GGUF file (it begins with {header[:4]!r}, expected {MAGIC!r})")
    _, _, tensors, pairs = HEADER.unpack(header)
    needed = tensors * SMALLEST_TENSOR + pairs * SMALLEST_PAIR
    if needed > size:
        raise IntegrityError(f"{source.name}: header promises at least {needed} bytes, the file has {size}")


def _pre_tokenizer_name(source: Path) -> str:
    import gguf

    field = gguf.GGUFReader(source).get_field("tokenizer.ggml.pre")
    return "" if field is None else str(field.contents())
