"""Turn samples into estimates, by the names of the leaderboard's columns.

A timing's unit is the process: each round gives one median (of tokens that come several at a time, one mean), an
estimate is the median over rounds with the rounds' least and greatest as its spread; a speed-up is paired by round, and
within a round by turns. Quality is paired by token and by item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from squeeze.records.record import RECORD_BLOCKS, Estimate
from squeeze.records.roofline import Machine, mbu, mfu
from squeeze.records.statistics import (
    TOKEN_BLOCK,
    accuracy_change,
    block_means,
    perplexity_delta,
    ratio,
    token_blocks,
)
from squeeze.records.turns import in_bursts, round_ratio, seconds_each

# Token times of a process that have such a percentile: one of them at least lies beyond it.
FEWEST = {50: 1, 95: 20, 99: 100}
STEPS = ("load", "prefill", "decode")  # those of a latency process
MEMORY = ("peak", "peak_anon_bound", "rss_anon", "rss_file", "cuda_reserved", "cuda_device")
SIZES = (
    *("bytes", "bytes_on_disk", "effective_bits", "block_effective_bits", "compression_ratio"),
    *("cache_bytes_per_token", "adapter_bytes", "draft_bytes", "visual_tokens", "visual_tokens_kept"),
)
SCORES = ("perplexity", "perplexity_ood", "perplexity_held_out", "bits_per_byte", "kl_divergence", "top1_agreement")
TEXTS = {
    "token_nll": "perplexity_delta",
    "token_nll_ood": "perplexity_ood_delta",
    "token_nll_held_out": "perplexity_held_out_delta",
}

Values = Mapping[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]
Estimates = dict[str, Estimate]


def known(estimates: Estimates) -> Estimates:
    """Return the estimates whose value is finite, rounded to the digits that a record keeps."""
    return {name: _rounded(estimate) for name, estimate in estimates.items() if math.isfinite(estimate.value)}


def sizes(values: Values) -> Estimates:
    """Return what the artifact weighs."""
    return {name: Estimate(values[name]) for name in SIZES if name in values}


def memory(processes: Sequence[Values], steps: Sequence[str] = STEPS) -> Estimates:
    """Return each step's peak over the processes that took it, and what lay in memory afterwards.

    On CUDA the peak is what torch allocated there; the host's own is called load_host_peak_bytes, and so on.
    """
    found = {}
    for step in steps:
        names = {f"{step}_{part}_bytes": f"{step}_{part}_bytes" for part in MEMORY}
        if f"{step}_cuda_allocated_bytes" in processes[0]:
            names[f"{step}_host_peak_bytes"] = f"{step}_peak_bytes"
            names[f"{step}_peak_bytes"] = f"{step}_cuda_allocated_bytes"
        for name, source in names.items():
            if source in processes[0]:
                found[name] = _spread([values[source] for values in processes])
    return found


def loading(rounds: Sequence[Values]) -> Estimates:
    """Return the seconds from a process that has imported everything to a model that can be asked.

    Its files were read shortly before, when quality was scored: they come from memory where it holds them, not disk.
    """
    seconds = [values["stages"]["load"] for values in rounds if "load" in values.get("stages", {})]
    return {"load_seconds": _spread(seconds)} if seconds else {}


def speeds(rounds: Sequence[Values], baseline: Sequence[Values]) -> Estimates:
    """Return ttft_ms, decode_tokens_per_s, of a classifier encode_ms and items_per_s, and ratios to the baseline's.

    Of batch sizes above 1 with suffix _b8; of the prompts of the curve, whose lengths differ, with suffix _at_512.
    """
    found = {}
    for batch in rounds[0].get("ttft_s", {}):
        own = medians(rounds, "ttft_s", batch)
        found[f"ttft_ms{suffix(batch)}"] = _spread([1000 * seconds for seconds in own])
        found[f"ttft_speedup{suffix(batch)}"] = _speed_up(rounds, baseline, "ttft_s", batch)
    for tokens in rounds[0].get("prompt_s", {}):
        own = medians(rounds, "prompt_s", tokens)
        found[f"ttft_ms{at(tokens)}"] = _spread([1000 * seconds for seconds in own])
        if tokens in baseline[0].get("prompt_s", {}):  # which may take shorter prompts
            found[f"ttft_speedup{at(tokens)}"] = _speed_up(rounds, baseline, "prompt_s", tokens)
    for batch in rounds[0].get("token_s", {}):
        own = medians(rounds, "token_s", batch)
        found[f"decode_tokens_per_s{suffix(batch)}"] = _spread([int(batch) / seconds for seconds in own])
        found[f"decode_speedup{suffix(batch)}"] = _speed_up(rounds, baseline, "token_s", batch)
    for batch in rounds[0].get("encode_s", {}):
        own = medians(rounds, "encode_s", batch)
        found[f"encode_ms{suffix(batch)}"] = _spread([1000 * seconds for seconds in own])
        found[f"items_per_s{suffix(batch)}"] = _spread([int(batch) / seconds for seconds in own])
        found[f"encode_speedup{suffix(batch)}"] = _speed_up(rounds, baseline, "encode_s", batch)
    return found


def inter_token(rounds: Sequence[Values]) -> Estimates:
    """Return percentiles of the milliseconds from a token to the next: itl_p50_ms, the median, itl_p95_ms, itl_p99_ms.

    Percentiles are a process's own: over pooled rounds, that of the slowest process would be the 95th of all. One that
    some process has fewer times than ``FEWEST`` for is left out. Tokens that one call gave share its time.
    """
    found = {}
    for batch in rounds[0].get("token_s", {}):
        times = [1000 * np.asarray(values["token_s"][batch], dtype=float) for values in rounds]
        for percent, fewest in FEWEST.items():
            if min(map(len, times)) >= fewest:
                own = [float(np.percentile(each, percent)) for each in times]
                found[f"itl_p{percent}_ms{suffix(batch)}"] = _spread(own)
    return found


def first_steps(rounds: Sequence[Values]) -> Estimates:
    """Return the seconds of the first decoding step of a process, one request: where a graph is compiled, all of it."""
    seconds = [values.get("first_step_s", {}).get("1") for values in rounds]
    known = [each for each in seconds if each is not None]
    return {"first_step_seconds": _spread(known)} if known else {}


def energy(rounds: Sequence[Values]) -> Estimates:
    """Return joules for each decoded token, where the machine counts them in every round."""
    found = {}
    for batch in rounds[0].get("energy_j_per_token", {}):
        joules = [values["energy_j_per_token"][batch] for values in rounds]
        if None not in joules:
            found[f"energy_j_per_token{suffix(batch)}"] = _spread(joules)
    return found


def training(trained: Sequence[Values]) -> Estimates:
    """Return what training took, over all steps of a recipe that trained; nothing of one that did not.

    trained: as build.json has them. Tokens, seconds and joules are added up; of parameters and of their share, the
    most that one of the steps trained. What is not known of every step has no figure.
    """
    columns: dict[str, tuple[str, Callable[[list[float]], float]]] = {
        "training_tokens": ("tokens", sum),
        "trainable_parameters": ("parameters", max),
        "trainable_share": ("share", max),
        "training_seconds": ("seconds", sum),
        "training_joules": ("joules", sum),
    }
    found = {}
    for column, (name, together) in columns.items():
        values = [each[name] for each in trained if each.get(name) is not None]
        if values and len(values) == len(trained):
            found[column] = Estimate(together(values))
    return found


def utilisation(rounds: Sequence[Values], machine: Machine) -> Estimates:
    """Return, of batch 1, decoding as a share of the machine's read bandwidth, prefill of its matrix-product peak.

    The peak is that of the arithmetic which really runs: int8 where the blocks multiply integers, else the dtype.
    Nothing of an engine that does not show what it reads and multiplies, nor what tokens that come several at a time
    have read each.
    """
    found = {}
    shown = "bytes_per_token" in rounds[0] and not in_bursts(rounds[0], "token_s", "1")
    if shown and "1" in rounds[0].get("token_s", {}):
        rate = 1 / median(medians(rounds, "token_s", "1"))
        found["mbu"] = Estimate(mbu(rate, rounds[0]["bytes_per_token"], machine.read_bandwidth))
    arithmetic = str(rounds[0].get("arithmetic"))
    whole = next((name for name in ("ttft_s", "encode_s") if "1" in rounds[0].get(name, {})), None)
    if whole is not None and arithmetic in machine.matmul:
        seconds = median(medians(rounds, whole, "1"))
        found["mfu"] = Estimate(mfu(seconds, rounds[0]["prefill_operations"]["1"], machine.matmul[arithmetic]))
    return found


def medians(rounds: Sequence[Values], name: str, point: str) -> list[float]:
    """Return the median of each round's process, in seconds; of tokens that came in bursts, the mean.

    point: a batch size, or the tokens of a prompt.
    """
    return [seconds_each(values, name, point) for values in rounds]


def suffix(batch: str) -> str:
    """Return what tells a batch size apart in a column's name: nothing for 1."""
    return "" if batch == "1" else f"_b{batch}"


def at(tokens: str) -> str:
    """Return what tells a prompt's length apart in a column's name."""
    return f"_at_{tokens}"


def scores(values: Values) -> Estimates:
    """Return perplexity, accuracies and distances from the baseline, as the quality stage found them."""
    names = [*SCORES, *sorted(name for name in values if name.startswith("acc_"))]
    return {name: Estimate(values[name]) for name in names if values.get(name) is not None}


def changes(arrays: Arrays, baseline: Arrays, seed: int) -> Estimates:
    """Return the paired change of perplexity on each text and of accuracy on each task, with intervals and p-values."""
    found = {}
    for name, change in TEXTS.items():
        if name in arrays:
            block = max(TOKEN_BLOCK, arrays[name].size // RECORD_BLOCKS)
            found[change] = perplexity_delta(arrays[name], baseline[name], block, seed)
    for name in sorted(name for name in arrays if name.endswith("_correct")):
        found[f"acc_{name.removesuffix('_correct')}_delta"] = accuracy_change(arrays[name], baseline[name])
    return found


def _speed_up(rounds: Sequence[Values], baseline: Sequence[Values], name: str, point: str) -> Estimate:
    """Return how many times as fast the processes of the rounds were as the baseline's."""
    if len(rounds) != len(baseline):
        raise ValueError(f"rounds must be paired: {len(rounds)} of the candidate, {len(baseline)} of the baseline")
    ratios = [round_ratio(own, other, name, point) for own, other in zip(rounds, baseline, strict=True)]
    return ratio([1 / each for each in ratios], [1.0] * len(ratios))


def block_losses(nll: npt.ArrayLike) -> tuple[float, ...]:
    """Return what a record keeps of nll (tokens,) to rank it: mean NLL of at most 128 blocks, of 512 tokens or more."""
    return tuple(round(value, 5) for value in block_means(nll, min(RECORD_BLOCKS, token_blocks(np.size(nll)))))


def _spread(values: Sequence[float]) -> Estimate:
    """Return the median of the rounds, with their least and greatest: a spread, not a confidence interval."""
    return Estimate(median(values), min(values), max(values), n=len(values))


def _short(number: float) -> float:
    """Return six significant digits; counts, such as bytes, stay exact."""
    return int(number) if number == int(number) else float(f"{number:.6g}")


def _rounded(estimate: Estimate) -> Estimate:
    low, high, p_value = (
        None if number is None else _short(number) for number in (estimate.low, estimate.high, estimate.p_value)
    )
    return Estimate(_short(estimate.value), low, high, p_value, estimate.n)
