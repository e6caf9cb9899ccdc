"""Load the uncompressed model that a cell names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME

from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError, Unsupported, hint
from squeeze.models import gguf, tiny
from squeeze.models.settings import quiet
from squeeze.models.subject import Subject
from squeeze.models.tiny import KINDS
from squeeze.sources import checkpoint, trained
from squeeze.sources import fetch as assets
from squeeze.sources.checkpoint import TOKENIZER_FILES, advice
from squeeze.sources.identity import baseline_hash, trained_place

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What transformers raises for a folder that is no model, or a damaged one.
UNREADABLE = (*gguf.UNREADABLE, SafetensorError)


def load_baseline(model: Mapping[str, Any], device: str = "cpu") -> Subject:
    """Load the model as it is before any compression, on ``device``, in its dtype, in eval mode, without gradients.

    model: source (see squeeze.sources.fetch; or ``random:ARCHITECTURE`` with a seed), kind, dtype. A GGUF source is
    converted to float32 safetensors once and read from there ever after; one that is fine-tuned here has been before.
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
        tokenizer: PreTrainedTokenizerBase = tiny.byte_tokenizer(
            encloses=kind in ("encoder", "classifier"), pictures=kind == "vision_language"
        )
    else:
        loaded, tokenizer = _read(_folder(model), kind, dtype)
    return Subject(loaded.to(device).eval().requires_grad_(False), tokenizer)


def load_with_new_head(model: Mapping[str, Any], classes: Sequence[str], seed: int, device: str = "cpu") -> Subject:
    """Load an encoder in float32 under a head that is yet to be trained: a classifier, in eval mode, without gradients.

    model: source and kind, as for ``load_baseline``. classes: their names, by number. The new weights are drawn as the
    architecture draws its own, the same for the same seed; torch's global generator is left as it was.
    Raises what ``load_baseline`` raises; IntegrityError where anything but the head and a pooler is missing.
    """
    scheme, _ = assets.split(str(model["source"]))
    if scheme == "random":
        return load_baseline({**model, "kind": "classifier", "dtype": "float32"}, device)
    folder = _folder(model)
    checkpoint.check(folder)
    names = {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}
    with torch.random.fork_rng(devices=[]):
        loaded, missing = _loaded(folder, KINDS["classifier"], torch.float32, **names)
    _check_whole(folder, [name for name in missing if _is_below(name, loaded.base_model_prefix)])
    _draw([loaded.get_parameter(name) for name in missing], loaded.config.initializer_range, seed)
    tokenizer = _tokenizer(folder)
    _check_tokens(folder, loaded, tokenizer)
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
    if trained.is_trained(model):
        return _trained(model)
    if not str(model.get("member") or model["source"]).endswith(".gguf"):
        return assets.fetch(model)
    name = f"converted/{baseline_hash(model)[:16]}"
    return cache.sealed(name, lambda folder: gguf.convert(assets.fetch(model), folder))


def _trained(model: Mapping[str, Any]) -> Path:
    """Return the folder of a model that squeeze has fine-tuned. Raises SqueezeError where it has not."""
    folder = cache.cache_root() / trained_place(model) / trained.MODEL
    if not (folder / CONFIG_NAME).is_file():
        raise SqueezeError(f"{model['source']} is not fine-tuned yet; `squeeze run` does that before it measures")
    return folder


def _read(folder: Path, kind: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    checkpoint.check(folder)
    model, tokenizer = _model(folder, KINDS[kind], DTYPES[dtype]), _tokenizer(folder)
    _check_tokens(folder, model, tokenizer)
    return model, tokenizer


def _model(folder: Path, kind: Any, dtype: torch.dtype | str) -> PreTrainedModel:
    model, missing = _loaded(folder, kind, dtype)
    # A pooler is the one part that checkpoints of encoders leave out; nothing here reads it.
    _check_whole(folder, [name for name in missing if not name.startswith("pooler.")])
    return model


def _loaded(folder: Path, kind: Any, dtype: torch.dtype | str, **options: Any) -> tuple[PreTrainedModel, list[str]]:
    """Return the model that a folder holds, and the names of its weights that the folder does not hold.

    options: of its configuration, in place of what the folder says.
    """
    with _readable(folder), quiet():
        model, report = kind.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    return model, sorted(report["missing_keys"])


def _check_whole(folder: Path, missing: Sequence[str]) -> None:
    """Raise IntegrityError where weights are missing."""
    if missing:
        raise IntegrityError(
            f"{folder.name}: {len(missing)} weights are missing, {missing[0]} among them; {advice(folder)}"
        )


def _is_below(name: str, base: str) -> bool:
    """Tell whether a weight belongs to the transformer itself: neither to its pooler nor to what lies above it."""
    return name.startswith(f"{base}.") and not name.startswith(f"{base}.pooler.")


@torch.no_grad()
def _draw(parameters: Sequence[torch.nn.Parameter], deviation: float, seed: int) -> None:
    """Draw matrices from a normal distribution around 0; biases are 0."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        drawn = deviation * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(drawn if parameter.ndim > 1 else torch.zeros_like(drawn))


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
