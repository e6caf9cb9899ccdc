import json

import pytest
import torch

from squeeze.models.architecture import blocks, weight
from squeeze.techniques import statistics_cache
from squeeze.techniques.block_walk import walk
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.statistics_cache import StatisticsCache
from tests.tiny import tiny_model

TOKENS = torch.randint(0, 256, (3, 16), generator=torch.Generator().manual_seed(0))


def passes(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def test_what_is_read_is_what_was_collected(tmp_path):
    model = tiny_model("llama")
    collected = list(walk(model, TOKENS))
    for _ in range(2):  # made, then read
        stored = list(StatisticsCache(tmp_path).input_statistics(model, TOKENS))
        assert [stop[:2] for stop in stored] == [stop[:2] for stop in collected]
        for (_, _, ours), (_, _, theirs) in zip(stored, collected, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                for field in ("hessian", "mean_abs", "low", "high"):
                    assert torch.equal(getattr(ours[name], field), getattr(theirs[name], field))
                assert ours[name].tokens == theirs[name].tokens
            assert ours["self_attn.q_proj"] is ours["self_attn.k_proj"]
            assert ours["self_attn.q_proj"] is not ours["self_attn.o_proj"]


def test_the_model_runs_once_and_its_cost_is_told_to_those_who_reuse(tmp_path, monkeypatch):
    model, walks = tiny_model("llama"), []
    monkeypatch.setattr(statistics_cache, "walk", lambda *arguments: walks.append(1) or walk(*arguments))
    first, second = StatisticsCache(tmp_path), StatisticsCache(tmp_path)
    list(first.input_statistics(model, TOKENS))
    assert first.reused_seconds == 0
    list(second.input_statistics(model, TOKENS))
    assert len(walks) == 1
    (name,) = passes(tmp_path)
    assert second.reused_seconds == json.loads((tmp_path / name / statistics_cache.INFO).read_text())["seconds"] > 0


def test_other_weights_or_tokens_or_configuration_are_another_pass(tmp_path):
    model = tiny_model("llama")
    shared = StatisticsCache(tmp_path)
    list(shared.input_statistics(model, TOKENS))
    list(shared.input_statistics(model, TOKENS + 1))
    weight(blocks(model)[1].mlp.up_proj)[0, 0] += 1
    list(shared.input_statistics(model, TOKENS))
    model.config.rms_norm_eps *= 2
    list(shared.input_statistics(model, TOKENS))
    assert len(passes(tmp_path)) == 4
    assert shared.reused_seconds == 0


def test_a_pass_that_was_interrupted_is_not_there(tmp_path, monkeypatch):
    def broken(model, token_ids):
        yield next(walk(model, token_ids))
        raise KeyboardInterrupt

    model = tiny_model("llama")
    with monkeypatch.context() as patch:
        patch.setattr(statistics_cache, "walk", broken)
        with pytest.raises(KeyboardInterrupt):
            list(StatisticsCache(tmp_path).input_statistics(model, TOKENS))
    assert passes(tmp_path) == []
    assert len(list(StatisticsCache(tmp_path).input_statistics(model, TOKENS))) == 2


def test_sequential_statistics_never_come_from_the_shared_pass(tmp_path):
    calibration = CalibrationText(TOKENS, shared=StatisticsCache(tmp_path))
    list(calibration.input_statistics(tiny_model("llama"), sequential=True))
    assert passes(tmp_path) == []
    list(calibration.input_statistics(tiny_model("llama")))
    assert len(passes(tmp_path)) == 1
