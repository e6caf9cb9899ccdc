"""An engine that torch cannot look into is scored on the same tokens and questions as any model, by its own logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError
from squeeze.probes import samples
from squeeze.probes.engine_quality import measure_engine
from squeeze.probes.samples import Samples
from squeeze.sources import questions as data
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.engines import opaque
from tests.scored import PROTOCOL, made_up_data, measure  # noqa: F401 - a fixture
from tests.tiny import tiny_subject

GENERATIONS = {"prompts": 8, "tokens": 6}
OTHER_TEXT = {"corpus": "speeches", "tokens": 200, "window": 64, "stride": 64}


@pytest.fixture
def baseline(tmp_path: Path) -> Path:
    artifact.save(tiny_subject("llama"), tmp_path / "artifact")
    measure(tiny_subject("llama"), tmp_path / "baseline", generations=GENERATIONS)
    return tmp_path / "baseline"


def scored(engine: Any, folder: Path, baseline: Path, **changes: Any) -> Samples:
    collected = Samples(folder)
    measure_engine(engine, {**PROTOCOL, **changes}, collected, baseline, baseline.with_name("artifact"))
    collected.write()
    return samples.read(folder)


def test_the_same_weights_are_at_no_distance_and_as_good(baseline: Path, tmp_path: Path) -> None:
    kept = samples.read(baseline)
    asked = {"generations": GENERATIONS, "perplexity_ood": OTHER_TEXT}
    found = scored(opaque(tiny_subject("llama")), tmp_path / "same", baseline, **asked)
    assert found.values["perplexity"] == pytest.approx(kept.values["perplexity"], rel=1e-5)
    assert found.values["kl_divergence"] == pytest.approx(0, abs=1e-6)
    assert (found.values["top1_agreement"], found.values["diverged"]) == (1.0, kept.values["diverged"])
    np.testing.assert_allclose(found.arrays["token_nll"], kept.arrays["token_nll"], atol=1e-4)
    for name in ("lambada_loglik", "sciq_loglik"):
        np.testing.assert_allclose(found.arrays[name], kept.arrays[name], rtol=1e-4)
    assert np.array_equal(found.arrays["generated_alone"], kept.arrays["generated_alone"])
    assert found.values["causal"] is True
    assert found.arrays["token_nll_ood"].shape == (196,)
    assert found.values["packed"] is False
    assert "batch_dependent" not in found.values
    assert found.arrays["kl"].shape == found.arrays["confidence"].shape == (295,)


def test_what_an_engine_loses_is_found_as_it_is_of_a_model(baseline: Path, tmp_path: Path) -> None:
    rounded = RoundToNearest(2, 32, symmetric=True).apply(tiny_subject("llama"), CalibrationText.empty())
    expected = measure(rounded, tmp_path / "model", baseline)
    found = scored(opaque(rounded, exact=False), tmp_path / "engine", baseline)
    for name in ("perplexity", "kl_divergence", "top1_agreement", "bits_per_byte", "acc_sciq", "acc_lambada"):
        assert found.values[name] == pytest.approx(expected.values[name], rel=1e-4), name
    np.testing.assert_allclose(found.arrays["kl"], expected.arrays["kl"], atol=1e-5)


def test_an_engine_that_sees_what_comes_is_not_causal(baseline: Path, tmp_path: Path) -> None:
    def ahead(logits: Tensor) -> Tensor:
        return torch.cat([logits[:, :-1] + 5 * logits[:, 1:], logits[:, -1:]], dim=1)

    assert scored(opaque(tiny_subject("llama"), ahead), tmp_path / "ahead", baseline).values["causal"] is False


def test_a_better_one_is_scored_on_held_out_text_too(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f"{number}: the cat sat on a mat.\n" for number in range(2500))
    monkeypatch.setattr(data.corpora, "text", lambda _: text)
    measure(tiny_subject("llama"), tmp_path / "long", tasks=[])
    flatter = opaque(tiny_subject("llama"), lambda logits: logits * 0.5)  # a random model is too sure of itself
    found = scored(flatter, tmp_path / "flatter", tmp_path / "long", tasks=[])
    assert found.values["perplexity"] < samples.read(tmp_path / "long").values["perplexity"]
    assert (
        found.arrays["token_nll_held_out"].shape == samples.read(tmp_path / "long").arrays["token_nll_held_out"].shape
    )


def test_a_baseline_of_another_text_is_refused(baseline: Path, tmp_path: Path) -> None:
    fewer = {**PROTOCOL["perplexity"], "tokens": 240}
    with pytest.raises(IntegrityError, match="not the same text or tokenizer"):
        scored(opaque(tiny_subject("llama")), tmp_path / "other", baseline, perplexity=fewer)
