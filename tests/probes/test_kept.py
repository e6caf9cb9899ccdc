"""What is left of a model is counted; a claim of less, or more, is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.models.layout import SHARES
from squeeze.models.surgery import cut_heads, keep_blocks
from squeeze.probes import kept, realised
from squeeze.probes.inspection import Inspection, inspect
from squeeze.probes.recount import weights_by_layer
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Technique
from squeeze.techniques.pruning.flap import FLAP
from squeeze.techniques.pruning.heads import Heads
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.pruning.slicegpt import SliceGPT
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.training.from_scratch import FromScratch
from squeeze.techniques.training.narrow import Narrow
from tests.causal import random_causal
from tests.tiny import ARCHITECTURES, CAUSAL, tiny_model, tiny_subject

PROTOCOL = {"prompt_tokens": 16, "batch_sizes": [1]}
TEXT = (torch.arange(64) * 7 % 251)[None]
CALIBRATION = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))
HALF = LayerDrop(0.5, "every_other")


def looked_at(folder: Path, name: str, *steps: Technique, **claims: Any) -> Inspection:
    """What is found of the artifact that these steps and claims make."""
    subject = tiny_subject(name, "bfloat16")
    for step in steps:
        subject = step.apply(subject, CALIBRATION)
    artifact.save(subject.claiming(**claims), folder / "own")
    artifact.save(tiny_subject(name, "bfloat16"), folder / "baseline")
    return inspect(folder / "own", folder / "baseline", Eager("cpu", 1).load(folder / "own"), PROTOCOL, TEXT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_honest_student_is_found_to_be_what_it_claims(name: str, tmp_path: Path) -> None:
    found = looked_at(tmp_path, name, Narrow(0.5), HALF, RoundToNearest(4, 16, symmetric=True))
    assert found.mismatches == []
    assert (found.figures["layers_kept"], found.figures["channels_kept"]) == (0.5, 0.5)
    assert "hidden_kept" not in found.figures


def test_every_share_of_a_narrow_student_is_counted(tmp_path: Path) -> None:
    found = looked_at(tmp_path, "llama", Narrow(0.5, 0.5, 0.75))
    assert found.mismatches == []
    shares = {name: found.figures[name] for name in SHARES if name in found.figures}
    assert shares == {"channels_kept": 0.5, "heads_kept": 0.5, "hidden_kept": 0.75}
    assert (found.figures["bytes_real"], found.figures["memory_real"], found.figures["compute_real"]) == (True,) * 3


def test_a_student_from_scratch_is_found_to_be_what_it_claims(tmp_path: Path) -> None:
    found = looked_at(tmp_path, "opt", FromScratch(layers=1, hidden=32, heads=2))
    assert found.mismatches == []
    shares = {name: found.figures[name] for name in SHARES if name in found.figures}
    assert shares == {"layers_kept": 0.5, "hidden_kept": 0.5, "heads_kept": 0.5}


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("steps", [(), (RoundToNearest(8, None, symmetric=True),)])
def test_a_sliced_model_is_found_to_be_what_it_claims(name: str, steps: tuple[Technique, ...], tmp_path: Path) -> None:
    found = looked_at(tmp_path, name, SliceGPT(0.75), *steps)
    assert found.mismatches == []
    assert {name: found.figures[name] for name in SHARES if name in found.figures} == {"hidden_kept": 0.75}


@pytest.mark.parametrize("step", [Narrow(0.5), HALF])
def test_so_is_one_that_is_cut_afterwards(step: Technique, tmp_path: Path) -> None:
    """Its claims are shares of the uncompressed model, not of the student that the step began with."""
    found = looked_at(tmp_path, "llama", FromScratch(layers=1, hidden=32, channels=64, heads=2), step)
    assert found.mismatches == []
    assert (found.figures["layers_kept"], found.figures["hidden_kept"]) == (0.5, 0.5)
    assert found.figures["channels_kept"] == (0.25 if isinstance(step, Narrow) else 0.5)


@pytest.mark.parametrize(
    ("steps", "claims", "expected"),
    [
        ((), {"layers_kept": 0.5}, "claimed 50.0% of the blocks, found 100.0%"),
        ((HALF,), {"layers_kept": 1.0}, "claimed 100.0% of the blocks, found 50.0%"),
        ((Narrow(0.5),), {"channels_kept": 0.25}, "claimed 25.0% of the channels of the MLP, found 50.0%"),
        ((), {"heads_kept": 0.5}, "claimed 50.0% of the heads, found 100.0%"),
        ((), {"hidden_kept": 0.5}, "claimed 50.0% of the hidden size, found 100.0%"),
    ],
)
def test_a_claim_of_another_share_is_found(
    steps: tuple[Technique, ...], claims: dict[str, float], expected: str, tmp_path: Path
) -> None:
    assert looked_at(tmp_path, "llama", *steps, **claims).mismatches == [expected]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("step", [FLAP(0.6, "adaptive"), Heads(0.5, "wanda")], ids=["flap", "heads"])
def test_blocks_of_their_own_sizes_are_found_to_be_what_is_claimed(step: Technique, name: str, tmp_path: Path) -> None:
    found = looked_at(tmp_path, name, step)
    assert found.mismatches == []
    stored = artifact.load(tmp_path / "own").claims
    assert {"channels_kept", "heads_kept"} & found.figures.keys() == {"channels_kept", "heads_kept"} & stored.keys()
    assert all(found.figures[share] == stored[share] for share in SHARES if share in stored)


def test_attention_is_as_wide_as_its_heads_on_average() -> None:
    model = tiny_model("gpt2")
    cut_heads(model, [[0], [0, 1]])
    assert realised.attention_width(model) == 24
    assert realised.attention_width(random_causal("gemma2")) == realised.attention_width(tiny_model("gpt2")) == 64


def test_an_uncut_model_has_no_shares(tmp_path: Path) -> None:
    assert not SHARES.keys() & looked_at(tmp_path, "gpt2").figures.keys()


def test_of_an_architecture_that_is_not_known_blocks_are_counted() -> None:
    model = random_causal("gemma2")
    keep_blocks(model, [1])
    assert kept.shares(model, random_causal("gemma2")) == {"layers_kept": 0.5}
    assert kept.mismatches({"layers_kept": 0.5}, {"layers_kept": 0.5}) == []


def test_the_work_of_a_narrow_student_is_its_own() -> None:
    baseline, narrow = tiny_model("llama"), Narrow(0.5).apply(tiny_subject("llama"), CALIBRATION).model
    whole, own = weights_by_layer(baseline, baseline), weights_by_layer(narrow, baseline)
    assert sum(whole.values()) - sum(own.values()) == 2 * 3 * 64 * 64
    saved = realised.operations(baseline, whole, 16, 1) - realised.operations(narrow, own, 16, 1)
    assert saved == 2 * 16 * 2 * 3 * 64 * 64
