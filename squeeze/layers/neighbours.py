"""Group neighbouring blocks, and the layers that have the same place in them: what may share weights."""

from __future__ import annotations

from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import is_compressed, is_described, matrices
from squeeze.layers.lora import features
from squeeze.models import architecture

Group = dict[str, list[str]]  # the relative name of a linear layer -> its full names in the blocks of the group


def neighbours(model: nn.Module, blocks_each: int) -> list[Group]:
    """Return groups of ``blocks_each`` neighbouring blocks, in their order; the last has those that are left over.

    Raises Unsupported unless that is from 2 to the number of blocks, where a layer is made of several, or stands in
    several blocks already, and where blocks of a group differ in their layers' names or shapes.
    """
    blocks = architecture.named_blocks(model)
    if not 2 <= blocks_each <= len(blocks):
        raise Unsupported(f"{blocks_each} blocks cannot share weights in a model of {len(blocks)}; expected 2 or more")
    _check_plain(model)
    within = [_relative(name, model) for name, _ in blocks]
    starts = range(0, len(blocks), blocks_each)
    return [_group([name for name, _ in blocks[i : i + blocks_each]], within[i : i + blocks_each]) for i in starts]


def _check_plain(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if is_described(module) and not is_compressed(module):
            raise Unsupported(f"{name} is a {type(module).__name__}, made of several layers; share weights before that")
    layers = [layer for _, layer in matrices(model)]
    if len(set(layers)) < len(layers):
        raise Unsupported("blocks share layers already; expected each block to have its own")


def _relative(block: str, model: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the shapes of a block's linear layers, (out_features, in_features), by their names below it."""
    start = f"{block}."
    return {name.removeprefix(start): features(layer) for name, layer in matrices(model) if name.startswith(start)}


def _group(blocks: list[str], shapes: list[dict[str, tuple[int, int]]]) -> Group:
    for block, own in zip(blocks, shapes, strict=True):
        if own != shapes[0]:
            first = min(name for name, _ in own.items() ^ shapes[0].items())
            raise Unsupported(f"{block} and {blocks[0]} differ in {first}; expected neighbours of the same shapes")
    return {name: [f"{block}.{name}" for block in blocks] for name in shapes[0]}
