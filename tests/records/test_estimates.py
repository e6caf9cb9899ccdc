"""From samples to estimates: the process is the unit of a timing, rounds are paired, quality is paired by token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from squeeze.records import estimates as figures
from squeeze.records.record import Estimate
from squeeze.records.roofline import Machine


def timed(*seconds: float, batch: str = "1") -> list[dict[str, dict[str, list[float]]]]:
    """One process a round; each took so long for a token on the median, and ten times as long for the first."""
    return [{"token_s": {batch: [0.5 * each, each, 9 * each]}, "ttft_s": {batch: [10 * each] * 5}} for each in seconds]


def test_a_figure_is_the_median_over_rounds_of_process_medians() -> None:
    found = figures.speeds(timed(0.010, 0.020, 0.040), timed(0.020, 0.020, 0.020))
    assert found["decode_tokens_per_s"] == Estimate(50, 25, 100, n=3)
    assert found["ttft_ms"].value == pytest.approx(200)


def test_a_speedup_is_paired_by_round() -> None:
    """The machine became ten times slower half-way: the ratio does not notice."""
    own, other = (0.010, 0.0101, 0.100, 0.101, 0.0999), (0.020, 0.0202, 0.200, 0.202, 0.1998)
    speedup = figures.speeds(timed(*own), timed(*other))["decode_speedup"]
    assert speedup.value == pytest.approx(2)
    assert (speedup.low, speedup.high) == (pytest.approx(2), pytest.approx(2))
    assert figures.speeds(timed(*own), timed(*other))["ttft_speedup"].value == pytest.approx(2)


def test_fewer_than_five_rounds_give_no_interval() -> None:
    speedup = figures.speeds(timed(0.01, 0.01), timed(0.02, 0.02))["decode_speedup"]
    assert (speedup.low, speedup.p_value, speedup.n) == (None, None, 2)


def test_a_batch_is_named_and_counted() -> None:
    found = figures.speeds(timed(0.010, batch="8"), timed(0.010, batch="8"))
    assert found["decode_tokens_per_s_b8"].value == pytest.approx(800)
    assert "decode_tokens_per_s" not in found


def test_a_classifier_has_times_of_its_own() -> None:
    own, other = (
        [{"encode_s": {"1": [each] * 3, "8": [4 * each] * 3}} for each in times] for times in ((0.01,), (0.03,))
    )
    found = figures.speeds(own, other)
    assert found.keys() == {
        f"{name}{end}" for name in ("encode_ms", "items_per_s", "encode_speedup") for end in ("", "_b8")
    }
    assert found["encode_ms"].value == pytest.approx(10)
    assert found["items_per_s_b8"].value == pytest.approx(200)
    assert found["encode_speedup"].value == found["encode_speedup_b8"].value == pytest.approx(3)
    machine = Machine(threads=1, read_bandwidth=1e10, matmul={"float32": 1e12})
    rounds = [{**own[0], "arithmetic": "float32", "prefill_operations": {"1": 1e9}}]
    assert figures.utilisation(rounds, machine)["mfu"].value == pytest.approx(0.1)


def test_tokens_come_after_one_another_by_the_percentiles_of_each_process() -> None:
    """Three processes of 1 to 21 ms, and ten and a hundred times as slow: the 95th percentile is their 20th token.

    Pooled, it would be one of the slowest process's: 1,780 ms.
    """
    paces = [np.arange(1, 22) * each / 1000 for each in (10, 1, 100)]
    rounds = [{"token_s": {"1": pace.tolist(), "8": (2 * pace).tolist()}} for pace in paces]
    found = figures.inter_token(rounds)
    assert found.keys() == {"itl_p50_ms", "itl_p95_ms", "itl_p50_ms_b8", "itl_p95_ms_b8"}
    assert found["itl_p50_ms"] == approximately(Estimate(110, 11, 1100, n=3))
    assert found["itl_p95_ms"] == approximately(Estimate(200, 20, 2000, n=3))
    assert found["itl_p95_ms_b8"] == approximately(Estimate(400, 40, 4000, n=3))


def test_a_95th_percentile_takes_twenty_tokens_of_every_process() -> None:
    def rounds(*counts: int) -> list[dict[str, dict[str, list[float]]]]:
        return [{"token_s": {"1": [0.01] * count}} for count in counts]

    assert figures.inter_token(rounds(20, 20)).keys() == {"itl_p50_ms", "itl_p95_ms"}
    assert figures.inter_token(rounds(40, 19)).keys() == {"itl_p50_ms"}
    assert figures.inter_token(rounds(100, 99)).keys() == {"itl_p50_ms", "itl_p95_ms"}
    assert figures.inter_token(rounds(100, 128)).keys() == {"itl_p50_ms", "itl_p95_ms", "itl_p99_ms"}
    assert figures.inter_token([{"ttft_s": {"1": [0.01]}}]) == {}


def test_of_tokens_that_come_several_at_a_time_the_whole_counts() -> None:
    """Of a call of one token and one of five, a second each, the median token takes a fifth of a second."""
    drafted = [{"token_s": {"1": [1.0] + [0.2] * 5}, "calls": {"1": [1, 1, 0, 0, 0, 0]}, "bytes_per_token": 1.0}] * 2
    plain = [{"token_s": {"1": [0.5] * 6}}] * 2
    found = figures.speeds(drafted, plain)
    assert found["decode_tokens_per_s"] == approximately(Estimate(3, 3, 3, n=2))
    assert found["decode_speedup"].value == pytest.approx(1.5)
    machine = Machine(threads=1, read_bandwidth=1e3, matmul={})
    assert "mbu" not in figures.utilisation(drafted, machine), "what each of them has read is not known"


def test_of_a_hundred_tokens_one_lies_beyond_the_99th_percentile() -> None:
    """Of 1 to 101 ms it is the 100th token; the slowest of all moves it by nothing."""
    pace = [each / 1000 for each in range(1, 102)]
    rounds = [{"token_s": {"1": pace}}, {"token_s": {"1": [*pace[:-1], 9.0]}}]
    assert figures.inter_token(rounds)["itl_p99_ms"] == approximately(Estimate(100, 100, 100, n=2))


def test_first_tokens_have_a_curve_by_the_length_of_the_prompt() -> None:
    """Each length is paired with the baseline's calls of the same length, in the same round."""

    def rounds(*seconds: float) -> list[dict[str, Any]]:
        return [{"prompt_s": {"32": [each, 3 * each], "4096": [100 * each] * 2}} for each in seconds]

    own, baseline = rounds(0.010, 0.020, 0.030), rounds(0.015, 0.030, 0.045)
    found = figures.speeds(own, baseline)
    assert found.keys() == {
        *("ttft_ms_at_32", "ttft_speedup_at_32", "ttft_ms_at_4096", "ttft_speedup_at_4096"),
    }
    assert found["ttft_ms_at_32"] == approximately(Estimate(40, 20, 60, n=3))
    assert found["ttft_ms_at_4096"] == approximately(Estimate(2000, 1000, 3000, n=3))
    assert found["ttft_speedup_at_4096"].value == pytest.approx(1.5)
    for values in baseline:
        del values["prompt_s"]["4096"]
    assert figures.speeds(own, baseline).keys() == {"ttft_ms_at_32", "ttft_speedup_at_32", "ttft_ms_at_4096"}


def approximately(expected: Estimate) -> Estimate:
    return Estimate(*(pytest.approx(part) for part in (expected.value, expected.low, expected.high)), n=expected.n)


def test_an_encoder_has_no_decode() -> None:
    encoder = [{"ttft_s": {"1": [0.01] * 5}}]
    assert set(figures.speeds(encoder, encoder)) == {"ttft_ms", "ttft_speedup"}


def test_memory_is_the_median_over_rounds() -> None:
    rounds = [{"load_peak_bytes": size, "load_rss_anon_bytes": 7} for size in (30, 10, 20)]
    found = figures.memory(rounds)
    assert found["load_peak_bytes"] == Estimate(20, 10, 30, n=3)
    assert found["load_rss_anon_bytes"].value == 7
    assert "decode_peak_bytes" not in found


def test_loading_is_timed_by_its_stage_and_other_stages_are_no_part_of_it() -> None:
    rounds = [{"stages": {"load": seconds, "warmup": 9.0}} for seconds in (0.5, 0.3, 0.4)]
    assert figures.loading(rounds) == {"load_seconds": Estimate(0.4, 0.3, 0.5, n=3)}
    assert figures.loading([{"stages": {"warmup": 9.0}}]) == {}


def test_on_cuda_the_headline_is_what_torch_allocated() -> None:
    rounds = [{"load_peak_bytes": 5, "load_cuda_allocated_bytes": 100, "load_cuda_reserved_bytes": 120}]
    found = figures.memory(rounds)
    assert found["load_peak_bytes"].value == 100
    assert found["load_host_peak_bytes"].value == 5
    assert found["load_cuda_reserved_bytes"].value == 120


def test_utilisation() -> None:
    machine = Machine(threads=2, read_bandwidth=1e10, matmul={"bfloat16": 5e11, "int8": 1e12})
    work = {"bytes_per_token": 2e7, "prefill_operations": {"1": 4e10}}
    rounds = [{**each, **work, "arithmetic": "int8"} for each in timed(0.010)]
    found = figures.utilisation(rounds, machine)
    assert found["mbu"].value == pytest.approx(0.2)  # 100 tokens/s x 20 MB of 10 GB/s
    assert found["mfu"].value == pytest.approx(0.4)  # 0.4 TFLOP/s of 1
    rounds[0]["arithmetic"] = "float16"  # a peak that was not measured
    assert "mfu" not in figures.utilisation(rounds, machine)
    assert figures.utilisation(timed(0.010), machine) == {}, "of an engine that shows neither"


def test_the_first_step_of_a_process_has_a_figure_of_its_own() -> None:
    rounds = [{"first_step_s": {"1": seconds, "8": 100.0}} for seconds in (70.0, 60.0, 90.0)]
    assert figures.first_steps(rounds) == {"first_step_seconds": Estimate(70.0, 60.0, 90.0, n=3)}
    assert figures.first_steps([{}, {"first_step_s": {"1": None}}]) == {}


def test_the_perplexity_change_is_paired() -> None:
    """Tokens differ by far more than the models do; paired, the difference shows all the same."""
    baseline = np.random.default_rng(0).normal(2.5, 1.5, 8192)
    candidate = baseline + np.random.default_rng(1).normal(0.02, 0.05, 8192)
    delta = figures.changes({"token_nll": candidate}, {"token_nll": baseline}, seed=0)["perplexity_delta"]
    assert delta.value == pytest.approx(np.exp(candidate.mean()) - np.exp(baseline.mean()))
    assert delta.low is not None
    assert delta.low > 0
    assert delta.n == 16


def test_each_text_has_its_own_change() -> None:
    generator = np.random.default_rng(0)
    baseline = {name: generator.normal(2.5, 1.5, 8184) for name in ("token_nll", "token_nll_ood")}
    worse = {"token_nll": baseline["token_nll"] - 0.1, "token_nll_ood": baseline["token_nll_ood"] + 0.1}
    found = figures.changes(worse, baseline, seed=0)
    assert found["perplexity_delta"].value < 0 < found["perplexity_ood_delta"].value
    assert found["perplexity_ood_delta"].n == 16


@pytest.mark.parametrize(("tokens", "blocks"), [(8184, 16), (32736, 64), (100_000, 128), (600, 1), (100, 1)])
def test_a_record_keeps_losses_of_blocks_that_hardly_depend_on_each_other(tokens: int, blocks: int) -> None:
    losses = np.random.default_rng(0).normal(2.5, 1.5, tokens)
    kept = figures.block_losses(losses)
    assert len(kept) == blocks
    assert np.mean(kept) == pytest.approx(losses.mean(), abs=1e-3)


def test_the_same_answers_are_no_change() -> None:
    answers = np.arange(100) % 3 > 0
    found = figures.changes({"sciq_correct": answers}, {"sciq_correct": answers}, seed=0)
    change = found["acc_sciq_delta"]
    assert (change.value, change.p_value, change.n) == (0.0, 1.0, 100)
    assert change.low == pytest.approx(-0.027, abs=1e-3)


def test_lost_answers_show() -> None:
    answers = np.ones(100, dtype=bool)
    fewer = answers.copy()
    fewer[:20] = False
    change = figures.changes({"sciq_correct": fewer}, {"sciq_correct": answers}, seed=0)["acc_sciq_delta"]
    assert change.value == pytest.approx(-0.2)
    assert change.p_value == pytest.approx(2 * 0.5**20)


def test_models_that_scored_other_tokens_are_not_compared() -> None:
    with pytest.raises(ValueError, match="paired"):
        figures.changes({"token_nll": np.ones(4096)}, {"token_nll": np.ones(4095)}, seed=0)


def test_records_keep_what_is_finite_and_counts_exact() -> None:
    found = figures.known(
        {"a": Estimate(math.nan), "b": Estimate(math.inf), "c": Estimate(1 / 3, 0.25), "bytes": Estimate(123456789)}
    )
    assert found == {"c": Estimate(0.333333, 0.25), "bytes": Estimate(123456789)}


def test_scores_are_taken_by_name() -> None:
    found = figures.scores({"perplexity": 13.5, "acc_sciq": 0.7, "acc_sciq_stderr": 0.04, "scored_as": "itself"})
    assert {name: estimate.value for name, estimate in found.items()} == {
        "perplexity": 13.5,
        "acc_sciq": 0.7,
        "acc_sciq_stderr": 0.04,
    }


def test_what_training_took_adds_up_over_steps() -> None:
    steps = [
        {"tokens": 2048, "parameters": 900, "share": 0.03, "seconds": 3.5, "joules": 20.0},
        {"tokens": 1024, "parameters": 1200, "share": 0.04, "seconds": 1.5, "joules": 10.0},
    ]
    assert figures.training(steps) == {
        "training_tokens": Estimate(3072),
        "trainable_parameters": Estimate(1200),
        "trainable_share": Estimate(0.04),
        "training_seconds": Estimate(5.0),
        "training_joules": Estimate(30.0),
    }
    uncounted = [steps[0], {**steps[1], "joules": None}]
    assert "training_joules" not in figures.training(uncounted), "a part of the energy is not the energy"
    assert "trainable_share" not in figures.training([{**steps[0], "share": None}]), "no adapter was trained"
    assert figures.training([]) == {}
