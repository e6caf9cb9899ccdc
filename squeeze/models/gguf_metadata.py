"""Write down in a GGUF what a model is and how it reads text: hyperparameters, and the tokenizer.

llama.cpp knows by name how a tokenizer splits text before it merges bytes. A name is written only where that split is
the one that ours makes, so that token ids are the same (of text in Unicode's composed form, where ours composes it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedTokenizerBase

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.gguf_names import family
from squeeze.models.layout import head_size
from squeeze.models.subject import Subject

BYTES, DIGITS = ("ByteLevel", False, True), ("Digits", True)
# Our pre-tokenizer, part by part, and llama.cpp's name of the same.
SPLITS: Mapping[tuple[tuple[Any, ...], ...], str] = {(BYTES,): "gpt-2", (DIGITS, BYTES): "smollm"}
# Of each kind of part, what decides where it splits. (``trim_offsets`` is about places in the text, not tokens.)
DECIDES = {"ByteLevel": ("add_prefix_space", "use_regex"), "Digits": ("individual_digits",)}
# Normalizers that leave most text alone: what NFC composes is composed already. llama.cpp has none.
COMPOSES = frozenset({"NFC"})
# Merges begin with single characters, so that none ever joins these. llama.cpp refuses a file without any merge.
NO_MERGE = "none none"


def write(writer: Any, subject: Subject) -> None:
    """Give a ``gguf.GGUFWriter`` the hyperparameters and the tokenizer of a subject.

    Raises Unsupported for what llama.cpp computes otherwise: another activation, scaled rotary embeddings, a tokenizer
    that is not of byte pairs, or splits text in a way that has no name here.
    """
    _hyperparameters(writer, subject)
    _tokenizer(writer, subject.tokenizer, architecture.shape(architecture.head(subject.model))[0])


def _hyperparameters(writer: Any, subject: Subject) -> None:
    model = subject.model
    config: Any = model.config
    kind, size, rope = family(model).name, head_size(model), _rope(config)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_vocab_size(architecture.shape(architecture.head(model))[0])
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(architecture.blocks(model)))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if kind == "llama":
        _check_activation(config, "silu")
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        _check_activation(config, "gelu")
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)


def _rope(config: Any) -> Mapping[str, Any]:
    rope: Mapping[str, Any] = config.rope_parameters
    if (kind := rope.get("rope_type", "default")) != "default":
        raise Unsupported(f"rotary embeddings of the type {kind!r} are not written as GGUF; expected plain ones")
    return rope


def _check_activation(config: Any, expected: str) -> None:
    if config.hidden_act != expected:
        kind = config.model_type
        raise Unsupported(
            f"llama.cpp computes {expected} in {kind} models, and this one {config.hidden_act}; use eager"
        )


def _tokenizer(writer: Any, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Write tokens, of which there are as many as the table of embeddings has rows, and the merges in their order."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(backend))
    texts = {number: text for text, number in tokenizer.get_vocab().items()}
    added = {number: bool(token.special) for number, token in tokenizer.added_tokens_decoder.items()}
    writer.add_token_list([texts.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types([_kind(number, texts, added) for number in range(rows)])
    merges = [each if isinstance(each, str) else " ".join(each) for each in backend["model"]["merges"]]
    writer.add_token_merges(merges or [NO_MERGE])
    special = {
        writer.add_bos_token_id: tokenizer.bos_token_id,
        writer.add_eos_token_id: tokenizer.eos_token_id,
        writer.add_unk_token_id: tokenizer.unk_token_id,
        writer.add_pad_token_id: tokenizer.pad_token_id,
    }
    for add, number in special.items():
        if number is not None:
            add(number)
    begun, ended = _enclosed(tokenizer)
    writer.add_add_bos_token(begun)
    writer.add_add_eos_token(ended)
    if isinstance(template := getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(template)


def _kind(number: int, texts: Mapping[int, str], added: Mapping[int, bool]) -> int:
    """Return llama.cpp's kind of a token. added: whether each of those beside the vocabulary is a special one."""
    import gguf

    if number in added:
        kind = gguf.TokenType.CONTROL if added[number] else gguf.TokenType.USER_DEFINED
    else:
        kind = gguf.TokenType.NORMAL if number in texts else gguf.TokenType.UNUSED
    return int(kind)


def split_name(backend: Mapping[str, Any]) -> str:
    """Return llama.cpp's name of the way in which a tokenizer, as ``tokenizer.json`` has it, splits text.

    Raises Unsupported for a tokenizer of another kind, and for a split that has no name here.
    """
    model, normalizer = backend["model"], backend["normalizer"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or model.get("ignore_merges"):
        raise Unsupported(
            f"a tokenizer of the kind {model.get('type')} is not written as GGUF; expected byte-level BPE"
        )
    if normalizer is not None and normalizer["type"] not in COMPOSES:
        raise Unsupported(
            f"a tokenizer that changes text first ({normalizer['type']}) is not written as GGUF; use eager"
        )
    whole = backend["pre_tokenizer"] or {"type": "none"}
    found = tuple(_decisive(part) for part in whole.get("pretokenizers", [whole]))
    if not model["merges"] and all(part[:2] == ("ByteLevel", False) for part in found):
        return SPLITS[(BYTES,)]  # nothing is merged: each byte is a token, wherever text is split
    if found not in SPLITS:
        named, known = ", ".join(str(part[0]) for part in found), " or ".join(SPLITS.values())
        raise Unsupported(f"text split by {named} has no name here that llama.cpp knows; expected its {known}")
    return SPLITS[found]


def _decisive(part: Mapping[str, Any]) -> tuple[Any, ...]:
    return (part["type"], *(part.get(name) for name in DECIDES.get(part["type"], ())))


def _enclosed(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Tell whether the tokenizer puts its first token before a text, and its last one behind it."""
    ids = tokenizer("a")["input_ids"]
    return ids[0] == tokenizer.bos_token_id, len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
