"""Count the bytes that a model can reach in memory, wherever they lie: no layer is asked what it holds.

Parameters and buffers are what a model shows. A copy of its weights may also lie in a list, a closure, a default
argument, a class, a module's globals or a suspended generator: whatever Python's collector can follow from the model
is counted, each block of memory once. Tensors that cannot be reached are counted apart. What lies beyond the
collector's sight (a library's own memory) shows in the process's resident set, see ``squeeze.probes.memory.kept``.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
from array import array
from collections.abc import Collection
from types import ModuleType
from typing import Any

import numpy as np
import torch

from squeeze.core import plugins

TEXTS = (bytes, bytearray, str, array)
NUMBERS = (int, float, complex)
LARGE = 1 << 13  # bytes of a text that could hold weights; a model has thousands of small ones
BESIDE = 0.02  # of the bytes claimed: sums of codes, caches of positions
BESIDE_ONCE = 1 << 16  # bytes; those of a tiny model
ELSEWHERE_ONCE = 16 << 20  # bytes of prompts and texts, beside the model

Blocks = dict[int, int]  # address -> bytes


def closed() -> frozenset[int]:
    """Return the ids of what belongs to the process: modules that no plugin brought, their globals, their classes."""
    own = {plugin.package for plugin in plugins.installed().values()}
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] not in own]
    return frozenset(
        id(part)
        for module in modules
        if isinstance(module, ModuleType)
        for part in (module, vars(module), *_classes(module))
    )


def blocks(root: object, closed: Collection[int]) -> Blocks:
    """Return the blocks of memory that hold data and can be reached from an object, past none that is ``closed``."""
    seen: set[int] = set()
    found: Blocks = {}
    front = [root]
    while front:
        kept = []
        for item in front:
            if id(item) not in seen and id(item) not in closed:
                seen.add(id(item))
                found |= block(item)
                kept.append(item)
        front = gc.get_referents(*kept)
    return found


def elsewhere(reached: Blocks) -> int:
    """Count the bytes of all tensors in this process that are not among those blocks, garbage left out."""
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    found = {address: size for tensor in tensors for address, size in block(tensor).items()}
    return sum(size for address, size in found.items() if address not in reached)


def block(item: object) -> Blocks:
    """Return the memory that an object itself has for data, or nothing. Addresses tell views of the same memory."""
    kind = type(item)
    if issubclass(kind, torch.Tensor | torch.UntypedStorage):
        return _of_storage(item)
    if issubclass(kind, np.ndarray):
        return {item.__array_interface__["data"][0]: item.nbytes}  # type: ignore[attr-defined]
    if issubclass(kind, mmap.mmap):
        return {id(item): len(item)}  # type: ignore[arg-type]
    if issubclass(kind, ctypes.Array):
        return {ctypes.addressof(item): ctypes.sizeof(item)}  # type: ignore[arg-type]
    if issubclass(kind, NUMBERS) or (issubclass(kind, TEXTS) and sys.getsizeof(item) >= LARGE):
        return {id(item): sys.getsizeof(item)}
    return {}


def mismatches(shown: int, reached: int, other: int) -> list[str]:
    """Return what to say where weights lie beside those that a model shows; nothing where they do not.

    shown: its bytes in memory, as its row has them; reached: those that it can reach; other: see ``elsewhere``.
    """
    found = []
    if reached > shown * (1 + BESIDE) + BESIDE_ONCE:
        found.append(f"claimed {shown:,} bytes in memory, found {reached:,} that the model can reach")
    if other > shown * BESIDE + ELSEWHERE_ONCE:
        found.append(f"claimed {shown:,} bytes in memory, found {other:,} in tensors that the model does not show")
    return found


def _of_storage(item: Any) -> Blocks:
    try:
        storage = item if isinstance(item, torch.UntypedStorage) else item.untyped_storage()
        if storage.device.type == "meta":  # what tracing a model leaves behind: shapes without data
            return {}
        address, size = storage.data_ptr(), storage.nbytes()
    except RuntimeError:  # of a sparse or wrapping tensor: its parts are reached
        return {}
    return {address: size} if address else {}


def _classes(module: ModuleType) -> list[type]:
    """Return the classes that a module names; isinstance would ask each value, and some values warn."""
    return [value for value in list(vars(module).values()) if issubclass(type(value), type)]
