"""Divergence: the distance from the baseline, from its hidden states and its own head."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.layers.quantized import QuantizedLinear
from squeeze.models.architecture import head, last_hidden_state
from squeeze.models.subject import Subject
from squeeze.models.tiny import byte_tokenizer
from squeeze.probes.divergence import FILE_NAME, Divergence, WideHead, divergence, hidden_writer, stored_head, wide_head
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.causal import random_causal
from tests.tiny import CAUSAL, tiny_model, tiny_subject

NO_DATA = CalibrationText.empty()
CPU = torch.device("cpu")


def states(tokens: int = 150, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1)).to(dtype)


def keep(folder: Path, hidden: torch.Tensor, parts: int = 3) -> None:
    with hidden_writer(folder, len(hidden)) as write:
        for part in hidden.chunk(parts):
            write(part)


def test_kl_is_that_of_a_calculation_by_hand() -> None:
    baseline = torch.tensor([[0.5, 0.25, 0.25]]).log()
    candidate = torch.tensor([[0.25, 0.5, 0.25]]).log() + 3  # logits are free up to a constant
    kl, top1 = divergence(baseline, candidate)
    assert kl.item() == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2), rel=1e-6)
    assert top1.tolist() == [False]


def test_kl_is_from_the_baseline_to_the_candidate_not_back() -> None:
    baseline, candidate = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forth = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert divergence(baseline, candidate)[0].item() == pytest.approx(forth, rel=1e-6)
    assert divergence(candidate, baseline)[0].item() != pytest.approx(forth, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_few_bits_lose_none_of_the_divergence(dtype: torch.dtype) -> None:
    baseline = states(40).to(dtype)
    candidate = baseline + (0.1 * states(40).flip(0)).to(dtype)
    kl, top1 = divergence(baseline, candidate)
    expected, agree = divergence(baseline.float(), candidate.float())
    assert torch.equal(kl, expected)
    assert torch.equal(top1, agree)


def test_other_vocabularies_are_not_compared() -> None:
    with pytest.raises(SqueezeError, match="predicts 5 tokens, the compressed one 4"):
        divergence(torch.zeros(1, 5), torch.zeros(1, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hidden_states_are_kept_as_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    hidden = states(dtype=dtype)
    keep(tmp_path, hidden)
    assert torch.equal(load_file(tmp_path / FILE_NAME)["hidden"], hidden)
    header = int.from_bytes((tmp_path / FILE_NAME).read_bytes()[:8], "little")
    assert header % 8 == 0  # numbers are aligned


@pytest.mark.parametrize("name", CAUSAL)
def test_the_stored_head_is_the_models_own_tied_or_not(name: str, tmp_path: Path) -> None:
    subject = tiny_subject(name, "bfloat16")
    artifact.save(subject, tmp_path)
    hidden = states(dtype=torch.bfloat16)
    expected = head(subject.model).float()(hidden.float())
    torch.testing.assert_close(stored_head(tmp_path, CPU)(hidden), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_at_no_distance_from_itself(dtype: torch.dtype, tmp_path: Path) -> None:
    own = head(tiny_model("llama", str(dtype).removeprefix("torch.")))
    hidden = states(dtype=dtype)
    keep(tmp_path, hidden)
    compare = Divergence(tmp_path, own, own)
    for part in hidden.split(70):
        compare(part)
    assert torch.cat(compare.kl).tolist() == pytest.approx([0.0] * len(hidden), abs=1e-6)  # products may round apart
    assert torch.cat(compare.top1).all()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_equal_hidden_states_are_at_no_distance_whatever_the_heads_dtype(stored: torch.dtype, tmp_path: Path) -> None:
    weight = torch.randn(5000, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    hidden = 3 * states(600, torch.bfloat16)
    keep(tmp_path, hidden)
    compare = Divergence(tmp_path, WideHead(weight), WideHead(weight.to(stored)))
    compare(hidden)
    assert torch.cat(compare.kl).abs().max() < 1e-6
    assert torch.cat(compare.top1).all()
    rounded = divergence(F.linear(hidden.float(), weight.float()), F.linear(hidden, weight))
    assert rounded[0].mean() > 1e-4  # what applying the head in bfloat16 would report
    assert not rounded[1].all()


def test_a_compressed_head_is_the_matrix_that_it_multiplies_with() -> None:
    subject = RoundToNearest(8, 32, symmetric=True, embed_bits=8).apply(tiny_subject("llama", "bfloat16"), NO_DATA)
    hidden, layer = states(40, torch.bfloat16), head(subject.model)
    assert isinstance(layer, QuantizedLinear)
    expected = F.linear(hidden.float(), layer.dequantize().float())
    torch.testing.assert_close(wide_head(subject.model)(hidden), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model_type", ["granite", "gemma2"])
def test_both_sides_do_to_logits_what_the_model_does(model_type: str, tmp_path: Path) -> None:
    model = random_causal(model_type)
    artifact.save(Subject(model, byte_tokenizer()), tmp_path)
    token_ids = torch.arange(40)[None]
    hidden, expected = last_hidden_state(model, input_ids=token_ids)[0], model(input_ids=token_ids).logits[0]
    for own in (wide_head(model), stored_head(tmp_path, CPU)):
        torch.testing.assert_close(own(hidden), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(head(model)(hidden), expected, atol=1e-2)


def test_the_stored_head_has_its_bias(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    head(subject.model).bias = torch.nn.Parameter(torch.arange(float(len(head(subject.model).weight))))
    artifact.save(subject, tmp_path)
    expected = head(subject.model)(states())
    torch.testing.assert_close(stored_head(tmp_path, CPU)(states()), expected, rtol=0, atol=1e-5)


def test_each_side_has_its_own_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("squeeze.probes.divergence.HEAD_ROWS", 64)
    baseline, candidate = head(tiny_model("llama", seed=1)), head(tiny_model("llama", seed=2))
    hidden, others = states(), states() + 0.1
    keep(tmp_path, hidden)
    compare = Divergence(tmp_path, candidate, baseline)
    compare(others)
    expected, agree = divergence(baseline(hidden), candidate(others))
    torch.testing.assert_close(torch.cat(compare.kl), expected)
    assert torch.equal(torch.cat(compare.top1), agree)
    assert (expected > 0).all()


def test_more_tokens_than_the_baseline_scored_are_refused(tmp_path: Path) -> None:
    keep(tmp_path, states(10))
    own = head(tiny_model("llama"))
    with pytest.raises(IntegrityError, match="ends before token 11; score the baseline again"):
        Divergence(tmp_path, own, own)(states(11))


def test_a_missing_or_torn_file_is_refused(tmp_path: Path) -> None:
    own = head(tiny_model("llama"))
    with pytest.raises(IntegrityError, match="not readable"):
        Divergence(tmp_path, own, own)(states(4))
    keep(tmp_path, states(10))
    whole = (tmp_path / FILE_NAME).read_bytes()
    (tmp_path / FILE_NAME).write_bytes(whole[:-100])
    with pytest.raises(IntegrityError, match="not readable"):
        Divergence(tmp_path, own, own)(states(4))
    artifact.save(tiny_subject("llama"), tmp_path)
    weights = tmp_path / artifact.WEIGHTS
    for damage in (lambda: weights.write_bytes(weights.read_bytes()[:-100]), weights.unlink):
        damage()
        with pytest.raises(IntegrityError, match="no readable head 'lm_head'"):
            stored_head(tmp_path, CPU)
