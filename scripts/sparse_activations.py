"""Time products of one token that skip the columns which meet a zero, against dense ones: a table, by shape and share.

`SKIPS_FROM` and `SKIPS_OF` of squeeze/layers/thresholded.py are read off it. As in decoding, each product reads a
matrix that the last ones have pushed out of the cache: there are so many copies of it. A round times each way once over
all copies, the order turned round every time; a ratio is paired by round (above 1: skipping is faster), with a 95 %
interval.

    python -m scripts.sparse_activations --threads 2
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from squeeze.layers.thresholded import by_columns, skipped
from squeeze.records.record import Estimate
from squeeze.records.statistics import ratio

# (out_features, in_features): of SmolLM2-135M (k and v; q and o; gate and up; down), and of the 1.7B model's blocks.
SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (2048, 2048), (8192, 2048), (2048, 8192))
SHARES = (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DTYPES = ("bfloat16", "float32")
MB = 10**6
MOST_COPIES = 512

Product = Callable[[torch.Tensor], torch.Tensor]  # of a matrix with the one token's input


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="at least 5 (default: %(default)s)")
    parser.add_argument("--memory", type=int, default=128, help="MB that all copies of a matrix take together, more"
                        " than the cache (default: %(default)s)")  # fmt: skip
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES, help="(default: both)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, {options.rounds} rounds, {options.memory} MB of each matrix\n")
    print("| dtype | matrix | weights | zeros | dense, us | skipping, us | times as fast |")
    print("| :-- | :-- | --: | --: | --: | --: | :-- |")
    for line in rows(options):
        print(line, flush=True)


@torch.inference_mode()
def rows(options: argparse.Namespace) -> Iterator[str]:
    """Yield the rows of the table."""
    for dtype in options.dtypes:
        for shape in SHAPES:
            dense, columns = copies(shape, getattr(torch, dtype), options.memory * MB)
            for share in SHARES:
                inputs = one_token(shape[1], share, dense[0].dtype)
                ours, theirs = partial(skipping, inputs=inputs), partial(F.linear, inputs)
                times = paired((theirs, dense), (ours, columns), options.rounds)
                yield row(dtype, shape, share, *times)


def copies(
    shape: tuple[int, int], dtype: torch.dtype, most_bytes: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return so many copies of a matrix that they take these bytes, row by row as a plain layer has it, and by column.

    At least two, at most 512.
    """
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    count = min(max(2, most_bytes // weight.nbytes), MOST_COPIES)
    return [weight.clone() for _ in range(count)], [by_columns(weight) for _ in range(count)]


def one_token(width: int, share: float, dtype: torch.dtype) -> torch.Tensor:
    """Return inputs (1, width), of which a share, at random places, is zero."""
    generator = torch.Generator().manual_seed(width)
    inputs = torch.randn((1, width), generator=generator) + 3  # far from zero
    inputs[0, torch.randperm(width, generator=generator)[: round(share * width)]] = 0
    return inputs.to(dtype)


def skipping(weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return what the layer does where it skips, finding the zeros included."""
    token = inputs.flatten()
    return skipped(weight, token, token.nonzero().squeeze(1)).view(1, -1)


def paired(
    one: tuple[Product, Sequence[torch.Tensor]], other: tuple[Product, Sequence[torch.Tensor]], rounds: int
) -> tuple[list[float], list[float]]:
    """Return the seconds a product took in each round, of both ways; one round before them is not counted."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        both = list(zip(seconds, (one, other), strict=True))
        for kept, (product, weights) in both if number % 2 else reversed(both):
            begun = time.perf_counter()
            for weight in weights:
                product(weight)
            kept.append((time.perf_counter() - begun) / len(weights))
    return seconds[0][1:], seconds[1][1:]


def row(dtype: str, shape: tuple[int, int], share: float, dense: list[float], ours: list[float]) -> str:
    """Return one row; dense, ours: seconds by round."""
    faster = ratio([1 / each for each in ours], [1 / each for each in dense])
    middle = [f"{1e6 * sorted(each)[len(each) // 2]:.1f}" for each in (dense, ours)]
    size = f"{shape[0]} x {shape[1]} | {shape[0] * shape[1]:,}"
    return f"| {dtype} | {size} | {share:.0%} | {' | '.join(middle)} | {_interval(faster)} |"


def _interval(faster: Estimate) -> str:
    if faster.low is None or faster.high is None:
        return f"{faster.value:.2f}"
    return f"{faster.value:.2f} [{faster.low:.2f} to {faster.high:.2f}]"


if __name__ == "__main__":
    main()
