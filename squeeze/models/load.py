"""Load the uncompressed model that a cell names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME

from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError, hint
from squeeze.models import gguf, tiny
from squeeze.models.settings import quiet
from squeeze.models.subject import Subject
from squeeze.sources import fetch as assets
from squeeze.sources.identity import baseline_hash

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {"causal_lm": AutoModelForCausalLM, "encoder": AutoModel}
# One of which every tokenizer has.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


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
    model = _model(folder, AutoModelForCausalLM, "auto", "save or fetch it again")
    return Subject(
        model.to(device).eval().requires_grad_(False),
        _tokenizer(folder, "save or fetch it again") if own or tokenizer is None else tokenizer,
    )


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
    advice = "delete it and fetch it again"
    return _model(folder, KINDS[kind], DTYPES[dtype], advice), _tokenizer(folder, advice)


def _model(folder: Path, kind: Any, dtype: torch.dtype | str, advice: str) -> PreTrainedModel:
    _refuse_weights_elsewhere(folder)
    with _readable(folder, advice), quiet():
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
        raise IntegrityError(f"{folder.name}: {len(missing)} weights are missing, {missing[0]} among them")
    return model


def _tokenizer(folder: Path, advice: str) -> PreTrainedTokenizerBase:
    with _readable(folder, advice), quiet():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def _readable(folder: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{folder.name}: not a readable model ({message}); {advice}") from error


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
