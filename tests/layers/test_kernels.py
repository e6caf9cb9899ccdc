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


# Decoding with few rows of inputs, for widths that are no multiple of what a kernel reads at once, and with inputs as
# views: some tokens of several texts (strided), and one that begins at an odd address. The worst error, as a share
# of the largest product of norms.
DECODE = """
import torch
from squeeze.layers.affine import fit
from squeeze.layers.quantized import QuantizedLinear
torch.set_num_threads(1)
worst = 0.0
def look(bits, group_size, width, height):
    global worst
    generator = torch.Generator().manual_seed(width + height)
    weight = torch.randn(height, width, generator=generator).bfloat16()
    grid = fit(weight, bits, group_size, symmetric=True)
    layer = QuantizedLinear.of(grid.quantize(weight), grid, None, torch.bfloat16)
    dense = layer.dequantize()
    layer.prepare()
    assert layer.layout is not None
    assert torch.equal(layer.dequantize(), dense)
    numbers = torch.tensor([0, height - 1])
    assert torch.equal(layer(numbers), dense[numbers])
    texts = torch.randn(5, 7, width, generator=generator).bfloat16()
    odd = torch.randn(3 * width + 8, generator=generator).bfloat16()[8:].view(3, width)
    given = [torch.randn(rows, width, generator=generator).bfloat16() for rows in range(1, 34)]
    for inputs in (*given, texts[:, -1:], odd):
        expected = inputs.double() @ dense.double().T
        size = inputs.double().norm(dim=-1).max() * dense.double().norm(dim=-1).max()
        error = (layer(inputs).double() - expected).abs().max() / size
        worst = max(worst, float(error)) if error == error else float("inf")
for width in (100, 104, 1000, 24, 40, 576):
    for height in (1, 3, 64, 81):
        look(8, width, width, height)
for bits, group_size, width in ((4, 32, 96), (4, 64, 64), (3, 96, 480), (8, 32, 160)):
    for height in (1, 31, 65):
        look(bits, group_size, width, height)
print(worst)
"""


@pytest.mark.parametrize("capability", ["", "avx2"])
def test_few_rows_of_any_width_are_multiplied_as_the_dense_product_is(capability: str) -> None:
    """In a process of its own: reading past the end gives garbage, or a segmentation fault."""
    environment = {**os.environ, **({"ATEN_CPU_CAPABILITY": capability} if capability else {})}
    ended = subprocess.run([sys.executable, "-c", DECODE], env=environment, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 0.01


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
