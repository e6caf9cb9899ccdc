"""Quality: through lm-eval, in the compressed model's own words, against its baseline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.probes import quality, rounding, samples
from squeeze.probes.divergence import FILE_NAME
from squeeze.probes.quality import standard_error
from squeeze.sources import questions as data
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.quantization.torch_dynamic import TorchDynamic
from tests.scored import PROTOCOL, made_up_data, measure  # noqa: F401 - a fixture
from tests.tiny import tiny_subject

SCALARS = {"perplexity", "bits_per_byte", "acc_lambada", "acc_sciq", "acc_lambada_stderr", "acc_sciq_stderr"}
COMPARED = {"kl_divergence", "top1_agreement"}


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    subject = tiny_subject("llama")
    artifact.save(subject, tmp_path / "artifact")
    measure(subject, tmp_path / "baseline")
    return tmp_path / "baseline"


def test_a_baselines_samples_have_the_names_of_the_contract(baseline: Path) -> None:
    found = samples.read(baseline)
    assert found.values.keys() >= SCALARS | {"batch_dependent", "diverged", "stages"}
    assert not found.values.keys() & COMPARED
    assert {name: array.shape for name, array in found.arrays.items()} == {
        "token_nll": (295,),  # five windows, the first token of each unscored
        "window": (295,),
        "lambada_correct": (3,),
        "lambada_loglik": (3, 1),
        "sciq_correct": (3,),
        "sciq_loglik": (3, 3),
        "floor_kl": (295,),
        "floor_top1": (295,),
    }
    assert found.values["floor_rounding"] == "float32 against itself, read 256 tokens at a time"
    assert (baseline / FILE_NAME).stat().st_size == pytest.approx(295 * 64 * 4, abs=200)
    assert np.isnan(found.arrays["sciq_loglik"]).tolist() == [[False] * 3, [False, False, True], [False] * 3]


def test_of_a_whole_text_only_whole_windows_are_scored(tmp_path: Path) -> None:
    total = len(data.corpora.text("").encode())
    assert total % 64
    perplexity = {**PROTOCOL["perplexity"], "tokens": None}
    found = measure(tiny_subject("llama"), tmp_path / "whole", perplexity=perplexity, tasks=[])
    assert found.arrays["token_nll"].shape == (total // 64 * 63,)


def test_scalars_are_those_of_the_arrays(baseline: Path) -> None:
    found = samples.read(baseline)
    assert found.values["perplexity"] == pytest.approx(math.exp(found.arrays["token_nll"].mean(dtype=np.float64)))
    chosen = np.nanargmax(found.arrays["sciq_loglik"], axis=1)
    assert found.arrays["sciq_correct"].tolist() == (chosen == 0).tolist()
    assert found.values["acc_sciq"] == found.arrays["sciq_correct"].mean()


def test_a_model_is_at_no_distance_from_itself(baseline: Path, tmp_path: Path) -> None:
    found = measure(artifact.load(tmp_path / "artifact"), tmp_path / "self", baseline)
    assert (found.values["kl_divergence"], found.values["top1_agreement"]) == (0.0, 1.0)
    assert np.array_equal(found.arrays["token_nll"], samples.read(baseline).arrays["token_nll"])
    assert not (tmp_path / "self" / FILE_NAME).exists()


def test_a_compressed_model_is_measured_as_it_is(baseline: Path, tmp_path: Path) -> None:
    subject = RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    found = measure(subject, tmp_path / "rtn", baseline)
    assert found.arrays["kl"].shape == found.arrays["top1"].shape == found.arrays["confidence"].shape == (295,)
    assert not [name for name in found.arrays if name.startswith("floor")]
    assert found.values["kl_divergence"] == pytest.approx(found.arrays["kl"].mean()) != 0
    assert 0 < found.values["top1_agreement"] < 1
    assert found.values["batch_dependent"] is False
    assert found.values["packed"] is True


def test_the_baselines_confidence_is_that_in_its_likeliest_token(baseline: Path, tmp_path: Path) -> None:
    """Whatever the candidate: 295 tokens, the first window's by hand."""
    subject = artifact.load(tmp_path / "artifact")
    compressed = RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    found = measure(compressed, tmp_path / "rtn", baseline).arrays["confidence"]
    window = data.corpora.tokens("wikipedia_eval", subject.tokenizer, 64)
    expected = subject.model(input_ids=window[None]).logits[0, :-1].softmax(-1).amax(-1)
    assert found.dtype == np.float16
    assert found[:63].tolist() == pytest.approx(expected.tolist(), rel=1e-3)


def test_a_baseline_is_as_far_from_itself_as_rounding_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "PART", 4)  # of matrices as small as these, longer parts give the same bits
    found = measure(tiny_subject("llama", "bfloat16"), tmp_path, tasks=[])
    assert 1e-7 < found.arrays["floor_kl"].mean() < 1e-3
    assert found.values["floor_rounding"].startswith("bfloat16 against itself")
    exact = measure(tiny_subject("llama"), tmp_path / "float32", tasks=[])
    assert abs(exact.arrays["floor_kl"].mean()) < 1e-7


GENERATIONS = {"prompts": 8, "tokens": 12}


def test_prompts_are_continued_where_the_protocol_asks_for_it(baseline: Path, tmp_path: Path) -> None:
    """A baseline's in both ways, so that each candidate finds those made as its own are."""
    kept = measure(artifact.load(tmp_path / "artifact"), tmp_path / "kept", generations=GENERATIONS)
    assert (kept.arrays["generated"].shape, kept.arrays["generated_alone"].shape) == ((8, 12), (2, 12))
    assert kept.arrays["generated"][:2].tolist() == kept.arrays["generated_alone"].tolist()
    changes = {"generations": GENERATIONS, "tasks": []}
    same = measure(artifact.load(tmp_path / "artifact"), tmp_path / "same", baseline, **changes)
    assert np.array_equal(same.arrays["generated"], kept.arrays["generated"])
    assert "generated_alone" not in same.arrays
    subject = RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    assert (
        measure(subject, tmp_path / "rtn", baseline, **changes).arrays["generated"] != kept.arrays["generated"]
    ).any()
    subject = TorchDynamic(per_channel=True, activation_bits=7).apply(tiny_subject("llama"), CalibrationText.empty())
    dynamic = measure(subject, tmp_path / "dynamic", baseline, **changes)
    assert "generated" not in dynamic.arrays
    assert dynamic.arrays["generated_alone"].shape == (2, 12)


def test_a_batch_dependent_model_is_scored_one_request_at_a_time(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    real = quality.subject_lm

    def spy(*arguments: Any, **settings: Any) -> Any:
        seen.update(settings)
        return real(*arguments, **settings)

    monkeypatch.setattr(quality, "subject_lm", spy)
    subject = TorchDynamic(per_channel=True, activation_bits=7).apply(tiny_subject("llama"), CalibrationText.empty())
    found = measure(subject, tmp_path / "dynamic", baseline)
    assert found.values["batch_dependent"] is True
    assert (seen["token_budget"], seen["packed"]) == (0, False)


@pytest.mark.parametrize(("weight", "finite"), [(float("nan"), False), (1e4, True)])
def test_a_diverged_model_is_said_to_be(weight: float, finite: bool, tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    subject.model.lm_head.weight[7].fill_(weight)
    found = measure(subject, tmp_path)
    assert found.values["diverged"] is True
    assert "guessing gives 260" in found.values["reason"]
    assert math.isnan(found.values["perplexity"]) is not finite


def test_corrupted_weights_worsen_the_distance_not_the_probe(baseline: Path, tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    subject.model.model.layers[1].mlp.down_proj.weight[:, ::2] = 0
    found = measure(subject, tmp_path / "corrupted", baseline)
    assert found.values["kl_divergence"] > 0
    assert found.values["batch_dependent"] is False


def test_a_baseline_of_another_text_is_refused(baseline: Path, tmp_path: Path) -> None:
    perplexity = {**PROTOCOL["perplexity"], "tokens": 240}
    with pytest.raises(IntegrityError, match="not the same text or tokenizer"):
        measure(artifact.load(tmp_path / "artifact"), tmp_path / "other", baseline, perplexity=perplexity)


def test_a_second_text_is_scored_where_the_protocol_asks_for_it(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves nothing else: the distance from the baseline is that on the first text."""
    texts = {"wikipedia_eval": data.corpora.text(""), "speeches": "Fellow citizens of the Senate. " * 50}
    monkeypatch.setattr(data.corpora, "text", texts.__getitem__)
    ood = {"corpus": "speeches", "tokens": 200, "window": 64, "stride": 64}
    subject = RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    without = measure(subject, tmp_path / "without", baseline)
    found = measure(subject, tmp_path / "with", baseline, perplexity_ood=ood)
    assert found.arrays["token_nll_ood"].shape == (200 - 4,)
    assert found.values["perplexity_ood"] == pytest.approx(math.exp(found.arrays["token_nll_ood"].mean()), rel=1e-5)
    assert abs(found.values["perplexity_ood"] - found.values["perplexity"]) > 1
    for name, array in without.arrays.items():
        assert np.array_equal(found.arrays[name], array, equal_nan=True), name
    assert found.values["perplexity"] == without.values["perplexity"]
    assert "perplexity_ood" not in without.values


def test_an_unknown_task_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(SqueezeError, match=r"unknown task 'sciqq'.*sciq"):
        measure(tiny_subject("llama"), tmp_path, tasks=["sciqq"])


def test_standard_errors() -> None:
    assert standard_error([True, False, True, True]) == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert standard_error([True]) is None


def test_the_tokenizer_decides_which_tokens_are_the_same(baseline: Path, tmp_path: Path) -> None:
    """Two equal runs name the same tokens; that is what joins candidate and baseline."""
    again = measure(replace(tiny_subject("llama")), tmp_path / "again")
    assert again.values["tokens_sha256"] == samples.read(baseline).values["tokens_sha256"]


def test_a_text_alone_is_scored_without_asking_for_branches(baseline: Path, tmp_path: Path) -> None:
    found = measure(tiny_subject("llama"), tmp_path / "text", baseline, tasks=[])
    assert found.values["packed"] is False
    assert np.array_equal(found.arrays["token_nll"], samples.read(baseline).arrays["token_nll"])


def test_a_quantized_cache_is_scored_through(baseline: Path, tmp_path: Path) -> None:
    """Two bits of the keys and values, not a bit of the weights: the change can only come from the cache."""
    subject = KIVI(bits=2, group_size=8).apply(artifact.load(tmp_path / "artifact"), CalibrationText.empty())
    found = measure(subject, tmp_path / "cached", baseline)
    nll, exact = (samples.read(folder).arrays["token_nll"] for folder in (tmp_path / "cached", baseline))
    first = np.arange(len(nll)) % 63 < 8  # the first group of each window of 64 sees no rounded one
    assert np.abs(nll - exact)[first].max() < 1e-4
    assert np.abs(nll - exact)[~first].mean() > 1e-3
    assert found.values["kl_divergence"] > 0
    assert found.values["packed"] is False
