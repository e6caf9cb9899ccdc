"""Sentences have their classes, and none that is scored is among those that are trained on."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch

from squeeze.core.errors import IntegrityError
from squeeze.models.tiny import byte_tokenizer
from squeeze.sources import sentiment
from squeeze.sources.corpora import text
from squeeze.sources.sentiment import Split, cleaned, encoded, normal, sentences
from tests.snippets import HELD_OUT, TRAIN, put

SCORED = ["a  wonderful film .", "dull", "!!"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("rating", "expected"), [("3.2", [1]), ("0.55", [1]), ("0.5", []), ("0", []), ("-0.5", []), ("-0.55", [0])]
)
def test_a_clear_rating_is_a_class(rating: str, expected: list[int]) -> None:
    assert [number for _, number in cleaned([f"1\t{rating}\tSome  Film\r"], SCORED)] == expected


def test_lines_are_lower_case_with_single_spaces() -> None:
    assert list(cleaned(["1_2\t2\tSome  FILM, tabs\tand all\r", ""], [])) == [("some film, tabs and all", 1)]


@pytest.mark.parametrize(
    ("snippet", "stays"),
    [
        ("A wonderful film", False),
        ("a-wonderful, film!", False),
        ("A wonderful film, and long.", False),
        ("What A Wonderful Film it is", False),
        ("It is dull.", False),
        ("a wonderful", True),
        ("another wonder of a film", True),
    ],
)
def test_what_gives_a_scored_sentence_away_goes(snippet: str, stays: bool) -> None:
    assert len(list(cleaned([f"1\t3\t{snippet}"], SCORED))) == stays


def test_letters_and_digits_alone_count() -> None:
    assert normal("It 's a  CHARMING café , nr. 1 !") == "itsacharmingcafénr1"


def test_splits_are_read_as_they_were_cleaned(cache: Path) -> None:
    put()
    assert list(zip(*sentences("train"), strict=True)) == TRAIN
    assert list(zip(*sentences("held_out"), strict=True)) == HELD_OUT
    assert text(sentiment.CORPUS).split("\n")[:-1] == sentences("train")[0]


def test_other_snippets_than_the_pinned_ones_are_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = cache / "snippets.txt"
    snippets.write_text("1\t3\tfine\n2\t-3\tpoor\n")
    monkeypatch.setattr(sentiment, "SNIPPETS", {"source": f"file:{snippets}"})
    monkeypatch.setattr(sentiment, "_validation", lambda: iter([("fine", 1)]))
    with pytest.raises(IntegrityError, match=f"sst2_train: .*, expected {sentiment.TRAIN_SHA256}"):
        sentences("train")


def test_sentences_are_padded_at_the_end_and_cut() -> None:
    found = encoded(byte_tokenizer(encloses=True), ["ab", "abcdef", ""], most=6)
    assert found["input_ids"].dtype == found["attention_mask"].dtype == torch.int64
    assert found["input_ids"].shape == (3, 6)
    assert found["attention_mask"].sum(dim=1).tolist() == [4, 6, 2]
    assert found["attention_mask"].diff(dim=1).max() == 0
    start, end = 258, 259  # [CLS] and [SEP]
    assert found["input_ids"][1].tolist()[0] == start
    assert found["input_ids"][1].tolist()[-1] == end


@pytest.mark.real
@pytest.mark.promise(16)
def test_no_sentence_that_is_scored_is_left_among_those_that_are_trained_on() -> None:
    scored = [normal(each) for each in sentences("validation")[0]]
    for split in ("train", "held_out"):
        left = [each for each in map(normal, sentences(split)[0]) if any(known in each for known in scored)]
        assert not left


@pytest.mark.real
def test_the_real_sentences_are_those_of_sst2_and_of_the_same_reviews() -> None:
    counts = {split: sentences(split)[1] for split in get_args(Split)}
    assert (len(counts["validation"]), sum(counts["validation"])) == (872, 444)
    assert len(counts["train"]) > 8 * len(counts["held_out"]) > 5000
    assert all(0.45 < sum(classes) / len(classes) < 0.55 for classes in counts.values())
    assert not {*map(normal, sentences("train")[0])} & {*map(normal, sentences("held_out")[0])}
