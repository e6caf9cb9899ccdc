"""Generation picks the right tokens, timing is true, and warming up ends when times agree."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from squeeze.core.errors import Unsupported
from squeeze.probes import latency
from tests.tiny import CAUSAL, tiny_model, tiny_subject

EAGER = {"device": "cpu", "threads": 1, "compile": False}
PROTOCOL = {"prompt_tokens": 12, "decode_tokens": 8, "warmup_rounds": 2}


def prompt(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, PROTOCOL["prompt_tokens"]), generator=torch.Generator().manual_seed(1))


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
    generation = latency.starter(subject, EAGER, PROTOCOL)()
    generation.prefill(prompt())
    for _ in range(PROTOCOL["decode_tokens"]):
        generation.decode()
    expected = greedy_without_cache(model, prompt(), 1 + PROTOCOL["decode_tokens"])
    assert generation.token_ids() == expected
    assert len({*expected[0], *expected[1]}) > 2, "a model that repeats one token would show nothing"


def test_generations_do_not_share_their_cache() -> None:
    begin = latency.starter(tiny_subject("llama"), EAGER, PROTOCOL)
    first, second = begin(), begin()
    first.prefill(prompt())
    first.decode()
    second.prefill(prompt())
    second.decode()
    assert first.token_ids() == second.token_ids()


def test_a_static_cache_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "compiled", lambda model: model.forward)
    subject = tiny_subject("llama")
    model = subject.model
    generation = latency.starter(subject, {**EAGER, "compile": True}, PROTOCOL)()
    generation.prefill(prompt())
    for _ in range(4):
        generation.decode()
    assert generation.token_ids() == greedy_without_cache(model, prompt(), 5)


def test_the_head_is_applied_to_the_last_position_only() -> None:
    subject = tiny_subject("llama")
    positions = []
    subject.model.lm_head.register_forward_hook(lambda _module, inputs, _output: positions.append(inputs[0].shape[1]))
    latency.starter(subject, EAGER, PROTOCOL)().prefill(prompt())
    assert positions == [1]


def test_an_encoder_gives_its_hidden_states() -> None:
    model = tiny_model("bert")
    encode = latency.encoder(model, EAGER, PROTOCOL)
    torch.testing.assert_close(encode(prompt()), model(prompt()).last_hidden_state)


def test_decode_needs_a_prefill() -> None:
    with pytest.raises(IndexError):
        latency.starter(tiny_subject("llama"), EAGER, PROTOCOL)().decode()


def test_a_prompt_beyond_the_model_is_refused_with_both_numbers() -> None:
    with pytest.raises(Unsupported, match=r"2048 positions.*need 3016"):
        latency.starter(tiny_subject("llama"), EAGER, {**PROTOCOL, "prompt_tokens": 3000})
    with pytest.raises(Unsupported, match=r"2048 positions.*need 3000"):
        latency.encoder(tiny_model("bert"), EAGER, {**PROTOCOL, "prompt_tokens": 3000})


def ticking(durations: list[float]) -> Callable[[], float]:
    """A clock under which the n-th timed call takes the n-th duration (the last one for ever)."""

    def readings() -> Iterator[float]:
        now, waiting = 0.0, iter(durations)
        while True:
            yield now
            now += next(waiting, durations[-1])
            yield now

    return readings().__next__


@pytest.mark.parametrize(
    ("durations", "calls", "warm"),
    [
        ([1.0], 4, True),
        ([5.0, 1.0, 1.0, 1.0, 1.0], 5, True),
        ([9.0, 8.0, 3.0, 2.0, 1.0, 1.0, 1.05, 1.0], 8, True),
        ([1.0, 1.0, 1.09, 1.09], 4, True),
        ([1.0, 1.0, 1.3, 1.3, 1.7, 1.7, 2.2, 2.2, 2.2, 2.2], 10, True),
        ([2.0**-n for n in range(40)], 16, False),
    ],
)
def test_warm_up_ends_when_two_windows_agree(durations: list[float], calls: int, warm: bool) -> None:
    done = []
    assert latency.warm_up(lambda: done.append(1), 2, ticking(durations)) is warm
    assert len(done) == calls


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@pytest.mark.promise(7)
def test_a_known_spin_is_timed_within_1_percent(benchmark: BenchmarkFixture, figure: Callable[[str], None]) -> None:
    """Promise 7. The best of the rounds: a busy machine only ever adds."""
    benchmark.pedantic(spin, (0.05,), rounds=7)
    stats = benchmark.stats.stats
    assert 0.05 <= stats.min < 0.0505
    figure(f"a spin of 50 ms: {1000 * stats.min:.2f} ms at best, {1000 * stats.median:.2f} ms in the median of 7")


class VirtualClock:
    """Time that passes only when `work` says so."""

    now = 0.0

    @classmethod
    def read(cls) -> float:
        return cls.now

    @classmethod
    def work(cls, seconds: float) -> None:
        cls.now += seconds


@pytest.mark.promise(7)
@pytest.mark.benchmark(timer=VirtualClock.read)
def test_on_a_virtual_clock_every_round_is_exact_and_kept(
    benchmark: BenchmarkFixture, figure: Callable[[str], None]
) -> None:
    """Promise 7. Setting up a round is no part of it."""
    durations = iter([0.25, 0.5, 0.125, 2.0])

    def setup() -> tuple[tuple[float], dict[str, Any]]:
        VirtualClock.work(100.0)
        return (next(durations),), {}

    benchmark.pedantic(VirtualClock.work, setup=setup, rounds=4)
    assert benchmark.stats.stats.data == [0.25, 0.5, 0.125, 2.0]
    figure("on a virtual clock: every time exact, and every time kept")
