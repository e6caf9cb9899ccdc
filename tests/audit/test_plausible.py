from dataclasses import replace

import pytest

from squeeze.audit.plausible import impossible
from squeeze.records.record import Estimate, Status
from tests.fabricated import cell, record, smoke_records, too_good

SOUND = replace(smoke_records()[6], samples={"file": "x.npz", "sha256": "0" * 64})


def with_estimate(name, *figures):
    return replace(SOUND, estimates={**SOUND.estimates, name: Estimate(*figures)})


def test_what_a_real_run_gives_is_possible():
    for each in smoke_records()[:-1]:
        assert list(impossible(replace(each, samples=SOUND.samples))) == []
    assert list(impossible(smoke_records()[-1])) == []


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("mfu", (1.8,)),
        ("mbu", (1.06,)),
        ("bytes", (-1,)),
        ("load_peak_bytes", (-5, -6, -4)),
        ("acc_sciq", (1.01,)),
        ("acceptance_code", (1.01,)),
        ("acc_sciq", (-0.01,)),
        ("acc_sciq_delta", (-1.5,)),
        ("top1_agreement", (1.2,)),
        ("perplexity", (0.99,)),
        ("perplexity", (float("nan"),)),
        ("bits_per_byte", (float("inf"),)),
        ("kl_divergence", (-0.1,)),
        ("ttft_ms", (230.0, 231.0, 240.0)),
        ("ttft_ms", (230.0, 220.0, 229.0)),
        ("ttft_ms", (230.0, 220.0, float("inf"))),
        ("decode_speedup", (1.0, 0.9, 1.1, 1.5, 5)),
        ("decode_speedup", (1.0, 0.9, 1.1, -0.1, 5)),
        ("perplexity_ood", (0.99,)),
        ("decode_speedup", (1.0, 0.9, 1.1, 0.5, 0)),
    ],
)
def test_an_impossible_figure_is_named(name, figures):
    [what] = impossible(with_estimate(name, *figures))
    assert what.startswith(f"{name} ")


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("mfu", (1.04,)),  # the limit was measured, too
        ("perplexity_delta", (-0.01, -0.02, 0.01, 0.3, 64)),
        ("kl_divergence", (-1e-8,)),
        ("ttft_ms", (230.0, 230.0, 230.0)),
    ],
)
def test_a_figure_at_the_edge_is_possible(name, figures):
    assert list(impossible(with_estimate(name, *figures))) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finished": "2025-12-31T23:59:59+00:00"}, "before it started"),
        ({"block_nll": (1.0, float("nan"))}, "block_nll"),
        ({"block_nll": (1.0, -0.5)}, "block_nll"),
        ({"stages": {"build": -1.0}}, "stages.build is -1"),
        ({"realised": {"sparsity": 1.5}}, "realised.sparsity is 1.5, expected 0 to 1"),
        ({"realised": {"compressed_share": -0.1}}, "realised.compressed_share is -0.1, expected 0 to 1"),
        ({"samples": {}}, "without figures or samples"),
        ({"status": Status.CRASHED}, "status crashed without a reason"),
        ({"status": Status.TIMEOUT}, "status timeout without a reason"),
    ],
)
def test_other_contradictions_are_named(changes, words):
    [what] = impossible(replace(SOUND, **changes))
    assert words in what


@pytest.mark.parametrize(("bits", "words"), [(50.0, []), (70.0, ["expected at most the 64"])])
def test_a_draft_is_another_model_of_as_many_bits(bits, words):
    weights = {"bytes": 538_090_408, "effective_bits": bits, "compression_ratio": 32 / bits, "draft_bytes": 10**8}
    estimates = {name: Estimate(value) for name, value in weights.items()}
    found = list(impossible(record(cell("speculative_rtn", "inference", {}), estimates, samples=SOUND.samples)))
    assert [word in what for word, what in zip(words, found, strict=True)] == [True] * len(words)


def test_a_row_that_is_not_believed_has_its_flag():
    cheat = too_good(SOUND)
    [what] = impossible(cheat)
    assert what.startswith("has no flag 'implausible', though it predicts the text 5.98 nats")
    assert list(impossible(replace(cheat, flags=("implausible",)))) == []


@pytest.mark.parametrize(
    ("size", "bits", "ratio", "words"),
    [
        (538_090_408, 32.0016, 0.99995, None),  # float32, and the header of its file
        (50_000, 40.0, 0.8, None),  # a tiny model, much of it headers
        (50_000_000, 33.0, 32 / 33, "expected at most the 32"),  # 12 million parameters: a header is 0.04 bits
        (538_090_408, 40.0, 0.8, "expected at most the 32"),
        (113_147_632, 6.73, 8.0, "contradict"),
    ],
)
def test_bits_and_bytes_are_held_against_each_other(size, bits, ratio, words):
    weights = {"bytes": size, "effective_bits": bits, "compression_ratio": ratio}
    estimates = {name: Estimate(value) for name, value in weights.items()}
    found = list(impossible(record(cell("rtn", "q", {}), estimates, samples=SOUND.samples)))
    assert [words in what for what in found] == ([True] if words else [])
