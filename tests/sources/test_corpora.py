"""Texts are clean, the same everywhere, apart where they must be, and tokenised no further than needed."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.models.tiny import byte_tokenizer
from squeeze.sources import corpora, hub
from squeeze.sources import fetch as assets
from squeeze.sources.corpora import (
    Corpus,
    calibration_tokens,
    calibration_windows,
    corpus_hash,
    text,
    tokens,
    whole_windows,
)
from tests.wheelhouse import sha256_of

LINES = "".join(f"Line {number} of a short text, naïvely told.\n" for number in range(400))


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a corpus that lies in a local file."""
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "short.txt"
    file.write_text(LINES)
    corpus = Corpus({"source": f"file:{file}"}, lambda path: path.read_text(), sha256_of(LINES.encode()))
    monkeypatch.setitem(corpora.CORPORA, "short", corpus)
    return "short"


class Counting:
    """A tokenizer that counts the characters which it was given."""

    def __init__(self) -> None:
        self.tokenizer, self.characters = byte_tokenizer(), 0

    def __call__(self, piece: str, **settings: bool) -> dict[str, list[int]]:
        self.characters += len(piece)
        return {"input_ids": self.tokenizer(piece, **settings)["input_ids"]}


def test_a_text_is_cleaned_once(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text(short) == LINES
    monkeypatch.setattr(assets, "fetch", None)
    assert text(short) == LINES


def test_another_text_than_the_pinned_one_is_refused(short: str, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus(corpora.CORPORA[short].source, lambda path: path.read_text().upper(), corpus_hash(short))
    monkeypatch.setitem(corpora.CORPORA, short, corpus)
    with pytest.raises(IntegrityError, match=f"{sha256_of(LINES.upper().encode())}, expected {corpus_hash(short)}"):
        text(short)


def test_an_unknown_corpus_says_which_was_meant() -> None:
    with pytest.raises(SqueezeError, match="unknown corpus 'wikipedia_eva'; did you mean 'wikipedia_eval'"):
        corpus_hash("wikipedia_eva")


@pytest.mark.parametrize(("count", "offset"), [(1, 0), (500, 0), (1000, 777), (3000, 0)])
def test_tokens_are_those_of_the_whole_text(short: str, count: int, offset: int) -> None:
    whole = torch.tensor(byte_tokenizer()(LINES)["input_ids"])
    found = tokens(short, byte_tokenizer(), count, offset=offset)
    assert found.dtype == torch.int64
    assert torch.equal(found, whole[offset : offset + count])


def test_tokens_carry_no_special_tokens(short: str) -> None:
    assert torch.equal(tokens(short, byte_tokenizer(encloses=True), 100), tokens(short, byte_tokenizer(), 100))


def test_no_more_is_tokenised_than_needed(short: str) -> None:
    counting = Counting()
    tokens(short, counting, 100)  # type: ignore[arg-type]
    assert counting.characters < 2000 < len(LINES) / 5


def test_too_short_a_text_names_both_numbers(short: str) -> None:
    total = len(LINES.encode())
    assert len(tokens(short, byte_tokenizer(), total)) == total
    with pytest.raises(SqueezeError, match=rf"has {total:,} tokens, {total + 1:,} are asked"):
        tokens(short, byte_tokenizer(), total + 1)


def test_a_text_is_a_corpus_or_a_file(short: str, tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_bytes("naïve".encode())
    assert corpora.text_or_file(short) == LINES
    assert corpora.text_or_file(str(file)) == "naïve"
    file.write_bytes("naïve".encode("latin-1"))
    with pytest.raises(SqueezeError, match=r"own\.txt: no UTF-8 text \(byte 2\); save it in UTF-8"):
        corpora.text_or_file(str(file))
    with pytest.raises(SqueezeError, match="'shrt' is neither a file nor a corpus; did you mean 'short'"):
        corpora.text_or_file("shrt")


def test_whole_windows_leave_the_rest_over(short: str) -> None:
    total = len(LINES.encode())
    assert total % 64
    assert whole_windows(short, byte_tokenizer(encloses=True), 64) == total // 64 * 64


def test_wikitext2_is_joined_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with their line breaks, blank ones empty, two line breaks between; other separators break no row."""
    file = tmp_path / "wikitext-2-raw-v1.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("wikitext-2-raw/wiki.test.raw", " \n = One = \n \n First\x85 line . \n")
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "data_file", lambda *_: file)
    with pytest.raises(IntegrityError, match="expected ef7edb566e3e"):
        text("wikitext2")
    corpus = corpora.CORPORA["wikitext2"]
    source = {**corpus.source, "sha256": sha256_of(file.read_bytes())}
    monkeypatch.setitem(corpora.CORPORA, "wikitext2", replace(corpus, source=source))
    assert text("wikitext2") == "\n\n = One = \n\n\n\n\n First\x85 line . \n"
    assert corpus_hash("wikitext2") == source["sha256"]


def windows(corpus: str, samples: int = 20, window: int = 50, seed: int = 0) -> torch.Tensor:
    return calibration_tokens({"corpus": corpus, "samples": samples, "window": window, "seed": seed}, byte_tokenizer())


def test_calibration_windows_are_of_the_text_and_do_not_overlap(short: str) -> None:
    found = windows(short)
    assert found.shape == (20, 50)
    whole = byte_tokenizer()(LINES)["input_ids"]
    starts = [next(i for i in range(0, len(whole), 50) if whole[i : i + 50] == row) for row in found.tolist()]
    assert len(set(starts)) == 20
    assert starts != sorted(starts)


def test_the_seed_alone_decides_the_windows(short: str) -> None:
    assert torch.equal(windows(short), windows(short))
    assert not torch.equal(windows(short), windows(short, seed=1))


def test_further_windows_are_held_out_as_many_as_there_are(short: str) -> None:
    request = {"corpus": short, "samples": 20, "window": 50, "seed": 0}
    drawn, held_out = calibration_windows(request, byte_tokenizer())
    assert torch.equal(drawn, windows(short))
    assert held_out.shape == (8, 50)
    more = windows(short, samples=28)
    assert torch.equal(more[20:], held_out), "those that would be drawn next"
    total = len(LINES.encode()) // 50
    _, rest = calibration_windows({**request, "samples": total - 3}, byte_tokenizer())
    assert rest.shape == (3, 50)
    _, none = calibration_windows({**request, "samples": total}, byte_tokenizer())
    assert none.shape == (0, 50)


def test_too_many_windows_name_both_numbers(short: str) -> None:
    with pytest.raises(SqueezeError, match=r"1000 windows of 50 tokens are asked, corpus short holds \d+"):
        windows(short, samples=1000)


def test_documents_lose_their_tags_and_empty_ones_go(tmp_path: Path) -> None:
    file = tmp_path / "wiki.utf8"
    file.write_text(
        '<doc id="1" title="One">\nOne\n\nFirst &lt;br&gt;told &amp; sold.\n\nSecond.\n\n</doc>\n'
        '<doc id="2" title="Two">\nTwo\n\n\n\n</doc>\n<doc id="3" title="Three">\nThree\n\nThird.\n\n</doc>\n'
    )
    assert corpora.CORPORA["wikipedia_train"].clean(file) == "One\nFirst told & sold.\nSecond.\n\nThree\nThird.\n"


def test_documents_are_dealt_out_in_turn(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("".join(f"{name}{line} {'x' * 1500}\n" for line in range(5)))
    lines = corpora.CORPORA["speeches"].clean(tmp_path).split()
    order = [line[1] for line in lines if line[0] in "abc"]
    assert order == list("012" * 3 + "34" * 3)
    assert len({line[0] for line in lines[::2][:9]}) == 3


@pytest.mark.real
@pytest.mark.parametrize("name", [name for name in corpora.CORPORA if name != "wikitext2"])  # that is on the hub
def test_real_texts_are_clean(name: str) -> None:
    whole = text(name)
    assert sha256_of(whole.encode()) == corpus_hash(name)
    assert len(whole) > 300_000
    if name != "c4":
        assert not any(mark in whole for mark in ("{{", "}}", "<ref", "</", "|-", "\r", "<doc"))


@pytest.mark.real
def test_no_article_is_in_both_splits_of_wikipedia() -> None:
    evaluation, training = (
        {document.partition("\n")[0] for document in text(name).split("\n\n")}
        for name in ("wikipedia_eval", "wikipedia_train")
    )
    assert len(training) > 1000
    assert "Anarchism" in evaluation
    assert not evaluation & training
