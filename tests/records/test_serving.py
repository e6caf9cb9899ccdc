"""What people who serve models ask for, against figures computed by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from squeeze.records import serving
from squeeze.records.record import Estimate, Record
from tests.fabricated import PROTOCOL, cell, record

LINE = {
    "load_peak_bytes": Estimate(900_000_000),
    "context_fixed_bytes": Estimate(800_000_000),
    "context_bytes_per_token": Estimate(50_000),
    "positions": Estimate(8192),
}


def row(estimates: Mapping[str, Estimate]) -> Record:
    protocol = {**PROTOCOL, "latency": {"prompt_tokens": 128}}
    return record(cell("rtn", "quantization", {"bits": 4}, protocol=protocol), estimates)


def test_memory_is_a_line_through_the_peaks_of_two_prompts() -> None:
    values = {"context_peak_bytes": {"1024": 851_200_000, "256": 812_800_000}, "context_cache_bytes": 1024 * 23_040}
    found = serving.context({**values, "positions": 8192})
    assert "context_tokens_held" not in found
    assert found["positions"].value == 8192
    assert "positions" not in serving.context({**values, "positions": None})
    assert found["context_bytes_per_token"].value == 50_000  # 38.4 MB for 768 tokens
    assert found["context_fixed_bytes"].value == 800_000_000


def test_a_token_takes_what_the_cache_keeps_of_it_at_least() -> None:
    """Peaks have noise of megabytes, the cache was counted: of a tiny model the slope would be noise, or negative."""
    values = {"context_peak_bytes": {"256": 300_000_000, "1024": 299_000_000}, "context_cache_bytes": 1_024_000}
    assert serving.context(values)["context_bytes_per_token"].value == 1_000
    assert serving.context(values)["context_fixed_bytes"].value == 299_000_000 - 1_024_000


FORGETS = {  # more than 448 tokens, of 20 kB each, on a process of 800 MB
    "context_peak_bytes": {"256": 805_120_000, "2048": 810_240_000},
    "context_cache_bytes": 448 * 20_000,
    "context_tokens_held": 448,
    "positions": 8192,
}


def test_a_cache_that_forgets_has_a_line_that_ends() -> None:
    """Through both peaks it would be too flat: 2,857 bytes a token, and 811 MB were enough for 2,314 tokens."""
    found = serving.context(FORGETS)
    assert found["context_bytes_per_token"].value == 20_000
    assert found["context_tokens_held"].value == 448
    assert found["context_fixed_bytes"].value == 810_240_000 - 448 * 20_000


def test_no_shorter_prompt_takes_more_than_the_line_says() -> None:
    """Of a process that takes 800 MB and 20 kB a token until it holds 512: 448, and the 64 that it is reading."""
    line = {name: estimate.value for name, estimate in serving.context(FORGETS).items()}
    for tokens in range(1, 4097):
        held = min(tokens, line["context_tokens_held"])
        said = line["context_fixed_bytes"] + line["context_bytes_per_token"] * held
        assert said >= 800_000_000 + 20_000 * min(tokens, 512)


@pytest.mark.parametrize(
    ("memory", "tokens"),
    [
        (810_240_000, 8192),  # when it is full, it grows no more
        (811e6, 8192),
        (810_240_000 - 1, 447),
        (810_240_000 - 248 * 20_000, 200),
        (801e6, 0),
    ],
)
def test_a_cache_that_forgets_takes_every_prompt_once_it_fits_full(memory: float, tokens: int) -> None:
    estimates = {"load_peak_bytes": Estimate(790_000_000), **serving.context(FORGETS)}
    assert serving.longest_context(row(estimates), memory) == {"max_context_estimated": Estimate(tokens)}


def test_a_model_without_a_cache_has_no_context() -> None:
    assert serving.context({"ttft_s": {"1": [0.1]}}) == {}


@pytest.mark.parametrize(
    ("memory", "tokens"),
    [
        (1e9, 4000),  # 200 MB beyond the fixed part, at 50 kB a token
        (1e9 - 1, 3999),  # the last one does not fit
        (4e9, 8192),  # the model has no more positions
        (899e6, 0),  # it could run, but not load
        (0.5e9, 0),
    ],
)
def test_the_longest_context_is_the_one_that_fits(memory: float, tokens: int) -> None:
    assert serving.longest_context(row(LINE), memory) == {"max_context_estimated": Estimate(tokens)}


@pytest.mark.parametrize("missing", LINE)
def test_there_is_no_longest_context_where_a_figure_is_missing(missing: str) -> None:
    estimates = {name: estimate for name, estimate in LINE.items() if name != missing}
    assert serving.longest_context(row(estimates), 4e9) == {}


def test_memory_that_does_not_grow_with_the_prompt_leaves_the_models_positions() -> None:
    flat = {**LINE, "context_bytes_per_token": Estimate(0)}
    found = serving.longest_context(row(flat), 4e9)["max_context_estimated"]
    assert found == Estimate(int(LINE["positions"].value))


def test_a_rate_of_nothing_has_no_cost() -> None:
    stopped = {"decode_tokens_per_s": Estimate(10.0, 0.0, 20.0), "ttft_ms": Estimate(0)}
    assert serving.costs(row(stopped), 1.0) == {}


def test_a_million_tokens_cost_so_many_hours_of_the_machine() -> None:
    """100 tokens/s are 10,000 s a million, 2.7778 hours; a prompt of 128 tokens in 64 ms is 2,000 tokens/s."""
    estimates = {
        "decode_tokens_per_s": Estimate(100.0, 50.0, 200.0, n=5),
        "decode_tokens_per_s_b8": Estimate(400.0),
        "ttft_ms": Estimate(64.0, 32.0, 128.0, n=5),
        "ttft_ms_b8": Estimate(256.0),
        "ttft_speedup": Estimate(2.0),
    }
    found = serving.costs(row(estimates), 0.36)
    assert {name: estimate.value for name, estimate in found.items()} == pytest.approx(
        {
            "cost_per_mtok": 1.0,
            "cost_per_mtok_b8": 0.25,
            "cost_per_mtok_prefill": 0.05,
            "cost_per_mtok_prefill_b8": 0.025,
        }
    )
    assert (found["cost_per_mtok"].low, found["cost_per_mtok"].high) == (pytest.approx(0.5), pytest.approx(2.0))
    prefill = found["cost_per_mtok_prefill"]
    assert (prefill.low, prefill.high, prefill.n) == (pytest.approx(0.025), pytest.approx(0.1), 5)
    assert found["cost_per_mtok_b8"].low is None


def test_prompts_of_each_length_have_a_cost_of_their_own() -> None:
    """4,096 tokens in 2.048 s are 2,000 a second."""
    curve = {"ttft_ms_at_4096": Estimate(2048.0, 1024.0, 4096.0, n=8), "ttft_ms_at_32": Estimate(32.0)}
    found = serving.costs(row({**curve, "ttft_speedup_at_32": Estimate(1.5)}), 0.36)
    assert found.keys() == {"cost_per_mtok_prefill_at_4096", "cost_per_mtok_prefill_at_32"}
    long = found["cost_per_mtok_prefill_at_4096"]
    assert (long.value, long.low, long.high, long.n) == (*map(pytest.approx, (0.05, 0.025, 0.1)), 8)
    assert found["cost_per_mtok_prefill_at_32"].value == pytest.approx(0.1)


def test_figures_of_no_tokens_have_no_cost() -> None:
    nothing = {"ttft_ms_at_0": Estimate(64.0), "ttft_ms_b0": Estimate(64.0), "decode_tokens_per_s_b0": Estimate(9.0)}
    assert serving.costs(row(nothing), 0.36) == {}


def test_a_protocol_that_names_no_prompt_has_no_cost_of_reading_one() -> None:
    bare = record(cell("rtn", "quantization", {"bits": 4}), {"ttft_ms": Estimate(64.0)})
    assert serving.costs(bare, 0.36) == {}
