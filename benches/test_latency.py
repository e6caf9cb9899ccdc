"""Time how long a user waits for the first token (prefill), and from one token to the next (decode)."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from squeeze.probes import energy, latency
from squeeze.probes.samples import Samples
from squeeze.records.statistics import steady
from squeeze.request.cell import Cell
from squeeze.runtimes.contract import Engine, Generation

Begin = Callable[[], Generation]


@pytest.fixture
def begin(engine: Engine, cell: Cell) -> Begin:
    return lambda: engine.begin(latency.positions(cell.protocol["latency"]))


@pytest.mark.kind("causal_lm")
def test_prefill(
    benchmark: BenchmarkFixture, begin: Begin, prompts: Tensor, cell: Cell, samples: Samples, batch: int
) -> None:
    protocol, prompt = cell.protocol["latency"], prompts[:batch]
    with samples.stage("warmup"):
        warm = latency.warm_up(lambda: begin().prefill(prompt), protocol["warmup_rounds"])
    with samples.stage("timed"):
        benchmark.pedantic(
            lambda generation, tokens: generation.prefill(tokens),
            setup=lambda: ((begin(), prompt), {}),
            rounds=protocol["prefill_repeats"],
        )
    keep(samples, "ttft_s", batch, benchmark, warm)


@pytest.mark.kind("causal_lm")
def test_decode(
    benchmark: BenchmarkFixture, begin: Begin, prompts: Tensor, cell: Cell, samples: Samples, batch: int
) -> None:
    """Time decoding one token a round, so that every inter-token time is kept."""
    protocol, prompt = cell.protocol["latency"], prompts[:batch]
    with samples.stage("warmup"):
        generation = begin()
        generation.prefill(prompt)
        warm = latency.warm_up(generation.decode, protocol["warmup_rounds"])
        generation = begin()
        generation.prefill(prompt)
    with samples.stage("timed"):
        joules = energy.started(cell.runtime["device"])
        benchmark.pedantic(generation.decode, rounds=protocol["decode_tokens"])
        spent = joules()
    samples.put_entry("energy_j_per_token", str(batch), spent and spent / protocol["decode_tokens"] / batch)
    keep(samples, "token_s", batch, benchmark, warm)
    samples.put_entry("generated", str(batch), generation.token_ids())


@pytest.mark.kind("encoder")
def test_encode(
    benchmark: BenchmarkFixture, engine: Engine, prompts: Tensor, cell: Cell, samples: Samples, batch: int
) -> None:
    """Time an encoder's forward, all that it has: the time stands where a language model's prefill does."""
    protocol, prompt = cell.protocol["latency"], prompts[:batch]
    with samples.stage("warmup"):
        warm = latency.warm_up(lambda: engine.encode(prompt), protocol["warmup_rounds"])
    with samples.stage("timed"):
        benchmark.pedantic(engine.encode, (prompt,), rounds=protocol["prefill_repeats"])
    keep(samples, "ttft_s", batch, benchmark, warm)


def keep(samples: Samples, name: str, batch: int, benchmark: BenchmarkFixture, warm: bool) -> None:
    seconds = benchmark.stats.stats.data
    samples.put_entry(name, str(batch), seconds)
    samples.put_entry("steady", f"{name}/{batch}", settled := warm and steady(seconds))
    samples.flag("unsteady", not settled)
