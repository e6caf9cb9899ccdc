"""What vLLM says of a prompt's places becomes numbers of the right tokens."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from squeeze.runtimes.vllm_scores import of_places, of_prompt


def test_each_stretch_is_that_of_its_place_in_whatever_order() -> None:
    """The token that stands there comes first, and once more in its turn; of the first place nothing is known."""
    found = SimpleNamespace(
        start_indices=[0, 0, 4],
        end_indices=[0, 4, 7],
        token_ids=[2, 1, 2, 0, 0, 1, 2],
        logprobs=[-2.0, -0.5, -2.0, -3.0, -1.0, -2.5, -0.25],
    )
    logs = of_places(found, 3)
    assert logs.dtype == torch.float32
    assert logs.tolist() == [[-math.inf] * 3, [-3.0, -0.5, -2.0], [-1.0, -2.5, -0.25]]
    assert of_places(found, 4)[1].tolist() == [-3.0, -0.5, -2.0, -math.inf], "a token that is left out is impossible"


def test_of_a_prompt_its_own_tokens_count() -> None:
    def likely(**of: float) -> dict[int, Any]:
        return {int(token[1:]): SimpleNamespace(logprob=value) for token, value in of.items()}

    assert of_prompt([None, likely(t2=-0.5), likely(t9=-0.1, t3=-2.0)], [1, 2, 3]) == [-0.5, -2.0]
    with pytest.raises(KeyError):
        of_prompt([None, likely(t9=-0.1)], [1, 2])
