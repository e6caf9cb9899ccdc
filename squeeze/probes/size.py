"""Weigh an artifact, from the file system and the headers of its safetensors files: no tensor is read."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squeeze.artifacts import format as artifact
from squeeze.artifacts import safetensors_header
from squeeze.core.errors import IntegrityError
from squeeze.core.files import total_bytes

TOKENIZER = re.compile(r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|spiece")
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_positions|embed_in|embeddings|wte|wpe)\.")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|cls)\.")
# What a low-bit or sparse layer stores beside its weights (our layers and bitsandbytes').
METADATA = re.compile(r"scale|zero|mask|offset|indices|codebook|absmax|quant_map|quant_state|SCB|weight_format")
NORM = re.compile(r"(?i:norm)|(^|\.)ln_\w+\.")


@dataclass(frozen=True)
class Stored:
    """Hold the name and bytes of one tensor in a safetensors file."""

    name: str
    bytes: int


def stored_tensors(folder: Path) -> list[Stored]:
    """Return the tensors of all *.safetensors files in a folder, from their headers alone.

    Raises IntegrityError when a file is shorter or longer than its header says.
    """
    return [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in _tensors(path)]


def bytes_by_kind(folder: Path) -> dict[str, int]:
    """Return bytes on disk by kind; their sum is what all files of the artifact take.

    weights, metadata (scales, zeros, masks), embeddings, head, other (norms, biases), container (safetensors headers),
    tokenizer, config.
    """
    tensors = stored_tensors(folder)
    kinds = Counter[str]()
    for tensor in tensors:
        kinds[_kind(tensor.name)] += tensor.bytes
    for path in artifact_files(folder):
        size = path.stat().st_size
        if path.suffix == ".safetensors":
            kinds["container"] += size
        else:
            kinds["tokenizer" if TOKENIZER.search(path.name) else "config"] += size
    kinds["container"] -= sum(tensor.bytes for tensor in tensors)
    return dict(kinds)


def artifact_files(folder: Path) -> list[Path]:
    """Return the files that make an artifact."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in artifact.UNHASHED)


def figures(folder: Path) -> dict[str, Any]:
    """Return what the artifact in a folder weighs.

    bytes: of the weight files; bytes_on_disk: of all files; effective_bits: stored bits per parameter, scales, masks
    and embeddings included; compression_ratio: to float32. Parameters are those of the model before any compression.
    """
    parameters = artifact.describe(folder)["parameters"]
    weights = total_bytes(folder.glob("*.safetensors"))
    return {
        "bytes": weights,
        "bytes_on_disk": total_bytes(artifact_files(folder)),
        "bytes_by_kind": bytes_by_kind(folder),
        "parameters": parameters,
        "effective_bits": 8 * weights / parameters,
        "compression_ratio": 4 * parameters / weights,
    }


def _kind(name: str) -> str:
    """Return the kind of a stored tensor."""
    if EMBEDDING.search(name):
        return "embeddings"
    if HEAD.search(name):
        return "head"
    if METADATA.search(name.rpartition(".")[2]) or METADATA.search(name.rpartition("weight.")[2]):
        return "metadata"
    return "other" if name.endswith("bias") or NORM.search(name) else "weights"


def _tensors(path: Path) -> Iterator[Stored]:
    """Yield the tensors of one file."""
    try:
        entries, begin = safetensors_header.read(path)
        spans = {name: entry["data_offsets"] for name, entry in entries.items() if name != safetensors_header.METADATA}
        tensors = [Stored(name, end - start) for name, (start, end) in spans.items()]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path.name}: no readable safetensors header ({error}); build the artifact again"
        ) from error
    expected, found = begin + sum(tensor.bytes for tensor in tensors), path.stat().st_size
    if found != expected:
        raise IntegrityError(f"{path.name}: {found} bytes, its header says {expected}; build the artifact again")
    yield from tensors
