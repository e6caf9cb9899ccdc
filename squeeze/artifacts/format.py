"""Save a subject as an artifact, a folder that really is what it claims to be: safetensors and JSON; load it back.

    model.safetensors   every stored tensor, packed as the layers hold it; tied tensors once
    artifact.json       format, architecture, dtype, parameter count, compressed layers, claims; and where the model has
                        them, sizes or a form that its configuration does not say, a cache of its own, a draft
    config.json         the transformers configuration;  tokenizer files beside it
    adapter/            low-rank adapters of the model, where it has any; see ``adapter.py``
    draft/              the model that guesses this one's tokens, where one does: as an artifact's, without a tokenizer

Where a library has a serialised format of its own (``claims["loader"] = "transformers"``: bitsandbytes, ...) the
weights lie as that library writes them, and the library reads them. Layers may keep a library's format too (torchao):
what its reader wants in the file's header comes from the layer's ``header(model)``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, initialization

from squeeze.artifacts import adapter
from squeeze.artifacts.safetensors_header import sort_metadata
from squeeze.core import plugins
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.files import read_small
from squeeze.layers.contract import (
    count_parameters,
    dtype_name,
    is_compressed,
    layer_class,
    layer_specs,
    prepare_layers,
    shared_layers,
)
from squeeze.layers.lora import set_aside
from squeeze.models import architecture, own_sizes
from squeeze.models.subject import Draft, Drafting, Subject

FORMAT = 2  # in 1, layers were named by their modules' paths
DESCRIPTION = "artifact.json"
WEIGHTS = "model.safetensors"
DRAFT = "draft"  # the folder of the model that guesses
LARGEST_DESCRIPTION = 64 * 2**20  # bytes: of a model of 100,000 layers
UNHASHED = frozenset({"build.json"})  # timings: two equal builds differ there


def save(subject: Subject, folder: Path) -> None:
    """Write a subject to ``folder`` (made if absent); what is on disk is the honest size."""
    folder.mkdir(parents=True, exist_ok=True)
    subject.tokenizer.save_pretrained(folder)
    _save(subject, folder)


def _save(subject: Subject, folder: Path) -> None:
    with set_aside(subject.model) as adapters:
        description = _save_model(subject, folder)
        if adapters:
            adapter.write(subject.model, adapters, folder)
            description["adapter"] = adapter.FOLDER
    if subject.cache is not None:
        description["cache"] = _spec(subject.cache)
    if (form := architecture.form(subject.model)) is not None:
        description["form"] = _spec(form)
    if subject.draft is not None:
        description["draft"] = _spec(subject.draft.how)
        if subject.draft.subject is not None:
            (folder / DRAFT).mkdir(exist_ok=True)
            _save(subject.draft.subject, folder / DRAFT)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")


def _save_model(subject: Subject, folder: Path) -> dict[str, Any]:
    """Write a model without adapters and its configuration; return what loading must know of it."""
    loader = subject.claims.get("loader", "squeeze")
    tied: dict[str, str] = {}
    sizes: dict[str, dict[str, int]] = {}
    if loader == "transformers":
        subject.model.save_pretrained(folder)  # type: ignore[operator]
    else:
        tensors, tied = _distinct_tensors(subject.model)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt", **_library_header(subject.model)})
        sort_metadata(folder / WEIGHTS)
        subject.model.config.save_pretrained(folder)  # type: ignore[union-attr,operator]
        sizes = own_sizes.stated(subject.model)
    return {
        "format": FORMAT,
        "loader": loader,
        "architecture": type(subject.model).__name__,
        "dtype": dtype_name(architecture.dtype(subject.model)),
        "parameters": subject.claims.get("parameters", count_parameters(subject.model)),
        "layers": layer_specs(subject.model),
        "shared": shared_layers(subject.model),
        "tied": tied,
        **({"own_sizes": sizes} if sizes else {}),
        "claims": {key: value for key, value in subject.claims.items() if key not in {"loader", "parameters"}},
    }


def load(folder: Path, device: str = "cpu", *, prepare: bool = True) -> Subject:
    """Load the subject that ``save`` wrote, ready to run; with ``prepare=False``, as stored (for inspection).

    Weights are copied out of the file, so that memory figures of all formats compare.
    Raises IntegrityError for a folder that is no artifact, or is truncated.
    """
    return _load(folder, device, None, prepare=prepare)


def _load(folder: Path, device: str, tokenizer: PreTrainedTokenizerBase | None, *, prepare: bool) -> Subject:
    """Load a subject, and its draft with it. tokenizer: of the model that it guesses for; None: it has its own."""
    description = describe(folder)
    try:
        model = _library_model(folder, description) if description["loader"] == "transformers" else None
        model = model or _own_model(folder, description)
        if "adapter" in description:
            adapter.attach(model, folder)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        raise IntegrityError(f"{folder.name}: not a readable artifact ({error}); delete it and build again") from error
    model.to(device).eval().requires_grad_(False)
    if prepare:
        prepare_layers(model)
    claims = {**description["claims"], "loader": description["loader"], "parameters": description["parameters"]}
    draft: Drafting | None = _made(description, "draft", "has_model")
    if draft is None:
        return Subject(model, tokenizer, claims, _made(description, "cache", "group"))
    guesses = _load(folder / DRAFT, device, tokenizer, prepare=prepare) if draft.has_model else None
    return Subject(model, tokenizer, claims, _made(description, "cache", "group"), Draft(draft, guesses))


def skeleton(folder: Path) -> PreTrainedModel:
    """Return the model of an artifact as its configuration alone describes it: without data, on the meta device.

    Raises IntegrityError for a folder that is no artifact.
    """
    description = describe(folder)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{folder.name}: no readable config.json ({error}); build it again") from error
    with torch.device("meta"):
        return (
            _model_class(description["architecture"])
            ._from_config(config, dtype=getattr(torch, description["dtype"]))
            .eval()
        )


def describe(folder: Path) -> dict[str, Any]:
    """Return what ``artifact.json`` says.

    Raises IntegrityError where it is absent, torn, or of another format.
    """
    try:
        description: dict[str, Any] = json.loads(read_small(folder / DESCRIPTION, LARGEST_DESCRIPTION))
    except (OSError, ValueError, RecursionError, IntegrityError) as error:
        raise IntegrityError(f"{folder.name}: no readable {DESCRIPTION} ({error})") from error
    found = description.get("format") if isinstance(description, dict) else None
    if found != FORMAT:
        raise IntegrityError(f"{folder.name}: artifact format {found!r}, expected {FORMAT}")
    return description


def content_hash(folder: Path) -> str:
    """Return the sha256 over names and bytes of all files that make the artifact; timings are not among them."""
    total = hashlib.sha256()
    unhashed = {folder / name for name in UNHASHED}  # of that name, in a folder below, it is content like any other
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path not in unhashed):
        with path.open("rb") as file:
            total.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def _distinct_tensors(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the state dict without its aliases, and the aliases: name -> the name under which the tensor is stored."""
    first: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            tied[name] = first[place]
        else:
            first[place] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    return tensors, tied


def _library_header(model: nn.Module) -> dict[str, str]:
    """Return the weight file's header entries by which a library knows the layers stored in its format."""
    kinds = {type(module) for module in model.modules() if is_compressed(module)}
    describers = [describe for kind in kinds if (describe := getattr(kind, "header", None))]
    return {name: entry for describe in describers for name, entry in describe(model).items()}


def _own_model(folder: Path, description: dict[str, Any]) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # Parameters are made without touching their pages; the stored tensors take their place.
    with initialization.no_init_weights():
        model = _model_class(description["architecture"])._from_config(
            config, dtype=getattr(torch, description["dtype"])
        )
    form = _made(description, "form", "shape")
    if form is not None:
        form.shape(model)
    own_sizes.give(model, description.get("own_sizes", {}))
    for name, spec in description["layers"].items():
        arguments = {key: value for key, value in spec.items() if key != "_target_"}
        architecture.replace(model, name, layer_class(spec["_target_"])(**arguments))
    for name, source in description.get("shared", {}).items():
        architecture.replace(model, name, model.get_submodule(source))
    state = _read(folder / WEIGHTS)
    for alias, name in description["tied"].items():
        state[alias] = state[name]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        first_line = " ".join(str(error).split())[:300]
        raise IntegrityError(f"{folder.name}: {WEIGHTS} does not fit {DESCRIPTION} ({first_line})") from error
    model.tie_weights()
    return model


def _library_model(folder: Path, description: dict[str, Any]) -> PreTrainedModel:
    return _model_class(description["architecture"]).from_pretrained(
        folder, dtype=getattr(torch, description["dtype"]), local_files_only=True, use_safetensors=True
    )


def _spec(part: Any) -> dict[str, Any]:
    """Return the class of a cache factory, a form or a way to draft, and its fields, as ``layer_specs`` has layers'."""
    return {"_target_": plugins.name_of(type(part)), **dataclasses.asdict(part)}


def _made(description: dict[str, Any], part: str, owed: str) -> Any:
    """Return the part that a description names, of a class which has the attribute owed; None without."""
    spec = dict(description.get(part, {}))
    if not spec:
        return None
    name = spec.pop("_target_")
    try:
        found = plugins.load(plugins.find("layers", name))
    except SqueezeError as error:
        raise IntegrityError(f"{DESCRIPTION} names the {part} {error}") from error
    if not (dataclasses.is_dataclass(found) and hasattr(found, owed)):
        raise IntegrityError(f"{DESCRIPTION} names the {part} {name!r}, which makes none")
    return found(**spec)


def _read(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping


def _model_class(name: str) -> type[PreTrainedModel]:
    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel)):
        raise IntegrityError(f"{DESCRIPTION} names the architecture {name!r}, which transformers does not have")
    return found
