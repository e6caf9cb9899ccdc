"""The measured tables say at which sparsity every weight gains, and nothing below it."""

import torch

from scripts.sparse_kernels import Case, compared, least, table, weight
from squeeze.records.record import Estimate


def case(sparsity: float, shape: tuple[int, int] = (8, 16)) -> Case:
    return Case("float32", 1, shape, sparsity)


def test_a_weight_has_the_zeros_of_its_case() -> None:
    made = weight(case(0.75), torch.bfloat16, torch.Generator().manual_seed(0))
    assert (made.shape, made.dtype) == ((8, 16), torch.bfloat16)
    assert int((made == 0).sum()) == 96


def test_both_products_are_timed_in_every_round() -> None:
    found = compared(case(0.9), rounds=5, footprint=1024)
    assert found.n == 5
    assert 0 < found.low <= found.value <= found.high


def test_the_least_sparsity_is_the_one_from_which_on_every_weight_gains() -> None:
    gain, loss = Estimate(1.5, 1.2, 1.8), Estimate(1.1, 0.9, 1.3)
    found = {case(0.5): gain, case(0.8): gain, case(0.9): gain, case(0.8, (4, 4)): loss, case(0.9, (4, 4)): gain}
    assert least(found) == 0.9
    assert least({case(0.9): loss}) is None
    text = "\n".join(table({case(0.8): gain, case(0.9): loss}))
    assert "| 8 x 16 | 1.50 [1.20, 1.80] | 1.10 [0.90, 1.30] |" in text
    assert "from a sparsity of: none" in text
