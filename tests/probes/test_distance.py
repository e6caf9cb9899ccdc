"""Distance of two models: against torch's own computation, and against what was planted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from squeeze.artifacts import format as artifact
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.layers.kv_cache import QuantizedCache
from squeeze.models.architecture import blocks
from squeeze.models.subject import Subject
from squeeze.probes.distance import Comparison, Conditions, distance, why_not_by_layer
from squeeze.probes.hidden_states import Errors
from squeeze.records.distance import Distance
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.slicegpt import SliceGPT
from tests.tiny import CAUSAL, tiny_subject

NAMES = ("first", "second")
TEXT = "".join(f"Line {number} of a text, {number * number} letters in.\n" for number in range(100))


def conditions(path: Path, **changes: object) -> Conditions:
    text = path / "text.txt"
    text.write_text(TEXT)
    return replace(Conditions(str(text), 300, 64, True, "cpu", torch.get_num_threads()), **changes)  # type: ignore[arg-type]


def saved(subject: Subject, folder: Path) -> Path:
    """As transformers saves it."""
    assert isinstance(subject.model, PreTrainedModel)
    subject.model.save_pretrained(folder)
    subject.tokenizer.save_pretrained(folder)
    return folder


def perturbed(name: str = "llama", block: int = 1) -> Subject:
    """A random model, one block of which is another."""
    subject = tiny_subject(name)
    with torch.no_grad():
        for parameter in blocks(subject.model)[block].parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
    return subject


def measured(path: Path, a: Subject, b: Subject, **changes: object) -> Distance:
    folders = (saved(a, path / "a"), saved(b, path / "b"))
    return distance(NAMES, folders, conditions(path, **changes))


@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_is_at_no_distance_at_all_from_itself(name: str, tmp_path: Path) -> None:
    found = measured(tmp_path, tiny_subject(name), tiny_subject(name))
    assert found.kl.value == 0
    assert set(found.kl_quantiles.values()) == {0.0}
    assert found.top1.value == found.perplexity_ratio.value == 1
    assert len(found.layers) == 3
    for layer in found.layers:
        for error in filter(None, (layer.accumulated, layer.alone)):
            assert (error.error, error.median_error, error.cosine) == (0, 0, 1)


@pytest.mark.parametrize("name", CAUSAL)
def test_an_error_is_seen_in_its_block_alone_and_accumulates_from_there_on(name: str, tmp_path: Path) -> None:
    (embeddings, first, second) = measured(tmp_path, tiny_subject(name), perturbed(name, block=0)).layers
    assert embeddings.accumulated.error == 0
    assert first.alone is not None
    assert second.alone is not None
    assert first.accumulated.error > 0.01
    assert first.alone == first.accumulated
    assert second.accumulated.error > 0.01
    assert second.alone.error == second.alone.median_error == 0
    last = measured(tmp_path, tiny_subject(name), perturbed(name, block=1)).layers[2]
    assert last.alone is not None
    assert last.alone.error == last.accumulated.error > 0.01


def test_all_figures_are_those_of_a_direct_computation(tmp_path: Path) -> None:
    a, b = tiny_subject("llama"), perturbed()
    found = measured(tmp_path, a, b)
    token_ids = torch.tensor(a.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:301])
    kl, nll, agree, last = [], [], [], []
    for start in range(0, 300, 64):
        part = token_ids[start : min(start + 64, 300)][None]
        outputs = [each.model(input_ids=part, output_hidden_states=True) for each in (a, b)]
        one, other = (F.log_softmax(output.logits[0].double(), dim=-1) for output in outputs)
        kl.append((one.exp() * (one - other)).sum(-1))
        agree.append(one.argmax(-1) == other.argmax(-1))
        targets = token_ids[start + 1 : start + 1 + part.shape[1]]
        nll.append(torch.stack([F.nll_loss(each, targets, reduction="none") for each in (one, other)]))
        with torch.no_grad():
            ends: list[torch.Tensor] = []
            for each in (a, b):
                handle = blocks(each.model)[1].register_forward_hook(
                    lambda _, __, output, ends=ends: ends.append(output)
                )
                each.model(input_ids=part)
                handle.remove()
        last.append(torch.stack([end[0] for end in ends]).double())
    kls, nlls, states = torch.cat(kl), torch.cat(nll, dim=1), torch.cat(last, dim=1)
    assert found.tokens == 300
    assert found.kl.value == pytest.approx(float(kls.mean()), rel=1e-4)
    assert found.kl_quantiles["p90"] == pytest.approx(float(kls.quantile(0.9)), rel=1e-4)
    assert found.kl_quantiles["max"] == pytest.approx(float(kls.max()), rel=1e-4)
    assert found.top1.value == pytest.approx(float(torch.cat(agree).double().mean()))
    assert found.perplexity_a == pytest.approx(float(nlls[0].mean().exp()), rel=1e-5)
    assert found.perplexity_b == pytest.approx(float(nlls[1].mean().exp()), rel=1e-5)
    difference = states[1] - states[0]
    after = found.layers[2].accumulated
    assert after.error == pytest.approx(float(difference.norm() / states[0].norm()), rel=1e-5)
    assert after.median_error == pytest.approx(
        float((difference.norm(dim=1) / states[0].norm(dim=1)).median()), rel=1e-5
    )
    assert after.cosine == pytest.approx(float(F.cosine_similarity(states[0], states[1]).mean()), rel=1e-6)


def test_the_first_is_the_reference(tmp_path: Path) -> None:
    forth = measured(tmp_path, tiny_subject("llama"), tiny_subject("llama", seed=1))
    back = measured(tmp_path, tiny_subject("llama", seed=1), tiny_subject("llama"))
    assert forth.perplexity_a == back.perplexity_b
    assert forth.kl.value != pytest.approx(back.kl.value, rel=1e-3)


def test_the_worst_tokens_are_told_with_what_both_predict(tmp_path: Path) -> None:
    a, b = tiny_subject("llama"), perturbed()
    found = measured(tmp_path, a, b)
    worst = found.worst[0]
    assert [each.kl for each in found.worst] == sorted((each.kl for each in found.worst), reverse=True)
    assert len(found.worst) == 5
    assert worst.kl == found.kl_quantiles["max"]
    start = worst.position // 64 * 64
    assert TEXT[start : worst.position + 1].endswith(worst.context)
    assert worst.actual == TEXT[worst.position + 1]
    ids = torch.tensor([list(TEXT[start : worst.position + 1].encode())])
    tokens = torch.tensor(a.tokenizer(TEXT, add_special_tokens=False)["input_ids"])
    assert a.tokenizer.decode(tokens[start : worst.position + 1]) == bytes(ids[0].tolist()).decode()
    for guess, side in ((worst.a, a), (worst.b, b)):
        probabilities = side.model(input_ids=tokens[None, start : worst.position + 1]).logits[0, -1].softmax(-1)
        assert guess.probability == pytest.approx(float(probabilities.max()), rel=1e-4)
        assert guess.of_actual == pytest.approx(float(probabilities[tokens[worst.position + 1]]), rel=1e-4)
        assert guess.token == side.tokenizer.decode([int(probabilities.argmax())])


def test_windows_one_by_one_give_what_one_window_gives_where_none_sees_another() -> None:
    """A text that is the same window twice: streamed, it is scored twice alike."""
    a, b = tiny_subject("llama"), perturbed()
    ids = torch.tensor(a.tokenizer(TEXT[:65], add_special_tokens=False)["input_ids"])
    once, twice = (Comparison(a, b, Errors(), Errors()) for _ in range(2))
    once(ids)
    twice(ids)
    twice(ids)
    assert np.array_equal(twice.token_scores().kl, np.tile(once.token_scores().kl, 2))
    assert [each.accumulated.error for each in twice.layers()] == pytest.approx(
        [each.accumulated.error for each in once.layers()], rel=1e-12
    )
    assert [each.alone and each.alone.cosine for each in twice.layers()[1:]] == pytest.approx(
        [each.alone and each.alone.cosine for each in once.layers()[1:]], rel=1e-12
    )


def test_few_rows_of_logits_at_once_give_what_all_at_once_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(tmp_path, tiny_subject("llama"), perturbed())
    monkeypatch.setattr("squeeze.probes.divergence.HEAD_ROWS", 48)
    monkeypatch.setattr("squeeze.probes.divergence.SOFTMAX_ROWS", 5)
    parts = measured(tmp_path, tiny_subject("llama"), perturbed())
    assert parts.kl.value == pytest.approx(whole.kl.value, rel=1e-5)
    assert parts.perplexity_b == pytest.approx(whole.perplexity_b, rel=1e-6)
    assert [each.position for each in parts.worst] == [each.position for each in whole.worst]


def test_a_cache_that_takes_a_window_in_parts_is_compared_part_by_part(tmp_path: Path) -> None:
    coarse = replace(tiny_subject("llama"), cache=QuantizedCache(bits=2, group_size=16, residual=16))
    artifact.save(tiny_subject("llama"), tmp_path / "a")
    artifact.save(coarse, tmp_path / "b")
    found = distance(NAMES, (tmp_path / "a", tmp_path / "b"), conditions(tmp_path))
    embeddings, first, second = found.layers
    assert embeddings.accumulated.error == 0
    assert found.kl.value > 0
    assert first.alone is not None
    assert second.alone is not None
    assert first.alone.error == pytest.approx(first.accumulated.error)
    assert 0 < second.alone.error < second.accumulated.error


def test_models_of_other_sizes_are_compared_as_a_whole_only(tmp_path: Path) -> None:
    short = tiny_subject("llama")
    del short.model.model.layers[1]  # type: ignore[union-attr]
    short.model.config.num_hidden_layers = 1  # type: ignore[union-attr]
    found = measured(tmp_path, tiny_subject("llama"), short)
    assert found.layers == ()
    assert found.no_layers == "A has 2 blocks, B 1"
    assert found.kl.value > 0
    narrow = tiny_subject("llama").model
    narrow.config.hidden_size = 32  # type: ignore[union-attr]
    assert why_not_by_layer(narrow, short.model) == "A has 2 blocks, B 1"
    assert "32 dimensions, B's 64" in why_not_by_layer(narrow, tiny_subject("llama").model)


def test_states_of_a_sliced_model_are_not_compared() -> None:
    text = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(0)))
    sliced = SliceGPT(1.0).apply(tiny_subject("llama"), text).model
    assert why_not_by_layer(tiny_subject("llama").model, sliced).startswith("B's hidden states lie in another frame")
    assert why_not_by_layer(tiny_subject("llama").model, tiny_subject("llama").model) == ""


def test_other_vocabularies_are_refused_with_both_sizes(tmp_path: Path) -> None:
    larger = tiny_subject("llama")
    larger.model.resize_token_embeddings(300)  # type: ignore[operator]
    with pytest.raises(SqueezeError, match="first predicts 260 tokens, second 300: KL needs one vocabulary"):
        measured(tmp_path, tiny_subject("llama"), larger)


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    for folder, name in (("a", "llama"), ("b", "bert")):
        artifact.save(tiny_subject(name), tmp_path / folder)
    with pytest.raises(
        SqueezeError, match="second: BertModel has no language-modelling head, so it predicts no tokens"
    ):
        distance(NAMES, (tmp_path / "a", tmp_path / "b"), conditions(tmp_path))


def saved_with_another_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """One model twice, in a and b; the tokenizer of b is changed where it is saved."""
    for name in "ab":
        saved(tiny_subject("llama"), folder / name)
    path = folder / "b" / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_other_tokenizers_are_refused_with_the_first_token_that_differs(tmp_path: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        vocabulary = content["model"]["vocab"]
        vocabulary["n"], vocabulary["e"] = vocabulary["e"], vocabulary["n"]

    saved_with_another_tokenizer(tmp_path, swap)
    with pytest.raises(
        SqueezeError, match=r"differ: token 2 of text .* \('n'\) to the first, .* \('n'\) to the second"
    ):
        distance(NAMES, (tmp_path / "a", tmp_path / "b"), conditions(tmp_path))


def test_a_tokenizer_that_makes_fewer_tokens_is_another_one(tmp_path: Path) -> None:
    fewer = {"type": "Replace", "pattern": {"Regex": "[a-z ]"}, "content": ""}
    saved_with_another_tokenizer(tmp_path, lambda content: content.update(normalizer=fewer))
    tokens = len(TEXT.encode()) - 1
    with pytest.raises(SqueezeError, match=r"tokenizers of first and second differ: to the second, text .* are asked"):
        distance(NAMES, (tmp_path / "a", tmp_path / "b"), conditions(tmp_path, tokens=tokens))


def test_a_folder_without_tokenizer_takes_the_references(tmp_path: Path) -> None:
    saved(tiny_subject("llama"), tmp_path / "a")
    saved(tiny_subject("llama"), tmp_path / "b")
    for path in (tmp_path / "b").glob("tokenizer*"):
        path.unlink()
    assert distance(NAMES, (tmp_path / "a", tmp_path / "b"), conditions(tmp_path)).kl.value == 0
    with pytest.raises(SqueezeError, match=r"no tokenizer; save it beside the model with tokenizer\.save_pretrained"):
        distance(NAMES, (tmp_path / "b", tmp_path / "a"), conditions(tmp_path))


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    a = saved(tiny_subject("llama"), tmp_path / "a")
    with pytest.raises(IntegrityError, match=r"no model; expected config\.json and \*\.safetensors"):
        distance(NAMES, (a, tmp_path), conditions(tmp_path))
    shutil.copytree(a, tmp_path / "torn")
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(IntegrityError, match="torn: not a readable model"):
        distance(NAMES, (a, tmp_path / "torn"), conditions(tmp_path))


def test_too_long_a_window_too_short_a_text_and_no_gpu_are_refused(tmp_path: Path) -> None:
    folders = (saved(tiny_subject("llama"), tmp_path / "a"),) * 2
    with pytest.raises(SqueezeError, match="first has 2,048 positions, a window 4,096; give --window 2048 or less"):
        distance(NAMES, folders, conditions(tmp_path, window=4096))
    with pytest.raises(SqueezeError, match=r"are asked; ask for fewer"):
        distance(NAMES, folders, conditions(tmp_path, tokens=100_000))
    if not torch.cuda.is_available():
        with pytest.raises(SqueezeError, match="no CUDA device is usable here; use --device cpu"):
            distance(NAMES, folders, conditions(tmp_path, device="cuda"))


def test_what_is_not_finite_is_said(tmp_path: Path) -> None:
    broken = tiny_subject("llama")
    with torch.no_grad():
        next(blocks(broken.model)[0].parameters()).fill_(float("nan"))
    with pytest.raises(SqueezeError, match="not finite at 300 of 300 tokens, the first of them 0"):
        measured(tmp_path, tiny_subject("llama"), broken)
