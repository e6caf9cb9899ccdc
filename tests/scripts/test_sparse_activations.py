"""The table of skipping against dense products: a row a shape and share, of products that agree."""

from __future__ import annotations

import sys

import pytest
import torch
import torch.nn.functional as F

from scripts import sparse_activations
from scripts.sparse_activations import copies, main, one_token, paired, row, skipping


def test_it_prints_a_row_for_each_shape_and_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sparse_activations, "SHAPES", ((8, 16), (16, 8)))
    monkeypatch.setattr(sparse_activations, "SHARES", (0.25, 0.75))
    monkeypatch.setattr(sys, "argv", ["sparse_activations", "--rounds", "5", "--memory", "0", "--threads", "1"])
    before = torch.get_num_threads()
    main()
    torch.set_num_threads(before)
    lines = [line for line in capsys.readouterr().out.splitlines() if "float" in line]
    assert len(lines) == 2 * 2 * 2
    assert lines[0].startswith("| bfloat16 | 8 x 16 | 128 | 25% | ")
    assert " to " in lines[0]


def test_both_ways_give_the_same_product() -> None:
    dense, columns = copies((12, 20), torch.float32, 12 * 20 * 4 * 3)
    assert len(dense) == len(columns) == 3
    assert len({weight.data_ptr() for weight in (*dense, *columns)}) == 6
    inputs = one_token(20, 0.6, torch.float32)
    assert int((inputs == 0).sum()) == 12
    assert torch.allclose(skipping(columns[0], inputs), F.linear(inputs, dense[0]), atol=1e-5)


def test_a_ratio_above_one_says_that_skipping_is_faster() -> None:
    line = row("float32", (2, 4), 0.5, [2e-6] * 6, [1e-6, 1.01e-6, 0.99e-6, 1e-6, 1e-6, 1e-6])
    assert line.startswith("| float32 | 2 x 4 | 8 | 50% | 2.0 | 1.0 | 2.00 [1.9")


def test_rounds_are_paired_and_turned_round() -> None:
    calls: list[str] = []
    weights = [torch.zeros(1)] * 2

    def product(name: str) -> sparse_activations.Product:
        return lambda weight: calls.append(name) or weight

    one, other = paired((product("a"), weights), (product("b"), weights), rounds=2)
    assert (len(one), len(other)) == (2, 2)
    assert "".join(calls) == "bbaa" + "aabb" + "bbaa"
