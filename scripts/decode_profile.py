"""Show where the time of a decoding step goes: in which operators, in which functions, and how much around them.

Steps are timed alone first: that is what they take. Then as many are watched by torch's profiler, for the operators'
own time, and by Python's, for the functions'. Both slow down what they watch (by how much is shown), operators and
functions that are short most of all; so what is left beside the operators is a lower bound.

    python -m scripts.decode_profile "$(squeeze build technique=rtn bits=4)" --runtime lean --threads 2
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from squeeze.core.process import settle
from squeeze.request.expand import cells
from squeeze.runtimes import contract
from squeeze.runtimes.contract import Engine, Generation

WARM = 8  # steps before any is timed
AROUND = "around them: Python, dispatch, waiting"


class Part(NamedTuple):
    """Hold what takes time in a step: an operator or a function. calls: in a step; seconds: its own, of a step."""

    name: str
    calls: float
    seconds: float


class Found(NamedTuple):
    """Hold a profile. alone: seconds of each step; watched, traced: the median under torch's profiler, and Python's."""

    alone: list[float]
    operators: list[Part]
    watched: float
    functions: list[Part]
    traced: float


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of an artifact")
    parser.add_argument("--runtime", default="lean", help="of conf/runtime (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=64, help="of each pass (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="texts (default: %(default)s)")
    parser.add_argument("--lines", type=int, default=16, help="of each table (default: %(default)s)")
    options = parser.parse_args()
    engine = loaded(options.folder, options.runtime, options.threads)
    found = profiled(engine, options.batch, options.prompt, options.steps)
    print(f"runtime={options.runtime}, {options.threads} threads, {options.batch} x {options.prompt} tokens before\n")
    print("\n".join(tables(found, options.lines)))


def loaded(folder: Path, runtime: str, threads: int) -> Engine:
    """Return an artifact, loaded by the runtime of that name, in a process that is set up for it."""
    (cell,) = cells(["model=tiny_llama", "technique=none", f"runtime={runtime}", "device=cpu", f"threads={threads}"])
    settle(cell.runtime, 0)
    return contract.of(cell.runtime).load(folder)


def profiled(engine: Engine, batch: int, prompt: int, steps: int) -> Found:
    """Return the profile of so many steps, in each of three passes, behind a random prompt."""
    generation = engine.begin(prompt + WARM + 3 * steps)
    tokens = torch.randint(len(engine.tokenizer), (batch, prompt), generator=torch.Generator().manual_seed(0))
    generation.prefill(tokens)
    timed(generation, WARM)
    alone = timed(generation, steps)
    operators, watched = by_operator(generation, steps)
    functions, traced = by_function(generation, steps)
    return Found(alone, operators, watched, functions, traced)


def timed(generation: Generation, steps: int) -> list[float]:
    """Return the seconds that each of some steps takes."""
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        generation.decode()
        seconds.append(time.perf_counter() - start)
    return seconds


def by_operator(generation: Generation, steps: int) -> tuple[list[Part], float]:
    """Return torch's operators, longest first, each without those that it calls; and the median step meanwhile."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        watched = median(timed(generation, steps))
    found = [
        Part(event.key, event.count / steps, event.self_cpu_time_total / 1e6 / steps)
        for event in profiler.key_averages()
    ]
    return _longest(found), watched


def by_function(generation: Generation, steps: int) -> tuple[list[Part], float]:
    """Return Python's functions, longest first, each without those that it calls; and the median step meanwhile."""
    profiler = cProfile.Profile()
    traced = median(profiler.runcall(timed, generation, steps))
    stats: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    found = [Part(_place(*function), calls / steps, own / steps) for function, (_, calls, own, _, _) in stats.items()]
    return _longest(found), traced


def tables(found: Found, lines: int) -> Iterator[str]:
    """Yield the lines of the report, times in microseconds of a step."""
    step = median(found.alone)
    low, *_, high = quantiles(found.alone, n=20)
    yield f"a step takes {step * 1e3:.2f} ms (5 % to 95 %: {low * 1e3:.2f} to {high * 1e3:.2f})"
    yield f"with torch's profiler {found.watched * 1e3:.2f} ms, with Python's {found.traced * 1e3:.2f} ms\n"
    around = max(step - sum(part.seconds for part in found.operators), 0.0)
    yield from _table("operator", found.operators, lines, step)
    yield f"| {AROUND} | | {around * 1e6:,.0f} | {around / step:.0%} |\n"
    yield from _table("function", found.functions, lines, found.traced)


def _table(heading: str, parts: Sequence[Part], lines: int, step: float) -> Iterator[str]:
    yield f"| {heading} | calls | us | share |"
    yield "| :-- | --: | --: | --: |"
    rest = parts[lines:]
    others = [Part(f"{len(rest)} others", sum(each.calls for each in rest), sum(each.seconds for each in rest))]
    for part in [*parts[:lines], *(others if rest else [])]:
        yield f"| {part.name} | {part.calls:.1f} | {part.seconds * 1e6:,.0f} | {part.seconds / step:.0%} |"


def _longest(parts: Sequence[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: -part.seconds)


def _place(file: str, line: int, name: str) -> str:
    """Return what people call a function: the end of its file's path, and its name."""
    return name if file == "~" else f"{'/'.join(Path(file).parts[-2:])}:{line} {name}"


if __name__ == "__main__":
    main()
