"""Principal directions: the first ones first, and of a vector and its negative always the same."""

from __future__ import annotations

import torch

from squeeze.techniques.hessian import principal_directions


def test_directions_are_those_of_the_largest_energies_in_their_order() -> None:
    turned = torch.tensor([[0.6, -0.8, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, -1.0]])  # columns of energies 1, 9 and 4
    moment = turned @ torch.diag(torch.tensor([1.0, 9.0, 4.0])) @ turned.T
    expected = torch.tensor([[0.8, 0.0], [-0.6, 0.0], [0.0, 1.0]])  # the largest component of each is positive
    assert torch.allclose(principal_directions(moment, 2), expected, atol=1e-6)
