"""Cut blocks, channels and heads out of a model, in place: what is left is a smaller, plain model of transformers.

After ``keep_...`` the configuration describes the result, so that a saved folder loads with ``from_pretrained`` alone;
where it could not, the cut is refused before anything is touched. After ``cut_...`` it says what it said before: blocks
may differ, and ``own_sizes`` tells what they have. No weight that stays is changed. (``projection`` makes hidden states
narrower, which changes all of them.)
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.pytorch_utils import Conv1D

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.models.layout import Coupled, group_size, head_groups, head_size, layout, sizes
from squeeze.models.own_sizes import OF_HEADS, stated

# Lists of a configuration that have an entry for each block.
PER_BLOCK = ("layer_types", "mlp_layer_types", "no_rope_layers")


def keep_blocks(model: nn.Module, indices: Sequence[int]) -> None:
    """Keep only the blocks at these indices, in place.

    The configuration follows (number of blocks, lists of an entry a block). Attention layers are numbered anew: by that
    number they find their place in a key-value cache. Blocks go as they are, compressed or not.
    Raises SqueezeError for indices that do not ascend, Unsupported where a model made of the configuration would have
    other blocks than those that stay.
    """
    named = architecture.named_blocks(model)
    place = named[0][0].rpartition(".")[0]
    _check_ascending("blocks", indices, len(named))
    if len(indices) == len(named):
        return
    kept = [named[index][1] for index in indices]
    _check_described(model, indices, kept)
    describe_blocks(_config(model), indices)
    architecture.replace(model, place, nn.ModuleList(kept))
    for number, block in enumerate(kept):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # type: ignore[assignment]


def describe_blocks(config: PretrainedConfig, indices: Sequence[int]) -> None:
    """Let a configuration describe the blocks at these indices alone, in place."""
    for name in PER_BLOCK:
        entries = getattr(config, name, None)
        if isinstance(entries, list) and len(entries) == config.num_hidden_layers:
            setattr(config, name, [entries[index] for index in indices])
    config.num_hidden_layers = len(indices)


def keep_channels(model: nn.Module, channels: Sequence[Sequence[int]]) -> None:
    """Keep only these channels of each block's MLP, in place: the same number in every block.

    channels: of each block, ascending. The configuration's number of them follows.
    Raises SqueezeError for other lists, Unsupported for an architecture that is not known, and for compressed layers.
    """
    where = layout(model)
    check_alike(model)
    _check_lists("channels", channels, len(architecture.blocks(model)), int(sizes(model).channels))
    check_float(model, (*where.up, where.down))
    cut_channels(model, channels)
    _follow(model, where.channels, len(channels[0]))


def keep_heads(model: nn.Module, groups: Sequence[Sequence[int]]) -> None:
    """Keep only these groups of heads in each block, in place: the same number in every block.

    groups: of each block, ascending; a group is a head of keys and values, and all heads of queries that read it.
    The configuration follows. Raises SqueezeError for other lists, and Unsupported as ``check_heads`` does.
    """
    config, before, size = _config(model), head_groups(model), head_size(model)
    check_alike(model)
    _check_lists("groups of heads", groups, len(architecture.blocks(model)), before)
    if len(groups[0]) == before:
        return
    check_heads(model, len(groups[0]), config.hidden_size)
    cut_heads(model, groups)
    config.num_attention_heads = group_size(model) // size * len(groups[0])
    config.num_key_value_heads = len(groups[0])
    config.head_dim = size


def cut_channels(model: nn.Module, channels: Sequence[Sequence[int]]) -> None:
    """Keep only these channels of each block's MLP, in place: ascending, of each block as many as are named.

    The configuration stays as it is. The layers are plain ones of floats (``check_float``).
    """
    _cut(model, layout(model).mlp, channels, 1)


def cut_heads(model: nn.Module, groups: Sequence[Sequence[int]]) -> None:
    """Keep only these groups of heads in each block, in place: ascending, of each block as many as are named.

    The configuration stays as it is. The layers are plain ones of floats (``check_float``).
    """
    where, blocks = layout(model).attention, architecture.blocks(model)
    before = [architecture.shape(block.get_submodule(where.reader))[1] for block in blocks]
    _cut(model, where, groups, group_size(model))
    for block, whole in zip(blocks, before, strict=True):
        left = architecture.shape(block.get_submodule(where.reader))[1]
        attention = block.get_submodule(where.reader.rpartition(".")[0])
        for name in OF_HEADS:
            if isinstance(size := getattr(attention, name, None), int):
                setattr(attention, name, size * left // whole)


def highest(scores: torch.Tensor, count: int) -> list[int]:
    """Return the places of the ``count`` highest scores, (n,), ascending; of equal ones the first are taken."""
    ordered: list[int] = scores.argsort(descending=True, stable=True).tolist()
    return sorted(ordered[:count])


def why_undescribed(model: nn.Module, groups: int, hidden: int) -> str:
    """Return why no configuration describes this model with so many groups of heads, and this hidden size; or nothing.

    None does where a head's size is not a field of its own, and where the heads do not divide the hidden size
    (transformers refuses that).
    """
    config, before = _config(model), head_groups(model)
    if not layout(model).says_head_size:
        return (
            f"{config.model_type} has no size of a head in its configuration: with {groups} of {before} heads it would"
            " not load; keep all heads, and cut channels or blocks"
        )
    queries = group_size(model) // head_size(model)
    if hidden % (queries * groups):
        fitting = [queries * count for count in range(1, before + 1) if hidden % (queries * count) == 0]
        return (
            f"{queries * groups} heads do not divide a hidden size of {hidden}, which transformers asks for; numbers"
            f" that do: {', '.join(map(str, fitting)) or 'none'}"
        )
    return ""


def check_heads(model: nn.Module, groups: int, hidden: int) -> None:
    """Raise Unsupported where ``why_undescribed`` has a reason; compressed layers cannot be cut, either."""
    if reason := why_undescribed(model, groups, hidden):
        raise Unsupported(reason)
    where = layout(model)
    check_float(model, (*where.heads, where.output))


def check_alike(model: nn.Module) -> None:
    """Raise Unsupported unless all blocks have as many channels and heads: then one number says how many stay."""
    where, blocks = layout(model), architecture.blocks(model)
    for name in (where.down, where.output):
        widths = sorted({architecture.shape(block.get_submodule(name))[1] for block in blocks})
        if len(widths) > 1:
            raise Unsupported(
                f"{name} has {widths[0]} inputs in one block and {widths[-1]} in another, expected one number of all;"
                " put the step that gives blocks sizes of their own last"
            )


def check_float(model: nn.Module, names: Sequence[str]) -> None:
    """Raise Unsupported unless these layers, named below each block, are plain ones of floats, each block's its own."""
    blocks = architecture.named_blocks(model)
    layers = [(f"{block_name}.{name}", block.get_submodule(name)) for block_name, block in blocks for name in names]
    for name, layer in layers:
        if type(layer) not in (nn.Linear, Conv1D) or not architecture.weight(layer).is_floating_point():
            raise Unsupported(
                f"{name} is a {type(layer).__name__}, expected a plain layer; cut before the step that compresses"
            )
    if len({id(layer) for _, layer in layers}) < len(layers):
        raise Unsupported(f"blocks of {type(model).__name__} share layers, which one cut would shorten twice")


def set_weight(layer: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a linear layer another weight, (out_features, in_features) of any sizes, and bias, (out_features,)."""
    transposed = isinstance(layer, Conv1D)
    layer.weight = nn.Parameter((weight.T if transposed else weight).contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    for name, size in zip(("nf", "nx") if transposed else ("out_features", "in_features"), weight.shape, strict=True):
        setattr(layer, name, size)


def _cut(model: nn.Module, coupled: Coupled, kept: Sequence[Sequence[int]], width: int) -> None:
    """Keep only these groups of ``width`` neighbouring inputs of each block's reader, and what makes them."""
    for block, places in zip(architecture.blocks(model), kept, strict=True):
        reader = block.get_submodule(coupled.reader)
        groups, device = architecture.shape(reader)[1] // width, architecture.weight(reader).device
        for name in coupled.makers:
            maker = block.get_submodule(name)
            size = architecture.shape(maker)[0] // (coupled.sections * groups)
            everywhere = [section * groups + place for section in range(coupled.sections) for place in places]
            _select(maker, outputs=_members(everywhere, size, device))
        _select(reader, inputs=_members(places, width, device))


def _select(layer: nn.Module, *, outputs: torch.Tensor | None = None, inputs: torch.Tensor | None = None) -> None:
    """Keep only these outputs, or inputs, of a linear layer."""
    weight, bias = architecture.weight(layer), architecture.bias(layer)
    if outputs is not None:
        weight, bias = weight[outputs], None if bias is None else bias[outputs]
    set_weight(layer, weight if inputs is None else weight[:, inputs], bias)


def _members(groups: Sequence[int], size: int, device: torch.device) -> torch.Tensor:
    """Return the places of all members of groups of ``size`` neighbours: (groups * size,)."""
    return (torch.tensor(groups, device=device)[:, None] * size + torch.arange(size, device=device)).flatten()


def _config(model: nn.Module) -> Any:
    return model.config


def _follow(model: nn.Module, name: str, size: int) -> None:
    """Set a size in the configuration, and wherever the blocks' modules repeat it."""
    setattr(_config(model), name, size)
    for block in architecture.blocks(model):
        for module in block.modules():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, size)


def _check_ascending(what: str, indices: Sequence[int], count: int) -> None:
    fits = len(indices) > 0 and list(indices) == sorted(set(indices)) and indices[0] >= 0 and indices[-1] < count
    if not fits:
        raise SqueezeError(
            f"cannot keep the {what} {list(indices)}; expected at least one of 0 to {count - 1}, ascending, each once"
        )


def _check_lists(what: str, lists: Sequence[Sequence[int]], blocks: int, count: int) -> None:
    lengths = sorted({len(indices) for indices in lists})
    if len(lists) != blocks or len(lengths) != 1:
        raise SqueezeError(
            f"cannot keep {what}: {len(lists)} lists of {' or '.join(map(str, lengths)) or 'no'} entries; expected one"
            f" for each of {blocks} blocks, all of one length: the configuration has one number"
        )
    for indices in lists:
        _check_ascending(what, indices, count)


def _check_described(model: nn.Module, indices: Sequence[int], kept: Sequence[nn.Module]) -> None:
    """Raise Unsupported where a model made of the new configuration has other blocks than those kept.

    That is so where blocks differ by rules that know a block's place (every fourth one a mixture of experts).
    """
    config = copy.deepcopy(_config(model))
    if (form := architecture.form(model)) is not None:
        raise Unsupported(f"blocks of the form {form} have their places; drop blocks, then slice or prune pictures")
    if getattr(config, "num_hidden_layers", None) is None or getattr(config, "is_heterogeneous", False):
        raise Unsupported(f"{type(model).__name__} describes its blocks one by one; expected num_hidden_layers alone")
    if getattr(config, "scale_attn_by_inverse_layer_idx", False) and list(indices) != list(range(len(indices))):
        raise Unsupported("attention is scaled by its block's place; expected the first blocks, in a row, to be kept")
    describe_blocks(config, indices)
    kind: Any = type(model)
    with torch.device("meta"):
        made = architecture.blocks(kind._from_config(config, dtype=architecture.dtype(model)))
    for index, fresh, block in zip(indices, made, kept, strict=True):
        expected, shapes = dict(fresh.named_parameters()), {name: each.shape for name, each in block.named_parameters()}
        wrong = {name for name, each in expected.items() if shapes.get(name, each.shape) != each.shape}
        wrong |= dict(fresh.named_modules()).keys() - dict(block.named_modules()).keys()
        if wrong and stated(model):
            raise Unsupported(
                f"block {index} has sizes of its own ({min(wrong)}), expected those of the configuration; drop blocks"
                " before the step that gives blocks sizes of their own"
            )
        if wrong:
            raise Unsupported(
                f"{type(model).__name__}: where block {index} would come to stand, its configuration describes another"
                f" one ({min(wrong)} differs); keep blocks in the order that the configuration repeats"
            )
