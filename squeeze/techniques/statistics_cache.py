"""Collect statistics of a model's layer inputs once (the shared pass), and keep them for all techniques and bit-widths.

One folder per (weights, configuration, calibration tokens), named by their hash: what lies in it can only belong to the
model that asks. pass.json, and BLOCK.safetensors with a Hessian per distinct input (4 bytes * in_features^2).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from squeeze.core import cache
from squeeze.models.architecture import named_blocks
from squeeze.models.digest import digest
from squeeze.techniques.block_walk import walk
from squeeze.techniques.contract import InputStatistics, Stop

FORMAT = 2  # part of the key: raise it when a statistics' meaning changes
INFO = "pass.json"
TENSORS = ("hessian", "mean_abs", "low", "high")  # of an InputStatistics


class StatisticsCache:
    """Keep statistics of layer inputs in a folder.

    reused_seconds: what collecting the statistics that were read from the folder had once cost; a build that reads them
    adds it to its own time, or it would look cheaper than it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reused_seconds = 0.0

    def input_statistics(self, model: nn.Module, token_ids: torch.Tensor) -> Iterator[Stop]:
        """Yield what ``block_walk.walk(model, token_ids)`` yields, collected now only if it never was."""
        made_now = False

        def make(folder: Path) -> None:
            nonlocal made_now
            made_now = True
            start = time.perf_counter()
            for name, _, statistics in walk(model, token_ids):
                _write(folder / f"{name}.safetensors", statistics)
            (folder / INFO).write_text(json.dumps({"seconds": time.perf_counter() - start}))

        key = digest(model, str(FORMAT), token_ids=token_ids)
        folder = cache.sealed(str(self.folder.absolute() / key), make)
        if not made_now:
            self.reused_seconds += float(json.loads((folder / INFO).read_text())["seconds"])
        for name, block in named_blocks(model):
            yield name, block, _read(folder / f"{name}.safetensors", str(token_ids.device))


def _write(path: Path, statistics: Mapping[str, InputStatistics]) -> None:
    distinct = list({id(item): item for item in statistics.values()}.values())
    index = {id(item): i for i, item in enumerate(distinct)}
    tensors = {f"{field}.{i}": getattr(item, field).cpu() for field in TENSORS for i, item in enumerate(distinct)}
    layers = {name: index[id(item)] for name, item in statistics.items()}
    metadata = {"layers": json.dumps(layers), "tokens": json.dumps([item.tokens for item in distinct])}
    save_file(tensors, path, metadata=metadata)


def _read(path: Path, device: str) -> dict[str, InputStatistics]:
    with safe_open(path, framework="pt", device=device) as file:
        metadata = file.metadata()
        distinct = [
            InputStatistics(**{field: file.get_tensor(f"{field}.{i}") for field in TENSORS}, tokens=tokens)
            for i, tokens in enumerate(json.loads(metadata["tokens"]))
        ]
    return {name: distinct[i] for name, i in json.loads(metadata["layers"]).items()}
