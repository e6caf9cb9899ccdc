"""The prompts of the curve: of each length on average, each read once, and what a model cannot take is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from squeeze.probes import first_tokens
from squeeze.probes.latency import Prompts
from squeeze.probes.samples import Samples
from squeeze.runtimes.eager import Eager
from tests.tiny import tiny_subject

LATENCY = {"prompt_tokens": 8, "prefill_repeats": 2, "batch_sizes": [1]}
LENGTHS = [32, 1000, 4096]
PROTOCOL = {"latency": LATENCY, "ttft_curve": {"prompt_tokens": LENGTHS, "repeats": 2}}


def prompts(number: int = 0) -> Prompts:
    text = torch.arange(first_tokens.pool(PROTOCOL))  # no two beginnings are alike
    return Prompts(text, LATENCY, seed=0, round=number)


@pytest.mark.parametrize("tokens", LENGTHS)
def test_pairs_have_the_length_on_average_and_every_prompt_is_another(tokens: int) -> None:
    asked = first_tokens.of_length(prompts(), tokens)
    drawn = [asked.draw(first_tokens.use(tokens), 1, number) for number in range(-first_tokens.WARMING, 4)]
    lengths = [prompt.shape[1] for prompt in drawn]
    assert sum(lengths[2:4]) == sum(lengths[4:]) == 2 * tokens
    assert {*lengths[:2]} == {*lengths[2:]}, "warming up has had both lengths"
    assert max(lengths) <= first_tokens.longest(tokens) <= 1.02 * tokens + 1
    assert len({int(prompt[0, 0]) for prompt in drawn}) == len(drawn)
    assert drawn[0].shape[0] == 1


def test_rounds_read_other_prompts_and_members_of_a_round_the_same() -> None:
    def drawn(number: int) -> list[list[int]]:
        asked = first_tokens.of_length(prompts(number), 32)
        return [asked.draw(first_tokens.use(32), 1, call)[0].tolist() for call in range(4)]

    assert drawn(0) == drawn(0)
    assert all(one != other for one, other in zip(drawn(0), drawn(1), strict=True))


def test_there_is_text_for_the_longest_prompt_and_none_where_there_is_no_curve() -> None:
    assert first_tokens.pool({"latency": LATENCY}) == 0
    assert first_tokens.pool(PROTOCOL) >= first_tokens.longest(4096) + 64


def test_what_a_model_cannot_take_is_left_out_with_a_word(tmp_path: Path) -> None:
    engine = Eager("cpu", 1).engine(tiny_subject("llama"))  # of 2,048 positions
    assert [first_tokens.why_not(engine, tokens) for tokens in (32, 2000)] == ["", ""]
    why = "4,096 tokens, with prompts of up to 4,177: the model has 2048 positions"
    assert first_tokens.why_not(engine, 4096).startswith(why)
    assert first_tokens.why_not(engine, 2040) != "", "the longer prompt of the pair has 2,080"
    samples = Samples(tmp_path)
    first_tokens.leave_out(samples, "this")
    assert samples.values == {"prompts_left_out": "this"}
    first_tokens.leave_out(samples, "that")
    assert samples.values == {"prompts_left_out": "this; that"}
