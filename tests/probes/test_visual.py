"""What is kept of a picture is counted in the cache, block by block; a claim that keeps more, or less, is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.probes.inspection import Inspection, inspect
from squeeze.probes.realised import own_bytes
from squeeze.probes.visual import Visual, visual
from squeeze.runtimes.eager import Eager
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.fastv import FastV
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_model, tiny_subject

PROTOCOL = {"prompt_tokens": 16, "batch_sizes": [1, 4]}
TEXT = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(0))
ROUND = RoundToNearest(4, 32, symmetric=True)
# By hand: multiplications of a block for each token, of the head, and of what makes a token of a piece of a picture.
BLOCK = 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128
HEAD = 64 * 261
PATCH = 3 * 8 * 8 * 32 + 2 * (4 * 32 * 32 + 2 * 32 * 64) + 32 * 64 + 64 * 64


def looked_at(folder: Path, *steps: Any, **claims: Any) -> Inspection:
    subject = tiny_subject("llava")
    for step in steps:
        subject = step.apply(subject, CalibrationText.empty())
    artifact.save(subject.claiming(**claims), folder / "own")
    artifact.save(tiny_subject("llava"), folder / "baseline")
    return inspect(folder / "own", folder / "baseline", Eager("cpu", 1).load(folder / "own"), PROTOCOL, TEXT)


def by_hand(*tokens: int) -> float:
    """Operations of a prefill whose blocks read so many tokens, half of the attention masked; two a multiplication."""
    blocks = sum(BLOCK * each + 64 * each**2 for each in tokens)
    return 2 * (blocks + HEAD + 36 * PATCH + 2 * 2 * 32 * 36**2)


def test_an_honest_row_is_found_to_be_what_it_claims(tmp_path: Path) -> None:
    found = looked_at(tmp_path, FastV(0.5))
    assert found.mismatches == []
    assert found.figures["visual_tokens_by_block"] == [36, 36, 18, 18]
    assert (found.figures["visual_tokens"], found.figures["visual_tokens_kept"]) == (36, 27)
    text = 1 + 16
    assert found.figures["prefill_operations"] == {
        "1": by_hand(text + 36, text + 36, text + 18, text + 18),
        "4": 4 * by_hand(text + 36, text + 36, text + 18, text + 18),
    }


def test_so_is_the_uncompressed_model_and_one_of_fewer_bits(tmp_path: Path) -> None:
    plain, both = looked_at(tmp_path / "plain"), looked_at(tmp_path / "both", ROUND, FastV(0.25, after=1))
    assert plain.mismatches == both.mismatches == []
    assert plain.figures["visual_tokens_by_block"] == [36] * 4
    assert plain.figures["prefill_operations"]["1"] == by_hand(*[1 + 16 + 36] * 4)
    assert both.figures["visual_tokens_by_block"] == [36, 9, 9, 9]
    assert both.figures["prefill_operations"]["1"] == by_hand(1 + 16 + 36, *[1 + 16 + 9] * 3)


def test_what_sees_pictures_is_not_read_again_for_each_token(tmp_path: Path) -> None:
    figures, base = looked_at(tmp_path).figures, tiny_model("llava").model
    seers = (base.vision_tower, base.multi_modal_projector, base.language_model.embed_tokens)
    unread = sum(sum(own_bytes(seer).values()) for seer in seers)
    assert figures["live_bytes"] - figures["bytes_per_token"] == unread > 100_000


@pytest.mark.parametrize(
    ("steps", "claimed", "said"),
    [
        ([], 0.5, "claimed to keep 50.0% of a picture's tokens, found 100.0%"),
        ([FastV(0.5)], 0.25, "claimed to keep 25.0% of a picture's tokens, found 50.0%"),
    ],
)
def test_claims_that_do_not_hold_are_told(steps: list[Any], claimed: float, said: str, tmp_path: Path) -> None:
    assert looked_at(tmp_path, *steps, visual_kept=claimed).mismatches == [said]


def test_a_model_without_pictures_has_none_of_it() -> None:
    engine = Eager("cpu", 1).engine(tiny_subject("llama"))
    found = visual(engine, tiny_model("llama"), PROTOCOL, TEXT)
    assert found == Visual()
    assert found.figures() == {}
    assert found.mismatches({}) == []
    assert found.mismatches({"visual_kept": 0.5}) == [
        "claimed to keep 50.0% of a picture's tokens, found a model that reads no pictures"
    ]


def test_a_share_of_whole_tokens_is_rounded() -> None:
    assert Visual(36, (36, 4)).mismatches({"visual_kept": 0.1}) == []
    assert Visual(36, (36, 6)).mismatches({"visual_kept": 0.1}) != []
