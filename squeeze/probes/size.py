"""Weigh an artifact, from the file system and the headers of its safetensors files: no tensor is read.

Every file of its folder counts, for loading may read each of them: those that hold no tensors with the bytes by which
they outgrow the baseline's. So weights gain nothing by lying in a configuration, a description or a tokenizer.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from squeeze.artifacts import adapter, safetensors_header
from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError
from squeeze.core.files import total_bytes

TOKENIZER = re.compile(r"tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|spiece")
EMBEDDING = re.compile(r"(^|\.)(embed_tokens|embed_positions|embed_in|embeddings|wte|wpe)\.")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|cls)\.")
# What a low-bit or sparse layer stores beside its weights (our layers and bitsandbytes').
METADATA = re.compile(r"scale|zero|mask|offset|indices|codebook|absmax|quant_map|quant_state|SCB|weight_format")
NORM = re.compile(r"(?i:norm)|(^|\.)ln_\w+\.")
DESCRIBED = 1024  # bytes that describe one matrix: 200 to 350; of two packed factors and what joins them, 800
DESCRIBED_ONCE = 4096  # claims, a library's configuration, a generation configuration
COUNTED = 0.01  # of the parameters: buffers that are stored beside them


@dataclass(frozen=True)
class Stored:
    """Hold the name, the bytes and the shape of one tensor in a safetensors file."""

    name: str
    bytes: int
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> list[Stored]:
    """Return the tensors of all weight files in a folder, from their headers alone.

    Raises IntegrityError when a file is shorter or longer than its header says.
    """
    return [tensor for path in weight_files(folder) for tensor in _tensors(path)]


def weight_files(folder: Path) -> list[Path]:
    """Return the files of an artifact that hold its tensors: of the model and, where it has one, of its adapter."""
    return [*sorted(folder.glob("*.safetensors")), *folder.glob(f"{adapter.FOLDER}/{adapter.WEIGHTS}")]


def all_weight_files(folder: Path) -> list[Path]:
    """Return the files that hold an artifact's tensors, those of its draft among them."""
    return [*weight_files(folder), *weight_files(folder / artifact.DRAFT)]


def bytes_by_kind(folder: Path) -> dict[str, int]:
    """Return bytes on disk by kind; their sum is what all files of the artifact take.

    weights, metadata (scales, zeros, masks), embeddings, head, adapter (low-rank, beside its base), other (norms,
    biases), container (safetensors headers), tokenizer, config, draft (all files of the model that guesses).
    """
    tensors = stored_tensors(folder)
    kinds = Counter[str]()
    for tensor in tensors:
        kinds[_kind(tensor.name)] += tensor.bytes
    for path in artifact_files(folder):
        size = path.stat().st_size
        if path.is_relative_to(folder / artifact.DRAFT):
            kinds["draft"] += size
        elif path.suffix == ".safetensors":
            kinds["container"] += size
        else:
            kinds["tokenizer" if TOKENIZER.search(path.name) else "config"] += size
    kinds["container"] -= sum(tensor.bytes for tensor in tensors)
    return dict(kinds)


def artifact_files(folder: Path) -> list[Path]:
    """Return the files that make an artifact: all but the timings of its build, which the runner writes."""
    timings = {folder / name for name in artifact.UNHASHED}
    return sorted(path for path in folder.rglob("*") if path.is_file() and path not in timings)


def figures(folder: Path, baseline: Path) -> dict[str, Any]:
    """Return what the artifact in a folder weighs. baseline: the artifact of the same model before any compression.

    bytes: of the weight files, and of what other files hold beyond the baseline's; bytes_on_disk: of all files;
    parameters: of the baseline, counted; effective_bits: those bytes in bits per parameter, scales, masks and
    embeddings included; compression_ratio: to float32. Where there is an adapter beside its base: adapter_bytes, of all
    files of it, which are among the bytes; where there is a draft: draft_bytes, likewise.
    """
    parameters = stored_weights(baseline)
    weights = total_bytes(all_weight_files(folder)) + sum(growth(folder, baseline).values())
    guessing = total_bytes(path for path in artifact_files(folder) if path.is_relative_to(folder / artifact.DRAFT))
    beside = total_bytes(path for path in artifact_files(folder) if path.parent == folder / adapter.FOLDER)
    return {
        "bytes": weights,
        "bytes_on_disk": total_bytes(artifact_files(folder)),
        "bytes_by_kind": bytes_by_kind(folder),
        "parameters": parameters,
        "effective_bits": 8 * weights / parameters,
        "compression_ratio": 4 * parameters / weights,
        **({"adapter_bytes": beside} if beside else {}),
        **({"draft_bytes": guessing} if guessing else {}),
    }


def growth(folder: Path, baseline: Path) -> dict[str, int]:
    """Return the bytes by which each file outgrows the baseline's of the same name; weight files are left out."""
    weights = set(all_weight_files(folder))
    return {
        name: grown
        for path in artifact_files(folder)
        if path not in weights
        if (grown := path.stat().st_size - _size(baseline / (name := path.relative_to(folder).as_posix()))) > 0
    }


def stored_weights(folder: Path) -> int:
    """Count the numbers that an uncompressed artifact stores: its parameters, tied ones once."""
    return sum(math.prod(tensor.shape) for tensor in stored_tensors(folder))


def mismatches(folder: Path, baseline: Path, held: int) -> list[str]:
    """Return what an artifact's own files say wrongly of its size; nothing for an honest one.

    held: parameters of the model in it, which may have more than the baseline, or fewer.
    """
    found = []
    claimed, parameters = artifact.describe(folder)["parameters"], stored_weights(baseline)
    if min(abs(claimed - count) for count in (parameters, held)) > COUNTED * parameters:
        found.append(f"claimed {claimed:,} parameters, found {parameters:,} in the uncompressed model")
    grown = growth(folder, baseline)
    matrices = sum(len(tensor.shape) > 1 for tensor in stored_tensors(baseline))
    models = 2 if (folder / artifact.DRAFT).is_dir() else 1  # each has a configuration and a description
    expected = models * (DESCRIBED * matrices + DESCRIBED_ONCE)
    if sum(grown.values()) > expected:
        most = max(grown, key=lambda name: grown[name])
        found.append(
            f"files without tensors hold {sum(grown.values()):,} bytes beyond the uncompressed model's (most: {most}),"
            f" expected {expected:,} at the most: they count as weights"
        )
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _kind(name: str) -> str:
    """Return the kind of a stored tensor."""
    if name.startswith(adapter.PREFIX):
        return "adapter"
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
        described = {name: entry for name, entry in entries.items() if name != safetensors_header.METADATA}
        tensors = [_stored(name, entry) for name, entry in described.items()]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(
            f"{path.name}: no readable safetensors header ({error}); build the artifact again"
        ) from error
    expected, found = begin + sum(tensor.bytes for tensor in tensors), path.stat().st_size
    if found != expected:
        raise IntegrityError(f"{path.name}: {found} bytes, its header says {expected}; build the artifact again")
    yield from tensors


def _stored(name: str, entry: dict[str, Any]) -> Stored:
    start, end = entry["data_offsets"]
    return Stored(name, end - start, tuple(entry["shape"]))
