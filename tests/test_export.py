"""An exported folder, read by plain transformers with compressed-tensors, computes what the artifact computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from squeeze import artifact
from squeeze.calibration import Calibration
from squeeze.cli import main
from squeeze.errors import Unsupported
from squeeze.export import to_compressed_tensors
from squeeze.techniques.hqq import HQQ
from squeeze.techniques.rtn import RoundToNearest
from tests.tiny import tiny_subject

TOKEN_IDS = torch.arange(24).reshape(2, 12)
NO_DATA = Calibration.empty()


@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", ["llama", "opt", "gpt_neox"])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, None), (3, 32)])
def test_transformers_reads_it(name: str, bits: int, group_size: int | None, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    subject = RoundToNearest(bits, group_size, True).apply(tiny_subject(name), NO_DATA)
    artifact.save(subject, tmp_path / "artifact")
    assert main(["export", str(tmp_path / "artifact"), str(tmp_path / "exported")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    torch.testing.assert_close(theirs(TOKEN_IDS)[0], subject.model(TOKEN_IDS)[0], rtol=1e-4, atol=1e-4)


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    cases = {
        "hqq": (HQQ(4, 32).apply(tiny_subject("llama"), NO_DATA), "written for symmetric grids only"),
        "gpt2": (RoundToNearest(4, 32, True).apply(tiny_subject("gpt2"), NO_DATA), "nn.Linear only"),
        "dense": (tiny_subject("llama"), "no layer is packed"),
    }
    for name, (subject, message) in cases.items():
        artifact.save(subject, tmp_path / name)
        with pytest.raises(Unsupported, match=message):
            to_compressed_tensors(tmp_path / name, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
