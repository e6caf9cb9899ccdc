"""The int4 packer's layout is read back as it was written; layouts that a CPU packs otherwise are not used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from squeeze.layers import kernels
from squeeze.layers.affine import fit

READ_BACK = """
import torch
from squeeze.layers import kernels
codes = torch.randint(16, (128, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
block = kernels._int4_block()
back = None if block is None else kernels._deinterleave(kernels._interleave(codes), 0, 128).T
print(block, back is None or torch.equal(back, codes))
"""


@pytest.mark.parametrize(("capability", "blocks"), [("", {"64", "32", "None"}), ("avx2", {"32", "None"})])
def test_the_block_is_found_on_each_instruction_set(capability: str, blocks: set[str]) -> None:
    environment = {**os.environ, **({"ATEN_CPU_CAPABILITY": capability} if capability else {})}
    output = subprocess.check_output([sys.executable, "-c", READ_BACK], env=environment, text=True)
    block, equal = output.split()
    assert block in blocks
    assert equal == "True"


def test_without_a_known_block_the_codes_stay_as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 64).to(torch.bfloat16)
    grid = fit(weight, 4, 32, symmetric=True)
    monkeypatch.setattr(kernels, "_int4_block", lambda: None)
    assert kernels.arrange(grid.quantize(weight), grid, torch.bfloat16) is None


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_widths_without_a_kernel_stay_as_stored(bits: int) -> None:
    weight = torch.randn(64, 64).to(torch.bfloat16)
    grid = fit(weight, bits, 32, symmetric=True)
    assert kernels.arrange(grid.quantize(weight), grid, torch.bfloat16) is None
