"""Logits are made of hidden states as each model's own forward makes them, or the model is refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import head, last_hidden_state
from squeeze.models.logits import logits_of
from tests.causal import random_causal
from tests.tiny import tiny_model

TOKEN_IDS = torch.arange(3, 13)[None]

# Architectures that are left out, by reason; a name that transformers no longer has is no harm.
LEFT_OUT = {
    "parts for images or sound, of a size that no field of its configuration shrinks": """
        blt dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_unified git got_ocr2 llama4 mllama musicgen
        musicgen_melody moss_transcribe_diarize phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp""",
    "more than three million parameters, or over a second, at the sizes of tests/causal.py": """
        axk1 bamba cpmant deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 falcon_h1 glm4_moe_lite glm_moe_dsa
        granitemoehybrid hy_v4 inkling2_text inkling_text kimi_linear longcat_flash nemotron_h qwen3_5_moe_text
        qwen4_exp_text roc_bert youtu""",
    "fields that must fit one another, and those of tests/causal.py do not": """
        axk2 cohere_compass_text dbrx dots1 dots3_note_text falcon gemma3n_text gemma4_assistant gemma4_text
        gemma4_unified_assistant gemma4_unified_text gpt_neo hunyuan_v1_dense hunyuan_v1_moe lfm2_moe mamba2 minicpm3
        ministral nemotron prophetnet reformer xlnet xmod zamba zamba2 zaya""",
    "no base model that gives hidden states: refused": "llama4_text",
}
TRIED = sorted(CAUSAL.keys() - {name for names in LEFT_OUT.values() for name in names.split()})
HABITS = {"cohere", "gemma2", "granite", "hyperclovax", "nanochat", "recurrent_gemma", "xlstm"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", TRIED)
@torch.no_grad()
def test_logits_are_those_of_the_models_own_forward(model_type: str) -> None:
    model = random_causal(model_type)
    hidden = last_hidden_state(model, input_ids=TOKEN_IDS, use_cache=False)[0]
    expected = model(input_ids=TOKEN_IDS, use_cache=False).logits[0]
    bound = 1e-5 * float(expected.abs().max())
    torch.testing.assert_close(logits_of(model)(hidden), expected, rtol=0, atol=bound)
    if model_type in HABITS:
        assert (head(model)(hidden) - expected).abs().max() > 50 * bound


def test_several_dozens_are_tried_and_all_whose_habits_are_known() -> None:
    assert len(TRIED) > 100
    assert set(TRIED) >= HABITS


def test_where_the_forward_adds_nothing_the_head_is_applied_as_it_is() -> None:
    model = tiny_model("llama", "bfloat16")
    assert logits_of(model) is head(model)


def test_a_cap_that_shows_at_large_logits_only_is_found() -> None:
    model = random_causal("gemma2")
    model.config.final_logit_softcapping = 500.0
    assert logits_of(model) is not head(model)


def test_gradients_flow_through_what_is_done_to_logits() -> None:
    model = random_causal("granite")
    hidden = torch.randn(5, 64, requires_grad=True)
    logits_of(model)(hidden).sum().backward()
    expected = head(model).weight.sum(0) / model.config.logits_scaling
    torch.testing.assert_close(hidden.grad, expected.expand(5, -1))


class Shifted(nn.Module):
    """A head whose output depends on where a token stands, as no function of one hidden state does."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.in_features, self.calls = layer, layer.in_features, 0

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.layer(hidden) + self.calls


def test_what_is_no_function_of_the_hidden_states_is_refused_by_name() -> None:
    model = tiny_model("llama")
    model.lm_head = Shifted(model.lm_head)
    with pytest.raises(Unsupported, match="LlamaForCausalLM transforms its logits in a way that squeeze does not know"):
        logits_of(model)


def test_a_forward_that_asks_no_transformer_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    model.model.forward = model.model.forward  # an instance's own, as libraries leave it
    before = model.model.__dict__["forward"]
    assert logits_of(model) is head(model)
    assert model.model.__dict__["forward"] is before
    with pytest.raises(Unsupported, match="Llama4ForCausalLM transforms its logits"):
        logits_of(random_causal("llama4_text"))
