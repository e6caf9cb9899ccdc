"""Tiny random models of every causal architecture that transformers has."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from squeeze.models.tiny import VOCABULARY

# One small shape in all architectures' words; what habits with logits have no effect by default get one that has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "d_ff", "decoder_ffn_dim", "ffn_hidden_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_intermediate_size", "shared_expert_intermediate_size"), 128),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_selected_experts"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    "head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "rotary_dim": 16,
    "final_logit_softcapping": 2.0,
    "logits_scaling": 3.0,
    "lm_head_multiplier": 3.0,
}
HABITS = ("final_logit_softcapping", "logits_scaling")  # None by default in some, which then heed them as well


def random_causal(model_type: str) -> PreTrainedModel:
    """A float32 model of two layers, the same every time; its logits are of size one."""
    made = CONFIG_MAPPING[model_type]()
    sizes = {
        name: value
        for name, value in SIZES.items()
        if hasattr(made, name) and (name in HABITS or getattr(made, name) is not None)
    }
    config = CONFIG_MAPPING[model_type](**sizes)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if isinstance(number := getattr(config, name, None), int) and number >= VOCABULARY:
            setattr(config, name, 1)
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)
