"""Keep a low-rank change beside each compressed layer that makes up for what compression took: what its methods share.

With R = W - W_c, W the uncompressed weight, and inputs seen through S, the change of rank r that leaves the least of
||(R - B A) S||^2 is U_r Sigma_r V_r^T S^-1 of R S = U Sigma V^T (Eckart and Young 1936), which is

    B A = U_r U_r^T R,    as U_r^T R S = Sigma_r V_r^T:

so nothing is divided by what inputs hardly ever show, S may be singular, and ||(R - B A) x|| <= ||R x|| for every x.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears, is_compressed, matrices
from squeeze.layers.lora import LoraLinear, features, matrix_of
from squeeze.layers.trainable import gradients_pass
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.contract import Calibration
from squeeze.techniques.low_rank.factorisation import Root, balanced, roots


def correct(
    subject: Subject, calibration: Calibration, *, technique: str, rank: int, root: Root | None, sequential: bool
) -> Subject:
    """Return the subject with a change of this rank beside each compressed layer of the blocks, which stays as it is.

    root: makes the S of a layer, (in_features, in_features), any; None: the identity, and no text is read.
    sequential: whether inputs have come through compressed and corrected predecessors; or through the uncompressed
    model, which the shared pass has. A and B are stored in the model's dtype.
    Raises Unsupported, before any work, for a rank below 1 or beyond a layer's, where no layer is compressed or one has
    an adapter, and where the model is not the uncompressed one but for how its matrices are stored.
    """
    model, dtype = subject.model, architecture.dtype(subject.model)
    packed = {name: layer for name, layer in matrices(model) if _is_packed(layer)}
    _check(technique, rank, packed)
    if sequential and (foreign := [name for name, layer in packed.items() if not is_compressed(layer)]):
        kind = type(packed[foreign[0]]).__name__
        raise Unsupported(f"{foreign[0]} is a {kind}, whose inputs are not watched; use sequential: false")
    original = calibration.baseline()
    _check_same(technique, model, original)
    if sequential:
        float_linears(model)  # dense equals in their places, whose inputs can be watched
    watched = model if sequential else original
    with gradients_pass(model):  # a library's layer that has run is stored as it was
        for name, seen in roots(watched, packed, calibration, root, sequential=sequential):
            if name in packed:
                base = packed[name]
                residual = architecture.weight(original.get_submodule(name)).float() - matrix_of(base, dtype).float()
                pair = (tensor.to(dtype) for tensor in change(residual, rank, seen))
                architecture.put(model, name, LoraLinear.of(base, *pair, alpha=rank, dtype=dtype))
    return subject.claiming(residual_rank=rank)


def change(residual: torch.Tensor, rank: int, root: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, in_features) and B (out_features, rank), float32, of the change that leaves least of R S.

    residual: R, (out_features, in_features) float32. root: S, or None for the identity.
    """
    left = torch.linalg.svd(residual if root is None else residual @ root, full_matrices=False).U[:, :rank]
    return balanced(left.T @ residual, left)


def _is_packed(layer: nn.Module) -> bool:
    return is_compressed(layer) or not architecture.weight(layer).is_floating_point()


def _check(technique: str, rank: int, packed: Mapping[str, nn.Module]) -> None:
    if not packed:
        raise Unsupported(
            f"{technique} makes up for what an earlier step took, found no compressed layer; put it behind one, as in"
            f" [rtn, {technique}] or [wanda, rtn, {technique}]"
        )
    if rank < 1:
        raise Unsupported(f"{technique} cannot keep a change of rank {rank}; expected 1 at the least")
    for name, layer in packed.items():
        if isinstance(layer, LoraLinear):
            raise Unsupported(f"{name} has an adapter already; expected a layer without one")
        if rank > (most := min(features(layer))):
            raise Unsupported(f"rank is {rank}, but {name} has one of {most} at the most; lower rank")


def _check_same(technique: str, model: nn.Module, original: nn.Module) -> None:
    """Raise Unsupported unless a model's blocks are those of the uncompressed one but for their matrices' values."""
    here, there = dict(matrices(model)), dict(matrices(original))
    for name in sorted(here.keys() | there.keys()):
        found, expected = (features(each[name]) if name in each else None for each in (here, there))
        if found != expected:
            raise Unsupported(
                f"{technique} wants the matrices of the uncompressed model, but {name} is {_in_words(found)} here and"
                f" {_in_words(expected)} there; put it behind steps that neither cut nor factorise"
            )
    blocks = tuple(f"{name}." for name, _ in architecture.named_blocks(original))
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in original.named_parameters():
        if not name.startswith(blocks) or name.removesuffix(".weight") in there:
            continue
        if name not in own or not torch.equal(own[name], tensor):
            raise Unsupported(
                f"{technique} compares weights with those of the uncompressed model, but {name} has changed, so that"
                " theirs have another scale; put it behind a step that folds none, such as rtn or gptq"
            )


def _in_words(shape: tuple[int, int] | None) -> str:
    return "missing" if shape is None else f"{shape[0]} x {shape[1]}"
