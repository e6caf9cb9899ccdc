"""Read what a folder of safetensors says of itself, and refuse what cannot be loaded: at once, without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from squeeze.core.cache import cache_root
from squeeze.core.errors import IntegrityError, SqueezeError, Unsupported, shown
from squeeze.core.given import read_given
from squeeze.sources import fetch as assets

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
# One of which every tokenizer has.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
LARGEST_JSON = 16 * 2**20  # bytes of a configuration, an index or a header; the largest known index has 9 million
LENGTH = 8  # bytes, little-endian, before a header
METADATA = "__metadata__"

# The fields of config.json that count something, in the words of several architectures, and the most that we believe.
COUNTS: Mapping[str, int] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 10_000),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "num_key_value_heads"), 10_000),
    **dict.fromkeys(("hidden_size", "n_embd", "vocab_size"), 100_000_000),
}
# How the tables of token embeddings are called.
TABLES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")

# quant_method in config.json -> the module that transformers needs for it, and the distribution that has it.
QUANTIZED_BY: Mapping[str, tuple[str, str]] = {
    "aqlm": ("aqlm", "aqlm"),
    "awq": ("gptqmodel", "gptqmodel"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "compressed-tensors"),
    "gptq": ("gptqmodel", "gptqmodel"),
    "hqq": ("hqq", "hqq"),
    "quanto": ("optimum.quanto", "optimum-quanto"),
    "torchao": ("torchao", "torchao"),
}


@dataclass(frozen=True)
class Checkpoint:
    """Hold a model's configuration, and the shapes of its stored tensors by their names."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """Return how many numbers are stored."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def check(folder: Path, *, tokenizer: bool = True) -> Checkpoint:
    """Return what a folder holds that ``from_pretrained`` is to read; only headers of the weights are looked at.

    tokenizer: whether its files must be there.
    Raises IntegrityError, with what to do, for a configuration that is none or counts nothing, for weights that are
    not there, lie elsewhere, are cut off or do not fit the configuration, and for missing files of the tokenizer;
    Unsupported for weights that were quantized by a library which is not installed.
    """
    config = _object(folder / CONFIG)
    for name, most in COUNTS.items():
        if (value := config.get(name)) is not None and not (type(value) is int and 0 < value <= most):
            raise _wrong(folder, f"{CONFIG} says {name} {shown(value)}, expected an integer from 1 to {most:,}")
    _check_library(folder, config)
    shapes = {name: shape for path in _weights(folder) for name, shape in _shapes(path)}
    _check_vocabulary(folder, config, shapes)
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise IntegrityError(
            f"{folder}: no tokenizer, expected one of {', '.join(TOKENIZER_FILES)}; save it beside the model with"
            " tokenizer.save_pretrained"
        )
    return Checkpoint(config, shapes)


def check_given(model: Mapping[str, Any]) -> None:
    """Check a model of the user's own (``file:FOLDER``), before anything else is done; others are once fetched.

    Raises SqueezeError for a source that is not there, and what ``check`` raises.
    """
    if str(model["source"]).startswith("file:") and (folder := assets.fetch(model)).is_dir():
        check(folder)


def advice(path: Path) -> str:
    """Say what to do with a model that cannot be read: what we have fetched can be fetched again, all else is kept."""
    if path.is_relative_to(cache_root()):
        return f"delete {path} and run again, which fetches it anew"
    return "mend it, or give another model"


def _wrong(path: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{path}: {what}; {advice(path)}")


def _object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds."""
    try:
        found = json.loads(read_given(path, LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"not readable as JSON ({shown(str(error))})") from error
    except SqueezeError as error:
        raise IntegrityError(str(error)) from error
    if not isinstance(found, dict):
        raise _wrong(path, f"holds {type(found).__name__}, expected an object")
    return found


def _weights(folder: Path) -> list[Path]:
    """Return the files of the weights, which all lie in the folder."""
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        listed = _object(folder / INDEX).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise _wrong(folder, f"{INDEX} is no index of weights, expected weight_map to name a file for each")
        shards = sorted(set(listed.values()))
        if outside := [name for name in shards if Path(name).name != name]:
            raise _wrong(folder, f"{INDEX} names {outside[0]}, expected files of its own folder only")
        names = names if (folder / WEIGHTS).is_file() else shards
    if missing := [name for name in names if not (folder / name).is_file()]:
        whence = f"{INDEX} names {missing[0]}, which is not there" if names != [WEIGHTS] else f"no {WEIGHTS}"
        raise _wrong(folder, f"{whence}, expected all weights as safetensors")
    return [folder / name for name in names]


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor in a safetensors file that holds all bytes that its header promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH), "little")
        if length > min(size - LENGTH, LARGEST_JSON):
            raise _wrong(
                path.parent,
                f"not a readable model, the header of {path.name} would have {length:,} of its {size:,} bytes, expected"
                f" at most {LARGEST_JSON:,}",
            )
        header = file.read(length)
    try:
        entries = {name: entry for name, entry in json.loads(header).items() if name != METADATA}
        found = [(name, tuple(map(int, entry["shape"]))) for name, entry in entries.items()]
        end = LENGTH + length + max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        message = f"not a readable model, the header of {path.name} is damaged ({shown(str(error))})"
        raise _wrong(path.parent, message) from error
    if end > size:
        message = f"not a readable model, {path.name} is cut off: {size:,} bytes, its header promises {end:,}"
        raise _wrong(path.parent, message)
    yield from found


def _check_vocabulary(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that the tokens of the configuration are those of the table of embeddings."""
    vocabulary, pad = config.get("vocab_size"), config.get("pad_token_id")
    tables = [name for name in shapes if f".{name}".endswith(tuple(f".{table}" for table in TABLES))]
    if vocabulary is None or "quantization_config" in config:
        return
    for name in tables[:1]:
        if (rows := shapes[name][0] if shapes[name] else 0) != vocabulary:
            raise _wrong(
                folder,
                f"{CONFIG} says vocab_size {vocabulary:,}, but the table {name} has {rows:,} rows, expected as many",
            )
    if pad is not None and not (type(pad) is int and -1 <= pad < vocabulary):  # -1 is how some say that there is none
        raise _wrong(
            folder, f"{CONFIG} says pad_token_id {shown(pad)}, expected null or a token's number below {vocabulary:,}"
        )


def _check_library(folder: Path, config: Mapping[str, Any]) -> None:
    """Check that what the weights were quantized by is installed."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return
    if not isinstance(quantization, dict):
        raise _wrong(folder, f"{CONFIG} says quantization_config {shown(quantization)}, expected an object")
    module, distribution = QUANTIZED_BY.get(str(quantization.get("quant_method")), ("", ""))
    if module and find_spec(module.partition(".")[0]) is None:
        raise Unsupported(
            f"{folder}: its weights are quantized ({quantization['quant_method']}), {distribution} is not installed;"
            f" run `pip install {distribution}`, or give the model as it was before"
        )
