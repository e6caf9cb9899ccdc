"""FastV: what it gives a subject, what of it an artifact keeps, and what it refuses. The form is tested with layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.compressed_tensors import to_compressed_tensors
from squeeze.core.errors import Unsupported
from squeeze.layers.visual_pruning import VisualPruning
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.pictured import pictured
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.fastv import FastV
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

NO_TEXT = CalibrationText.empty()
PROMPT = torch.randint(256, (2, 11), generator=torch.Generator().manual_seed(0))
ROUND = RoundToNearest(4, 32, symmetric=True)
WHOLE, LEFT = 1 + 36 + 11, 1 + 18 + 11  # tokens of a prompt, with all of its picture and with half of it


def pruned(dtype: str = "float32") -> Subject:
    return FastV(0.5).apply(tiny_subject("llava", dtype), NO_TEXT)


@torch.inference_mode()
def outputs(subject: Subject) -> torch.Tensor:
    """Of a prompt behind a picture: those of the tokens that stay."""
    return pictured(subject.model)(PROMPT).logits.float()


def held(subject: Subject) -> list[int]:
    """Tokens in the cache of each block once the prompt is read."""
    generation: Any = Eager("cpu", 1).engine(subject).begin(20)
    generation.prefill(PROMPT)
    return [layer.get_seq_length() for layer in generation.cache.layers]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_computes_the_same_after_saving_and_loading(dtype: str, tmp_path: Path) -> None:
    subject = pruned(dtype)
    artifact.save(subject, tmp_path)
    loaded = artifact.load(tmp_path)
    assert architecture.form(loaded.model) == VisualPruning(2, 0.5)
    assert loaded.claims["visual_kept"] == 0.5
    assert outputs(subject).shape[1] == LEFT
    assert torch.equal(outputs(loaded), outputs(subject))
    assert held(loaded) == held(subject) == [WHOLE, WHOLE, LEFT, LEFT]
    assert held(tiny_subject("llava", dtype)) == [WHOLE] * 4


def test_equal_requests_give_equal_artifacts_of_the_same_weights(tmp_path: Path) -> None:
    for name, subject in (("a", pruned()), ("b", pruned()), ("baseline", tiny_subject("llava"))):
        artifact.save(subject, tmp_path / name)
    assert artifact.content_hash(tmp_path / "a") == artifact.content_hash(tmp_path / "b")
    own, baseline = ((tmp_path / name / artifact.WEIGHTS).read_bytes() for name in ("a", "baseline"))
    assert own == baseline
    assert "watched" not in (tmp_path / "a" / "config.json").read_text()


@pytest.mark.parametrize("steps", [[FastV(0.5), ROUND], [ROUND, FastV(0.5)]])
def test_weights_are_rounded_before_it_or_behind_it(steps: list[Any], tmp_path: Path) -> None:
    subject = tiny_subject("llava")
    for step in steps:
        subject = step.apply(subject, NO_TEXT)
    assert (subject.claims["bits"], subject.claims["visual_kept"]) == (4, 0.5)
    artifact.save(subject, tmp_path / "artifact")
    loaded = artifact.load(tmp_path / "artifact", prepare=False)
    assert torch.equal(outputs(loaded), outputs(subject))
    assert held(loaded) == [WHOLE, WHOLE, LEFT, LEFT]
    with pytest.raises(Unsupported, match=r"no format has a place for the form VisualPruning\(after=2, kept=0\.5\)"):
        to_compressed_tensors(tmp_path / "artifact", tmp_path / "exported")


def test_what_is_left_may_be_kept_in_few_bits() -> None:
    subject = KIVI(4, 8).apply(pruned(), NO_TEXT)
    assert held(subject) == [WHOLE, WHOLE, LEFT, LEFT]
    few, plain = (Eager("cpu", 1).engine(each).begin(20) for each in (subject, pruned()))
    for generation in (few, plain):
        generation.prefill(PROMPT)
    assert few.bytes_per_token < 0.7 * plain.bytes_per_token


def test_asked_for_by_name_the_share_is_an_axis() -> None:
    found = cells(["model=tiny_llava", "technique=fastv", "visual_kept=0.5,0.25"])
    assert [cell.label for cell in found] == ["tiny_llava-fastv-visual0.5", "tiny_llava-fastv-visual0.25"]
    assert [cell.technique["steps"][0]["after"] for cell in found] == [2, 2]
    assert all(cell.generates for cell in found)


@pytest.mark.parametrize(
    ("subject", "technique", "reason"),
    [
        (lambda: tiny_subject("llama"), FastV(0.5), "pictures in llama models .* such as model=llava_1_5_7b"),
        (lambda: tiny_subject("llava"), FastV(1.5), r"a share of 1\.5 of the visual tokens cannot stay"),
        (lambda: tiny_subject("llava"), FastV(0.5, after=4), "behind block 4 of 4; expected 1 to 3"),
        (pruned, FastV(0.5), r"has the form VisualPruning\(after=2, kept=0\.5\) already"),
    ],
)
def test_what_it_cannot_do_is_refused(subject: Any, technique: FastV, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        technique.apply(subject(), NO_TEXT)
