"""What `squeeze kld` prints and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from squeeze.boards.distance import show
from tests.records.test_distance import example


def test_every_figure_is_printed_with_its_interval(capsys: pytest.CaptureFixture[str]) -> None:
    found = example()
    show(found)
    out = capsys.readouterr().out
    assert f"{found.kl.low:.3g} to {found.kl.high:.3g}" in out
    assert f"{found.top1.value:.2%}" in out
    assert f"{found.perplexity_ratio.value:.4f}" in out
    assert "no intervals" not in out
    assert "some [bold]text" in out  # neither markup nor line breaks of the text count
    assert "' a' 50.0% (0.25)" in out
    (first,) = (line for line in out.splitlines() if "model.layers.0" in line)
    assert first.split() == ["model.layers.0", *["10.000%", "20.000%", "0.99000"] * 2]


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    show(replace(example(600), layers=(), no_layers="A has 2 blocks, B 1"))
    out = capsys.readouterr().out
    assert "no intervals: 1 blocks of 512 tokens, 16 needed (--tokens 8192)" in out
    assert "no comparison layer by layer: A has 2 blocks, B 1" in out
    assert "hidden states" not in out


def test_the_json_file_has_the_same(tmp_path: Path) -> None:
    show(example(), tmp_path / "kld.json")
    assert json.loads((tmp_path / "kld.json").read_text()) == json.loads(json.dumps(example().to_json()))
