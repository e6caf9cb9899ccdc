"""Load the uncompressed model that a cell names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError, hint
from squeeze.models import gguf, tiny
from squeeze.models.settings import quiet
from squeeze.models.subject import Subject
from squeeze.sources import fetch as assets
from squeeze.sources.identity import baseline_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {"causal_lm": AutoModelForCausalLM, "encoder": AutoModel}


def load_baseline(model: Mapping[str, Any], device: str = "cpu") -> Subject:
    """Load the model as it is before any compression, on ``device``, in its dtype, in eval mode, without gradients.

    model: source (see squeeze.sources.fetch; or ``random:ARCHITECTURE`` with a seed), kind, dtype. A GGUF source is
    converted to float32 safetensors once and read from there ever after.
    Attention is ``sdpa`` where the architecture has it, else ``eager`` (Gemma 2): transformers' own choice.
    Raises SqueezeError for a field that is wrong, and whatever ``assets.fetch`` raises; IntegrityError for weights
    that are damaged or do not belong to the configuration beside them.
    """
    kind, dtype = _chosen(model, "kind", KINDS), _chosen(model, "dtype", DTYPES)
    scheme, rest = assets.split(str(model["source"]))
    if scheme == "random":
        loaded = _held_in(DTYPES[dtype], tiny.random_model(rest, int(model["seed"]), kind))
        tokenizer: PreTrainedTokenizerBase = tiny.byte_tokenizer(encloses=kind == "encoder")
    else:
        loaded, tokenizer = _read(_folder(model), kind, dtype)
    return Subject(loaded.to(device).eval().requires_grad_(False), tokenizer)


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
    _refuse_weights_elsewhere(folder)
    try:
        with quiet():
            model, report = KINDS[kind].from_pretrained(
                folder,
                dtype=DTYPES[dtype],
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        raise IntegrityError(
            f"{folder.name}: not a readable model ({message}); delete it and fetch it again"
        ) from error
    # A pooler is the one part that checkpoints of encoders leave out; nothing here reads it.
    if missing := sorted(name for name in report["missing_keys"] if not name.startswith("pooler.")):
        raise IntegrityError(f"{folder.name}: {len(missing)} weights are missing, {missing[0]} among them")
    return model, tokenizer


def _refuse_weights_elsewhere(folder: Path) -> None:
    """Raise IntegrityError where the index of a model in several files names one outside its folder."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if not index.is_file():
        return
    try:
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise IntegrityError(f"{folder.name}: {index.name} is no index of weights ({error!r})") from error
    if outside := sorted(str(name) for name in names if Path(str(name)).name != name):
        raise IntegrityError(f"{folder.name}: {index.name} names {outside[0]}, expected files of its own folder only")
