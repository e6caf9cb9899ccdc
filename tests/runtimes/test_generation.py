"""Generation picks the right tokens, one forward each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.generation import GreedyGeneration, check_length, log_probability, synchronizer
from tests.tiny import CAUSAL, tiny_model, tiny_subject

DECODED = 8


def prompt(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 12), generator=torch.Generator().manual_seed(1))


def begun(name: str) -> GreedyGeneration:
    return Eager("cpu", 1).engine(tiny_subject(name)).begin(20)


@torch.inference_mode()
def greedy_without_cache(model: Any, tokens: torch.Tensor, count: int) -> list[list[int]]:
    start = tokens.shape[1]
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return tokens[:, start:].tolist()


@pytest.mark.parametrize("name", CAUSAL)
def test_tokens_equal_those_without_a_cache(name: str) -> None:
    subject = tiny_subject(name)
    model = subject.model
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):  # random ones outweigh what the tokens say
            parameter.zero_()
    generation = Eager("cpu", 1).engine(subject).begin(12 + DECODED)
    generation.prefill(prompt())
    for _ in range(DECODED):
        generation.decode()
    expected = greedy_without_cache(model, prompt(), 1 + DECODED)
    assert generation.token_ids() == expected
    assert len({*expected[0], *expected[1]}) > 2, "a model that repeats one token would show nothing"


def test_generations_do_not_share_their_cache() -> None:
    engine = Eager("cpu", 1).engine(tiny_subject("llama"))
    first, second = engine.begin(20), engine.begin(20)
    for generation in (first, second):
        generation.prefill(prompt())
        generation.decode()
    assert first.token_ids() == second.token_ids()


def test_the_head_is_applied_to_the_last_position_only() -> None:
    subject = tiny_subject("llama")
    positions = []
    subject.model.lm_head.register_forward_hook(lambda _module, inputs, _output: positions.append(inputs[0].shape[1]))
    Eager("cpu", 1).engine(subject).begin(20).prefill(prompt())
    assert positions == [1]


def test_decode_needs_a_prefill() -> None:
    with pytest.raises(IndexError):
        begun("llama").decode()


def test_every_token_is_waited_for() -> None:
    generation, waited = begun("llama"), []
    generation.synchronize = lambda: waited.append(len(generation.tokens))
    generation.prefill(prompt())
    generation.decode()
    assert waited == [0, 1]  # before the token counts as chosen


def test_bytes_per_token_are_those_of_the_cache() -> None:
    generation = begun("llama")
    generation.prefill(prompt())
    config = generation.cache.layers[0].keys.shape
    assert generation.bytes_per_token == 2 * 2 * config[1] * config[3] * 4  # keys, values; layers; heads, channels


def test_a_models_positions_are_compared_with_what_is_asked() -> None:
    model = tiny_model("llama")
    check_length(model, 2048)
    with pytest.raises(Unsupported, match=r"2048 positions.*need 2049"):
        check_length(model, 2049)


def test_log_probabilities_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0]]], dtype=torch.bfloat16)
    found = log_probability(logits, torch.tensor([[1, 0]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 1 / (1 + torch.e)]]).log())


def test_on_the_cpu_a_call_is_done_when_it_returns() -> None:
    assert synchronizer("cpu")() is None
