"""The profile of a decoding step: every operator of it, and what is left beside them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from scripts.decode_profile import AROUND, Found, Part, main, profiled, tables
from squeeze.artifacts import format as artifact
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.lean import Lean
from tests.tiny import tiny_subject

STEPS = 5


def test_it_counts_the_operators_of_a_step() -> None:
    """Of two blocks: four products each, and the head's."""
    found = profiled(Lean("cpu", 1).engine(tiny_subject("llama")), batch=1, prompt=8, steps=STEPS)
    calls = {part.name: part.calls for part in found.operators}
    assert calls["aten::linear"] == 2 * 4 + 1
    assert calls["aten::copy_"] >= 2  # keys and values, to their place
    assert len(found.alone) == STEPS
    assert [part.seconds for part in found.operators] == sorted(
        (part.seconds for part in found.operators), reverse=True
    )


def test_an_eager_step_has_more_of_them() -> None:
    lean, eager = (
        profiled(runtime.engine(tiny_subject("llama")), batch=2, prompt=8, steps=STEPS)
        for runtime in (Lean("cpu", 1), Eager("cpu", 1))
    )
    assert sum(part.calls for part in lean.operators) < 0.8 * sum(part.calls for part in eager.operators)
    assert any("modeling_llama" in part.name for part in eager.functions)
    assert not any("modeling_llama" in part.name for part in lean.functions)


def test_what_is_left_beside_the_operators_is_shown() -> None:
    operators = [Part("aten::mm", 4.0, 3e-3), Part("aten::add", 8.0, 2e-3), Part("aten::mul", 1.0, 1e-3)]
    found = Found([10e-3] * 20, operators, 12e-3, [Part("lean.py:1 step", 1.0, 2e-3)], 20e-3)
    lines = list(tables(found, lines=2))
    assert lines[0] == "a step takes 10.00 ms (5 % to 95 %: 10.00 to 10.00)"
    assert "| aten::mm | 4.0 | 3,000 | 30% |" in lines
    assert "| 1 others | 1.0 | 1,000 | 10% |" in lines
    assert f"| {AROUND} | | 4,000 | 40% |\n" in lines
    assert "| lean.py:1 step | 1.0 | 2,000 | 10% |" in lines


def test_it_prints_the_tables_of_an_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact.save(tiny_subject("llama"), tmp_path)
    options = ["--runtime", "lean", "--threads", "1", "--prompt", "8", "--steps", "4", "--lines", "200"]
    monkeypatch.setattr(sys, "argv", ["decode_profile", str(tmp_path), *options])
    before = torch.get_num_threads()
    main()
    torch.set_num_threads(before)
    printed = capsys.readouterr().out
    assert "runtime=lean, 1 threads, 1 x 8 tokens before" in printed
    assert "| aten::linear | 9.0 |" in printed
    assert "| function | calls | us | share |" in printed
