"""Make random models of a few layers, of every architecture, with a byte-level tokenizer: at once, without files."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from squeeze.core.errors import SqueezeError, hint

END, PAD, CLS, SEP = "<|endoftext|>", "<|pad|>", "[CLS]", "[SEP]"
SPECIAL_TOKENS = (END, PAD, CLS, SEP)
VOCABULARY = 256 + len(SPECIAL_TOKENS)
PICTURE = "<image>"  # the further token of models that read pictures, which stands for a piece of one
KINDS: dict[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "encoder": AutoModel,
    "classifier": AutoModelForSequenceClassification,
    "vision_language": AutoModelForImageTextToText,
}

# One shape in each architecture's own words: 2 layers, hidden 64 (groups of 16, 32 and 64 divide it), 4 heads.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    },
    "gpt2": {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 2048},
    "opt": {
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
    },
    "gpt_neox": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
    },
    "bert": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
    },
}
# A Llama that reads pictures of 48 x 48 in 36 tokens; of 4 layers, so that some are left behind the first two.
SHAPES["llava"] = {
    "text_config": {"model_type": "llama", **SHAPES["llama"], "num_hidden_layers": 4},
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "projection_dim": 32,
        "image_size": 48,
        "patch_size": 8,
    },
    "image_seq_length": 36,
    "image_token_index": VOCABULARY,
}


def random_model(architecture: str, seed: int, kind: str) -> PreTrainedModel:
    """Return a float32 model of the named architecture (a key of ``SHAPES``) and kind, the same for the same seed.

    Every parameter is random, biases and norms too, so that a technique that loses one of them is noticed.
    Torch's global generator is left as it was. Raises SqueezeError for an unknown architecture.
    """
    if architecture not in SHAPES:
        raise SqueezeError(f"random:{architecture}: unknown architecture; {hint(architecture, SHAPES)}")
    config = CONFIG_MAPPING[architecture](**_in_words(SHAPES[architecture]))
    auto_class = KINDS[kind]
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + 1 if _is_norm_scale(name, parameter) else noise)
    return model


def byte_tokenizer(*, encloses: bool = False, pictures: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a byte (ids 0-255), then ``SPECIAL_TOKENS``; saved and loaded like any fast one.

    encloses: whether a text is enclosed in [CLS] and [SEP], as encoders expect. pictures: whether it has ``PICTURE``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIAL_TOKENS, *([PICTURE] if pictures else [])])
    if encloses:
        ids = [(token, backend.token_to_id(token)) for token in (CLS, SEP)]
        backend.post_processor = processors.TemplateProcessing(single=f"{CLS} $A {SEP}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        cls_token=CLS,
        sep_token=SEP,
        model_max_length=2048,
    )


def _in_words(shape: dict[str, Any]) -> dict[str, Any]:
    """Return a shape with the vocabulary of ``byte_tokenizer``: its own, or that of the language model within."""
    if "text_config" in shape:
        words = {**_in_words(shape["text_config"]), "vocab_size": VOCABULARY + 1}
        return {**shape, "text_config": words}
    return {
        "vocab_size": VOCABULARY,
        "bos_token_id": SPECIAL_TOKENS.index(END) + 256,
        "eos_token_id": SPECIAL_TOKENS.index(END) + 256,
        "pad_token_id": SPECIAL_TOKENS.index(PAD) + 256,
        **shape,
    }


def _is_norm_scale(name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 1 and name.endswith("weight")
