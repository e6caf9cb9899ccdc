"""Replace the matrices of a model by products of thinner ones: what methods of low rank share.

Each sees its inputs through a matrix S of its own: W S = U Sigma V^T, W ~ U_r Sigma_r V_r^T S^-1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import count_parameters, float_linears
from squeeze.layers.factors import Factors
from squeeze.models import architecture
from squeeze.models.subject import OF_CODES, Subject
from squeeze.techniques.contract import Calibration, InputStatistics, same_inputs
from squeeze.techniques.low_rank.rank_allocation import allocate

RANKS = ("uniform", "spectrum")
Root = Callable[[InputStatistics], torch.Tensor]  # returns S, (in_features, in_features), float32


def factorise(
    subject: Subject,
    calibration: Calibration,
    *,
    technique: str,
    weights_kept: float,
    root: Root | None,
    sequential: bool,
    ranks: str = RANKS[0],
) -> Subject:
    """Return the subject with two thin layers in the place of each linear layer of the blocks.

    weights_kept: the share of the weights that factors may have, above 0, at most 1. ranks: "uniform", of each matrix;
    "spectrum", of all together, shared out so that the sum of the relative errors of the layers' outputs is least
    (``rank_allocation.allocate``); some matrices then stay dense. root: makes the S of a layer, lower triangular; None:
    the identity, and no text is read. sequential: whether inputs come from factorised predecessors, or from the float
    model, as those that "spectrum" looks at always do.

    "spectrum" goes over the layers twice, and keeps singular values alone in between.
    Raises Unsupported for another share, and for other ranks; SqueezeError without text, where there is a root.
    """
    if not 0 < weights_kept <= 1:
        raise Unsupported(f"{technique} cannot keep a share of {weights_kept}; expected more than 0, at most 1")
    if ranks not in RANKS:
        raise Unsupported(f"{technique} has no ranks {ranks!r}; expected {' or '.join(RANKS)}")
    model = subject.model
    parameters = subject.claims.get("parameters", count_parameters(model))
    names = float_linears(model)
    shapes = [_shape(model, name) for name in names]
    if ranks == "uniform":
        chosen: list[int | None] = [rank_of(rows, columns, weights_kept) for rows, columns in shapes]
    else:
        spectra = {
            name: relative_spectrum(_weight(model, name), seen) for name, seen in roots(model, names, calibration, root)
        }
        budget = weights_kept * sum(rows * columns for rows, columns in shapes)
        chosen = allocate([spectra[name] for name in names], shapes, budget)
    rank_by_name = dict(zip(names, chosen, strict=True))
    for name, seen in roots(model, names, calibration, root, sequential=sequential):
        if (rank := rank_by_name[name]) is not None:
            _replace(model, name, rank, seen)
    return subject.without(*OF_CODES, "sparsity").claiming(parameters=parameters)


def roots(
    model: nn.Module, names: Iterable[str], calibration: Calibration, root: Root | None, *, sequential: bool = False
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield the full name and the S of each layer, block after block; layers of the same inputs share one.

    Without a root it is None, for the layers of these names; otherwise the model is run, and all its layers come.
    """
    if root is None:
        yield from ((name, None) for name in names)
        return
    for block, _, inputs in calibration.input_statistics(model, sequential=sequential):
        for group, statistics in same_inputs(inputs):
            shared = root(statistics)
            for name in group:
                yield f"{block}.{name}", shared


def rank_of(rows: int, columns: int, weights_kept: float) -> int:
    """Return the highest rank at which two factors have at most this share of a matrix's weights; at least 1."""
    return max(1, int(weights_kept * rows * columns / (rows + columns)))


def factors(weight: torch.Tensor, rank: int, root: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, in_features) and B (out_features, rank), float32, of the best B A in the norm that S sees.

    weight: (out_features, in_features) float32. root: S, lower triangular, or None for the identity.
    """
    seen = weight if root is None else weight @ root
    left, values, right = torch.linalg.svd(seen, full_matrices=False)
    halves = values[:rank].sqrt()
    up, down = left[:, :rank] * halves, halves[:, None] * right[:rank]
    if root is not None:
        down = torch.linalg.solve_triangular(root, down, upper=False, left=False)
    return balanced(down, up)


def balanced(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of one norm and the same product, so that neither leaves the range of 16 bits.

    One learning rate then suits both, too.
    """
    share = (up.norm() / down.norm()).sqrt() if up.any() and down.any() else up.new_ones(())
    return (down * share).contiguous(), (up / share).contiguous()


def relative_spectrum(weight: torch.Tensor, root: torch.Tensor | None) -> torch.Tensor:
    """Return the squares of the singular values of W S over their sum: (min(out_features, in_features),) float64.

    They descend; each is the share of the layer's output energy ||W X||^2 that is lost with it. They are eigenvalues of
    the smaller of the two products of W S with itself, which cost a fraction of its singular values.
    """
    seen = (weight if root is None else weight @ root).double()
    squares = seen @ seen.T if len(seen) <= seen.shape[1] else seen.T @ seen
    energies = torch.linalg.eigvalsh(squares).flip(0).clamp_min(0)
    return energies / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)  # type: ignore[no-any-return]


def _replace(model: nn.Module, name: str, rank: int, root: torch.Tensor | None) -> None:
    layer = model.get_submodule(name)
    dtype = architecture.weight(layer).dtype
    down, up = factors(_weight(model, name), rank, root)
    architecture.replace(model, name, Factors.of(down.to(dtype), up.to(dtype), architecture.bias(layer)))


def _weight(model: nn.Module, name: str) -> torch.Tensor:
    return architecture.weight(model.get_submodule(name)).float()


def _shape(model: nn.Module, name: str) -> tuple[int, int]:
    rows, columns = architecture.weight(model.get_submodule(name)).shape
    return rows, columns
