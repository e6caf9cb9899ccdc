"""The noise floor: a model against itself, read in parts: the same mathematics, rounded otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from squeeze.models.architecture import last_hidden_state
from squeeze.probes import rounding
from squeeze.probes.divergence import hidden_writer
from squeeze.probes.lm_eval_model import Windows
from squeeze.probes.rounding import enough, in_parts, rounding_floor
from squeeze.probes.scoring import Row, predict
from tests.tiny import CAUSAL, tiny_model

WINDOWS = Windows(tokens=256, window=64, stride=64)


def rows() -> list[Row]:
    return WINDOWS.rows(torch.randint(200, (256,), generator=torch.Generator().manual_seed(0)).tolist())


def keep(folder: Path, model: torch.nn.Module) -> None:
    with hidden_writer(folder, WINDOWS.scored) as write:
        for row in rows():
            write(predict(model, [row]).hidden)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_text_in_parts_is_the_same_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "PART", 16)
    model, token_ids = tiny_model(name), torch.arange(50)[None]
    torch.testing.assert_close(
        in_parts(model, token_ids), last_hidden_state(model, input_ids=token_ids), rtol=0, atol=1e-5
    )


def test_a_short_text_is_read_in_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """One part would be the very same rounding, and the floor nought whatever the model."""
    lengths: list[int] = []

    def spy(model: torch.nn.Module, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
        lengths.append(input_ids.shape[1])
        return torch.zeros(*input_ids.shape, 4)

    monkeypatch.setattr(rounding, "last_hidden_state", spy)
    in_parts(tiny_model("llama"), torch.arange(63)[None])
    assert lengths == [32, 31]


def test_in_bfloat16_there_is_a_floor_and_in_float32_hardly_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "PART", 4)  # of matrices as small as these, longer parts give the same bits
    floors = {}
    for dtype in ("bfloat16", "float32"):
        model = tiny_model("llama", dtype)
        keep(tmp_path, model)
        found = rounding_floor(model, rows(), tmp_path)
        floors[dtype] = float(torch.cat(found.kl).mean())
        assert len(torch.cat(found.top1)) == WINDOWS.scored
    assert floors["bfloat16"] > 1e-7
    assert abs(floors["float32"]) < 1e-7


def test_another_model_is_far_above_the_floor(tmp_path: Path) -> None:
    keep(tmp_path, tiny_model("llama", "bfloat16", seed=1))
    found = rounding_floor(tiny_model("llama", "bfloat16"), rows(), tmp_path)
    assert float(torch.cat(found.kl).mean()) > 1e-3


def test_as_many_windows_are_read_as_give_the_tokens_that_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "TOKENS", 120)
    assert enough(rows()) == rows()[:2]  # 63 and 63
    monkeypatch.setattr(rounding, "TOKENS", 127)
    assert enough(rows()) == rows()[:3]
    monkeypatch.setattr(rounding, "TOKENS", 4096)
    assert enough(rows()) == rows()
