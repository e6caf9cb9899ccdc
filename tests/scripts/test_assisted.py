"""The cross-check: transformers' assisted generation says the same text in the same steps, with the same draft."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts import assisted
from scripts.assisted import Said, compared, lines, loaded, ours, row, theirs
from squeeze.artifacts import format as artifact
from squeeze.core.errors import SqueezeError
from squeeze.models.subject import Subject
from squeeze.runtimes import speculative
from squeeze.sources import corpora, prompts
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.drafts import EAGER, drafted_by, lively, looked_up, prompt

TOKENS = 30


def rounded() -> Subject:
    return RoundToNearest(4, 32, True).apply(lively(), CalibrationText.empty())


DRAFTS = {
    "itself": lambda: drafted_by(lively(), lively()),
    "another": lambda: drafted_by(lively(), lively(seed=1)),
    "rounded": lambda: drafted_by(lively(), rounded(), tokens=3),
    "lookup": lambda: looked_up(lively(), tokens=5, longest=3),
}


@pytest.mark.parametrize("way", DRAFTS)
def test_both_say_the_same_in_the_same_steps(way: str) -> None:
    engine = EAGER.engine(DRAFTS[way]())
    found, other = ours(engine, prompt(), TOKENS), theirs(engine.subject, prompt(), TOKENS)
    assert found == other
    assert found.tokens == ours(engine.undrafted, prompt(), TOKENS).tokens
    assert (len(found.tokens), sum(found.steps)) == (TOKENS, TOKENS - 1)


def test_they_would_not_if_ours_accepted_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bugs: a guess more than is right stands, or one that is right does not, which only steps show."""
    subject = DRAFTS["itself"]()
    honest = speculative.accepted
    expected = theirs(subject, prompt(), TOKENS)
    monkeypatch.setattr(speculative, "accepted", lambda *pair: max(honest(*pair) - 1, 0))
    fewer = ours(EAGER.engine(subject), prompt(), TOKENS)
    assert fewer.tokens == expected.tokens
    assert fewer.steps != expected.steps
    monkeypatch.setattr(speculative, "accepted", lambda drafted, _: drafted.shape[1])
    other = DRAFTS["another"]()
    assert ours(EAGER.engine(other), prompt(), TOKENS).tokens != theirs(other, prompt(), TOKENS).tokens


def test_a_row_says_on_how_many_prompts_they_agree() -> None:
    same, longer = Said([1, 2, 3, 4], [2, 1]), Said([1, 2, 3, 4], [1, 1, 1])
    both = {"plain": (longer, 2.0), "ours": (same, 1.0), "transformers": (same, 4.0)}
    apart = {**both, "transformers": (Said([1, 2, 3, 5], [3]), 4.0)}
    assert row("code", [both, apart], 4) == "| code | 1/2 | 1/2 | 0.50 | 2.0 | 4.0 | 1.0 |"


def test_it_prints_a_line_for_each_kind_of_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "text", lambda _: "a text that goes on. " * 1000)
    monkeypatch.setattr(prompts, "code", lambda: "class A:\n    pass\n" * 1000)
    artifact.save(DRAFTS["lookup"](), tmp_path / "drafting")
    before = torch.get_num_threads()
    found = list(lines(loaded(tmp_path / "drafting", 1), prompts=2, tokens=8))
    torch.set_num_threads(before)
    assert [line.split(" | ")[:3] for line in found] == [[f"| {kind}", "2/2", "2/2"] for kind in prompts.KINDS]


def test_an_artifact_that_does_not_draft_is_refused(tmp_path: Path) -> None:
    artifact.save(lively(), tmp_path)
    before = torch.get_num_threads()
    with pytest.raises(SqueezeError, match="there is no draft, expected one"):
        loaded(tmp_path, 1)
    torch.set_num_threads(before)


def test_the_order_of_the_ways_is_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    engine = EAGER.engine(DRAFTS["lookup"]())

    def saying(name: str) -> Said:
        called.append(name)
        return Said([0], [])

    monkeypatch.setattr(assisted, "ours", lambda of, *_: saying("ours" if of is engine else "plain"))
    monkeypatch.setattr(assisted, "theirs", lambda *_: saying("transformers"))
    compared(engine, [prompt(), prompt()], 4)
    assert called[3:] == ["plain", "ours", "transformers", "transformers", "ours", "plain"]
