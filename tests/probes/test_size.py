"""Bytes come from the file system, and every byte has one kind."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import size
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import ARCHITECTURES, tiny_subject


def block_rows(subject: Subject) -> list[tuple[int, int]]:
    """(width, number) of the rows of each matrix."""
    return [architecture.weight(layer).shape[::-1] for layer in architecture.block_linears(subject.model).values()]


def block_weights(subject: Subject) -> int:
    return sum(width * count for width, count in block_rows(subject))


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_kinds_add_up_to_the_folder(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    artifact.save(subject, tmp_path)
    kinds = size.bytes_by_kind(tmp_path)
    assert sum(kinds.values()) == on_disk(tmp_path) == size.figures(tmp_path, tmp_path)["bytes_on_disk"]
    assert kinds["weights"] == 4 * block_weights(subject) + (4 * 64 * 64 if name == "bert" else 0)  # BERT's pooler
    assert kinds["embeddings"] >= subject.model.get_input_embeddings().weight.nbytes


def test_timings_of_the_build_are_no_part_of_it(tmp_path: Path) -> None:
    artifact.save(tiny_subject("llama"), tmp_path)
    before = size.figures(tmp_path, tmp_path)
    (tmp_path / "build.json").write_text(json.dumps({"seconds": 1.0}))
    assert size.figures(tmp_path, tmp_path) == before


def test_codes_and_scales_are_told_apart(tmp_path: Path) -> None:
    subject = tiny_subject("llama", "bfloat16")
    weights, rows = block_weights(subject), block_rows(subject)
    artifact.save(RoundToNearest(3, 32, symmetric=False).apply(subject, CalibrationText.empty()), tmp_path)
    kinds = size.bytes_by_kind(tmp_path)
    assert kinds["weights"] == weights * 3 // 8
    zeros = sum(count * -(-width // 32 * 3 // 8) for width, count in rows)
    assert kinds["metadata"] == weights // 32 * 2 + zeros


def test_masks_are_metadata(tmp_path: Path) -> None:
    subject = tiny_subject("llama", "bfloat16")
    weights = block_weights(subject)
    artifact.save(Magnitude(0.75).apply(subject, CalibrationText.empty()), tmp_path)
    kinds = size.bytes_by_kind(tmp_path)
    assert kinds["metadata"] == weights // 8
    assert kinds["weights"] == weights // 4 * 2


def test_effective_bits_count_everything_that_is_stored(tmp_path: Path) -> None:
    artifact.save(tiny_subject("llama", "bfloat16"), tmp_path)
    found = size.figures(tmp_path, tmp_path)
    weight_file = (tmp_path / "model.safetensors").stat().st_size
    assert found["bytes"] == weight_file
    assert found["effective_bits"] == 8 * weight_file / found["parameters"] > 16
    assert found["compression_ratio"] == 4 * found["parameters"] / weight_file < 2


def test_headers_tell_the_size_without_reading_tensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.uint8)}, tmp_path / "x.safetensors")
    assert {tensor.name: tensor.bytes for tensor in size.stored_tensors(tmp_path)} == {"a": 60, "b": 7}


def test_a_truncated_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(IntegrityError, match="its header says"):
        size.stored_tensors(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError):
        size.stored_tensors(tmp_path)
