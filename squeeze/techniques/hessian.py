"""Factor the Hessian of a layer's inputs, with damping; find the directions that hold most of it."""

from __future__ import annotations

import torch

from squeeze.core.errors import SqueezeError, Unsupported

DAMPING_OF = ("own", "mean")


def check_damping_of(technique: str, damping_of: str) -> None:
    """Raise Unsupported for a damping that is a share of anything else than DAMPING_OF."""
    if damping_of not in DAMPING_OF:
        raise Unsupported(f"{technique} has no damping of {damping_of!r}; expected {' or '.join(DAMPING_OF)}")


def inverse_cholesky(hessian: torch.Tensor, damping: float, damping_of: str = DAMPING_OF[0]) -> torch.Tensor:
    """Return the upper triangular U with H^-1 = U^T U, of a Hessian whose diagonal has grown by the share ``damping``.

    damping_of: of what it is a share, "own": each element of itself, or "mean": all of the diagonal's mean.
    Row i of U is what the paper needs of the inverse once the columns before i are done (section 3.3, step 3).
    With J the reversal of an order, J H J = L L^T gives U = J L^-1 J: one factorisation and no inverse of H.
    Raises SqueezeError for a Hessian that is not positive definite even so.
    """
    energies = hessian.diagonal()
    added = damping * (energies if damping_of == "own" else energies.mean().expand_as(energies))
    damped = hessian + torch.diag(torch.where(energies + added > 0, added, 1))  # inputs that were always zero: any
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed:
        raise SqueezeError(f"the Hessian is not positive definite with damping={damping}; expected more, such as 0.1")
    identity = torch.eye(len(hessian), device=hessian.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.flip(0, 1)


def principal_directions(moment: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first ``count`` eigenvectors of a mean of x x^T, (n, n): (n, count) float32, orthonormal columns.

    Of a vector and its negative always the same one: that whose largest component is positive.
    """
    vectors = torch.linalg.eigh(moment.double()).eigenvectors.flip(1)[:, :count]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    basis: torch.Tensor = (vectors * largest.sign()).float()
    return basis
