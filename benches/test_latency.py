"""Time how long a user waits for the first token (prefill), from one token to the next (decode), and for an encoding.

Where members of a block are measured side by side, every repetition of prefill and every few tokens are a turn of this
process, in which the others wait. What is not timed has turns of its own: loading and warming up, peak memory. Each
call reads a prompt of its own, drawn before it is timed.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from squeeze.probes import energy, first_tokens, latency
from squeeze.probes.latency import Prompts
from squeeze.probes.samples import Samples
from squeeze.probes.turns import Turns, pressure
from squeeze.records.statistics import steady
from squeeze.request.cell import Cell
from squeeze.runtimes.contract import Engine, Generation, drafts

Begin = Callable[[], Generation]
Prepare = Callable[[], object]  # called before each timed call; what it returns are the call's arguments


@pytest.fixture
def begin(engine: Engine, cell: Cell) -> Begin:
    return lambda: engine.begin(latency.positions(cell.protocol["latency"]))


@pytest.mark.kind("causal_lm", "vision_language")
def test_prefill(
    benchmark: BenchmarkFixture, begin: Begin, prompts: Prompts, cell: Cell, samples: Samples, turns: Turns, batch: int
) -> None:
    """Time reading a prompt and choosing the first token, which is kept: it must be the one that the model scores."""
    protocol, texts = cell.protocol["latency"], (prompts.draw("prefill", batch, number) for number in count())
    firsts: list[list[int]] = []
    running: list[Generation] = []

    def keep_first() -> None:
        while running:
            firsts.append([row[0] for row in running.pop().token_ids()])

    def fresh() -> tuple[tuple[Generation, Tensor], dict[str, object]]:
        keep_first()
        running.append(begin())
        return (running[0], next(texts)), {}

    turns.next()
    with samples.stage("warmup"):
        others = warm_texts(prompts, "prefill", batch)
        warm = latency.warm_up(lambda: begin().prefill(next(others)), protocol["warmup_rounds"])
    with timed(samples, turns, "ttft_s", batch) as in_turn:
        benchmark.pedantic(
            lambda generation, prompt: generation.prefill(prompt),
            setup=in_turn(1, fresh),
            rounds=protocol["prefill_repeats"],
        )
    keep_first()
    seconds = benchmark.stats.stats.data
    keep(samples, "ttft_s", batch, seconds, warm and steady(seconds))
    samples.put_entry("firsts", str(batch), firsts)


@pytest.mark.kind("causal_lm", "vision_language")
def test_decode(
    benchmark: BenchmarkFixture,
    engine: Engine,
    begin: Begin,
    prompts: Prompts,
    cell: Cell,
    samples: Samples,
    turns: Turns,
    batch: int,
) -> None:
    """Time decoding one token a round, so that every inter-token time is kept, and so is every token.

    A call that drafts gives several: the tokens of it share its time, and which of them began one is kept, too.
    """
    protocol = cell.protocol["latency"]
    turns.next()
    with samples.stage("warmup"):
        generation = begin()
        generation.prefill(prompts.draw("decode", batch, -2))  # as long as the one that is timed, and another
        first, generate = latency.first_timed(generation.decode)
        warm = latency.warm_up(generate, protocol["warmup_rounds"])
        generation = begin()
        generation.prefill(prompts.draw("decode", batch, 0))
        pace = latency.Pace(generation)
    meter = energy.Meter(cell.runtime["device"])
    with timed(samples, turns, "token_s", batch, meter) as in_turn:
        tokens = protocol["decode_tokens"]
        benchmark.pedantic(pace.token, setup=in_turn(latency.turn_tokens(protocol)), rounds=tokens)
    samples.put_entry("first_step_s", str(batch), next(iter(first), None))
    spent = meter.joules
    samples.put_entry("energy_j_per_token", str(batch), spent and spent / tokens / batch)
    seconds = pace.evenly(benchmark.stats.stats.data)
    # Calls that guess more or less take more or less time, however settled the process is.
    keep(samples, "token_s", batch, seconds, warm and (drafts(engine) or steady(seconds)))
    if drafts(engine):
        samples.put_entry("calls", str(batch), pace.begins(tokens))
        samples.put_entry("steps", str(batch), generation.steps)
    samples.put_entry("generated", str(batch), [row[: tokens + 1] for row in generation.token_ids()])


@pytest.mark.kind("encoder", "classifier")
def test_encode(
    benchmark: BenchmarkFixture,
    engine: Engine,
    prompts: Prompts,
    cell: Cell,
    samples: Samples,
    turns: Turns,
    batch: int,
) -> None:
    """Time the forward of a model that sees texts as a whole, all that it has.

    An encoder's time stands where a language model's prefill does. A classifier's answers are kept: they must be those
    that are scored.
    """
    protocol, texts = cell.protocol["latency"], (prompts.draw("encode", batch, number) for number in count())
    answers: list[Tensor] = []

    def classify(text: Tensor) -> None:
        answers.append(engine.encode(text))

    name, encode = ("encode_s", classify) if cell.is_classifier else ("ttft_s", engine.encode)
    turns.next()
    with samples.stage("warmup"):
        others = warm_texts(prompts, "encode", batch)
        warm = latency.warm_up(lambda: engine.encode(next(others)), protocol["warmup_rounds"])
    with timed(samples, turns, name, batch) as in_turn:
        setup = in_turn(1, lambda: ((next(texts),), {}))
        benchmark.pedantic(encode, setup=setup, rounds=protocol["prefill_repeats"])
    seconds = benchmark.stats.stats.data
    keep(samples, name, batch, seconds, warm and steady(seconds))
    if answers:
        samples.put_entry("answers", str(batch), [answer.tolist() for answer in answers])


@pytest.mark.kind("causal_lm")
def test_first_token_by_length(
    request: pytest.FixtureRequest,
    engine: Engine,
    prompts: Prompts,
    cell: Cell,
    samples: Samples,
    turns: Turns,
    tokens: int,
) -> None:
    """Time reading one prompt of so many tokens and choosing the first token, which is kept.

    The process is warm by now: of each length, two calls let libraries compile what they compile for it.
    """
    if why := first_tokens.why_not(engine, tokens):
        first_tokens.leave_out(samples, why)
        return
    benchmark: BenchmarkFixture = request.getfixturevalue("benchmark")  # asked for and not used, it would warn
    asked, use = first_tokens.of_length(prompts, tokens), first_tokens.use(tokens)
    firsts: list[int] = []
    running: list[Generation] = []

    def keep_first() -> None:
        while running:
            firsts.append(running.pop().token_ids()[0][0])

    def fresh(number: int) -> tuple[Generation, Tensor]:
        keep_first()
        prompt = asked.draw(use, 1, number)
        running.append(engine.begin(prompt.shape[1]))
        return running[0], prompt

    turns.next()
    with samples.stage("warmup"):
        for number in range(-first_tokens.WARMING, 0):
            generation, prompt = fresh(number)
            generation.prefill(prompt)
            running.clear()
        del generation, prompt
    numbers = count()
    with timed(samples, turns, first_tokens.TIMES, tokens) as in_turn:
        benchmark.pedantic(
            lambda generation, prompt: generation.prefill(prompt),
            setup=in_turn(1, lambda: (fresh(next(numbers)), {})),
            rounds=cell.protocol[first_tokens.PART]["repeats"],
        )
    keep_first()
    samples.put_entry(first_tokens.TIMES, str(tokens), benchmark.stats.stats.data)
    samples.put_entry(first_tokens.FIRSTS, str(tokens), firsts)


def warm_texts(prompts: Prompts, use: str, batch: int) -> Iterator[Tensor]:
    """Return as many prompts as warming up may read, made before it begins."""
    calls = latency.MOST_WINDOWS * prompts.latency["warmup_rounds"]
    return iter([prompts.draw(use, batch, -number) for number in range(1, calls + 1)])


@contextmanager
def timed(
    samples: Samples, turns: Turns, name: str, point: int, meter: energy.Meter | None = None
) -> Iterator[Callable[..., Prepare]]:
    """Time in turns: yield what makes the setup of ``benchmark.pedantic`` that asks for a turn every so many calls.

    point: the batch size of these calls, or the tokens of their prompts. When each turn began, and what pressed the
    machine until then, goes into the samples, and on how many processors this process ran meanwhile; a meter counts
    within turns.
    """
    began = []
    computed, passed = time.process_time(), samples.clock()

    def next_turn() -> None:
        if meter is not None:
            meter.stop()
        turns.next()
        began.append(pressure())
        if meter is not None:
            meter.start()

    def in_turn(calls: int, arguments: Prepare = lambda: None) -> Prepare:
        called = count()

        def prepare() -> object:
            if next(called) % calls == 0:
                next_turn()
            return arguments()

        return prepare

    with samples.stage("timed"):
        yield in_turn
        if meter is not None:
            meter.stop()
    computed, passed = time.process_time() - computed, samples.clock() - passed
    samples.put_entry("turns", f"{name}/{point}", began)
    samples.put_entry("processors", f"{name}/{point}", computed / passed)


def keep(samples: Samples, name: str, batch: int, seconds: Sequence[float], settled: bool) -> None:
    samples.put_entry(name, str(batch), seconds)
    samples.put_entry("steady", f"{name}/{batch}", settled)
    samples.flag("unsteady", not settled)
