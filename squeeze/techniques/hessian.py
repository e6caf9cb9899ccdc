"""Factors of a Hessian of layer inputs, and errors measured with it."""

from __future__ import annotations

import torch

from squeeze.core.errors import SqueezeError


def inverse_cholesky(hessian: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper triangular U with H^-1 = U^T U, of a Hessian whose diagonal has grown by the share ``damping``.

    Row i of U is what the paper needs of the inverse once the columns before i are done (section 3.3, step 3).
    With J the reversal of an order, J H J = L L^T gives U = J L^-1 J: one factorisation and no inverse of H.
    Raises SqueezeError for a Hessian that is not positive definite even so.
    """
    energies = hessian.diagonal()
    damped = hessian + torch.diag(torch.where(energies > 0, damping * energies, 1))
    lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
    if failed:
        raise SqueezeError(f"the Hessian is not positive definite with damping={damping}; expected more, such as 0.1")
    identity = torch.eye(len(hessian), device=hessian.device)
    inverse: torch.Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return inverse.flip(0, 1)
