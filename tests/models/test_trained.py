"""The model that the package brings has learned something, and loses it to coarse rounding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from squeeze.core.errors import IntegrityError
from squeeze.models.load import load_baseline
from squeeze.models.subject import Subject
from squeeze.sources.fetch import PACKAGED
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest

ROOT = Path(__file__).parents[2]
SOURCE = {**yaml.safe_load((ROOT / "conf" / "model" / "tiny.yaml").read_text()), "dtype": "float32"}
# Prose of the kind that it was trained on, and none of that.
TEXT = """\
The river rises in the hills to the north of the town and flows south through a wide valley before it joins the sea. In
the nineteenth century the town was known for its mills, which were built along the river by a family of merchants. The
first of them was opened in 1824 and employed more than two hundred people, most of whom came from the villages in the
area. After the railway was completed in 1861, the population of the town increased from 4,000 to nearly 20,000, and a
number of schools, churches and a public library were established. The church of Saint Mary, which stands on the main
street, was designed by a local architect and was finished in 1879. It is built of stone and has a tower at its western
end. During the Second World War the town was used as a base by the army, and several old buildings were destroyed
by fire. Most of the mills were closed in the years that followed, and many of the people who had worked there moved to
the larger cities in the south. In 1974 the county council decided to turn the oldest of the mills into a museum, which
was opened to the public three years later and has been visited by more than a million people since. The museum has a
collection of machines, photographs and letters from the early days of the industry, and there is a small theatre on the
upper floor where plays and concerts are held in the summer. Today the town is the centre of a large district, and its
economy is based on services, education and tourism. The university, which was founded in 1992, has about six thousand
students and is best known for its work in the history of science. The football club plays its home games at the ground
near the river, and it has won the national cup on two occasions, the first of them in 1933.
"""
LARGEST = 700_000  # bytes


def tokens(subject: Subject) -> torch.Tensor:
    return torch.tensor(subject.tokenizer(TEXT)["input_ids"][:2048])[None]


def perplexity(model: nn.Module, ids: torch.Tensor) -> float:
    with torch.no_grad():
        logits: Any = model(ids).logits[0, :-1]
    return math.exp(nn.functional.cross_entropy(logits, ids[0, 1:]).item())


def rounded(bits: int) -> float:
    subject = load_baseline(SOURCE)
    return perplexity(RoundToNearest(bits, 64, True).apply(subject, CalibrationText.empty()).model, tokens(subject))


def test_it_predicts_text_far_better_than_the_frequencies_of_its_tokens() -> None:
    subject = load_baseline(SOURCE)
    ids = tokens(subject)
    shares = torch.bincount(ids[0]).double() / ids.numel()
    of_frequencies = math.exp(
        -torch.special.xlogy(shares, shares).sum().item()
    )  # of this very text: the least there is
    assert perplexity(subject.model, ids) < 0.5 * of_frequencies


def test_rounding_to_8_bits_costs_nothing_and_to_2_bits_much() -> None:
    subject = load_baseline(SOURCE)
    whole = perplexity(subject.model, tokens(subject))
    assert abs(rounded(8) / whole - 1) < 0.005
    assert 1.005 < rounded(4) / whole < 1.1
    assert rounded(2) / whole > 1.15


def test_it_is_small_and_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = list((PACKAGED / "tiny").iterdir())
    assert sum(file.stat().st_size for file in files) <= LARGEST
    copy = tmp_path / "tiny"
    copy.mkdir()
    for file in files:
        (copy / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr("squeeze.sources.fetch.PACKAGED", tmp_path)
    load_baseline(SOURCE)
    (copy / "config.json").write_bytes((copy / "config.json").read_bytes() + b" ")
    with pytest.raises(IntegrityError, match=f"expected {SOURCE['sha256']}; install squeeze again"):
        load_baseline(SOURCE)
