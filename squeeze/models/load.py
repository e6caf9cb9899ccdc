"""Load the uncompressed model that a cell names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError, Unsupported, hint
from squeeze.models import gguf, tiny
from squeeze.models.settings import quiet
from squeeze.models.subject import Subject
from squeeze.sources import checkpoint
from squeeze.sources import fetch as assets
from squeeze.sources.checkpoint import TOKENIZER_FILES, advice
from squeeze.sources.identity import baseline_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {"causal_lm": AutoModelForCausalLM, "encoder": AutoModel}
# What transformers raises for a folder that is no model, or a damaged one.
UNREADABLE = (*gguf.UNREADABLE, SafetensorError)


def load_baseline(model: Mapping[str, Any], device: str = "cpu") -> Subject:
    """Load the model as it is before any compression, on ``device``, in its dtype, in eval mode, without gradients.

    model: source (see squeeze.sources.fetch; or ``random:ARCHITECTURE`` with a seed), kind, dtype. A GGUF source is
    converted to float32 safetensors once and read from there ever after.
    Attention is ``sdpa`` where the architecture has it, else ``eager`` (Gemma 2): transformers' own choice.
    Raises SqueezeError for a field that is wrong, and whatever ``assets.fetch`` and ``checkpoint.check`` raise;
    IntegrityError for weights that are damaged or do not belong to the configuration or the tokenizer beside them.
    """
    kind, dtype = _chosen(model, "kind", KINDS), _chosen(model, "dtype", DTYPES)
    scheme, rest = assets.split(str(model["source"]))
    if scheme == "random":
        if model.get("seed") is None:
            raise SqueezeError(f"random:{rest} needs model.seed, an integer, which is not given; add seed: 0")
        loaded = _held_in(DTYPES[dtype], tiny.random_model(rest, int(model["seed"]), kind))
        tokenizer: PreTrainedTokenizerBase = tiny.byte_tokenizer(encloses=kind == "encoder")
    else:
        loaded, tokenizer = _read(_folder(model), kind, dtype)
    return Subject(loaded.to(device).eval().requires_grad_(False), tokenizer)


def load_folder(folder: Path, device: str = "cpu", tokenizer: PreTrainedTokenizerBase | None = None) -> Subject:
    """Load a causal model that transformers has saved (config.json and safetensors), in the dtype that it is saved in.

    tokenizer: taken where the folder has none. Raises IntegrityError for a folder that is no such model or is damaged,
    SqueezeError where there is no tokenizer at all.
    """
    if not (folder / CONFIG_NAME).is_file() or not any(folder.glob("*.safetensors")):
        raise IntegrityError(
            f"{folder}: no model; expected {CONFIG_NAME} and *.safetensors, as save_pretrained writes them, or an "
            "artifact of squeeze"
        )
    own = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if not own and tokenizer is None:
        raise SqueezeError(f"{folder}: no tokenizer; save it beside the model with tokenizer.save_pretrained")
    checkpoint.check(folder, tokenizer=False)
    model = _model(folder, AutoModelForCausalLM, "auto")
    found = _tokenizer(folder) if own or tokenizer is None else tokenizer
    _check_tokens(folder, model, found)
    return Subject(model.to(device).eval().requires_grad_(False), found)


def _held_in(dtype: torch.dtype, model: PreTrainedModel) -> PreTrainedModel:
    """Put a model's parameters in ``dtype``; buffers (rotary frequencies) stay as they are, as when loaded so."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def _chosen(model: Mapping[str, Any], field: str, known: Mapping[str, Any]) -> str:
    if (value := model.get(field)) not in known:
        raise SqueezeError(f"model.{field}={value!r} is not known; {hint(value, known)}")
    return str(value)


def _folder(model: Mapping[str, Any]) -> Path:
    """Return a folder that ``from_pretrained`` reads."""
    if not str(model.get("member") or model["source"]).endswith(".gguf"):
        return assets.fetch(model)
    name = f"converted/{baseline_hash(model)[:16]}"
    return cache.sealed(name, lambda folder: gguf.convert(assets.fetch(model), folder))


def _read(folder: Path, kind: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    checkpoint.check(folder)
    model, tokenizer = _model(folder, KINDS[kind], DTYPES[dtype]), _tokenizer(folder)
    _check_tokens(folder, model, tokenizer)
    return model, tokenizer


def _model(folder: Path, kind: Any, dtype: torch.dtype | str) -> PreTrainedModel:
    with _readable(folder), quiet():
        model, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # A pooler is the one part that checkpoints of encoders leave out; nothing here reads it.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise IntegrityError(
            f"{folder.name}: {len(missing)} weights are missing, {missing[0]} among them; {advice(folder)}"
        )
    return model


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    with _readable(folder), quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _check_tokens(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise IntegrityError where the tokenizer knows tokens that the table of embeddings has no row for."""
    table: Any = model.get_input_embeddings()
    most = max(tokenizer.get_vocab().values(), default=0)
    if most >= (rows := len(table.weight)):
        raise IntegrityError(
            f"{folder}: its tokenizer has the token {most:,}, but the table of embeddings has {rows:,} rows, expected"
            f" more; call model.resize_token_embeddings({most + 1}) and save it, or give the model's own tokenizer"
        )


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Raise what transformers raises for a damaged folder as IntegrityError; want of memory or disk is none."""
    try:
        yield
    except ImportError as error:
        message = " ".join(str(error).split())[:200]
        raise Unsupported(f"{folder}: needs a library that is not installed ({message}); install it") from error
    except UNREADABLE as error:
        message = " ".join(str(error).split())[:200]
        if (isinstance(error, OSError) and error.errno is not None) or "memory" in message:
            raise
        raise IntegrityError(f"{folder}: not a readable model ({message}); {advice(folder)}") from error
