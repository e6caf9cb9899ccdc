"""A few labelled sentences in place of the real ones: in the cache, where those would lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from squeeze.core.cache import sealed
from squeeze.models.subject import Subject
from squeeze.sources import sentiment
from squeeze.sources.corpora import folder
from squeeze.techniques.contract import Labelled

GOOD = ("a good film", "good", "so good it is", "as good as it gets", "good fun for all of us", "it is good")
BAD = ("a bad film", "bad", "so bad it is", "as bad as it gets", "bad news for all of us", "it is bad")
TRAIN = [*((text, 1) for text in GOOD), *((text, 0) for text in BAD)]
HELD_OUT = [("good it is", 1), ("bad it is", 0)]

# Recipes that train a classifier: other models are refused. In CHAINS, what is trained is compressed behind it.
CLASSIFIERS_ONLY = {
    "distil_classifier",
    "distil_classifier_hidden",
    "distil_classifier_int8",
    "finetune_classifier",
}


CHAINS = {"distil_classifier_int8"}


def put(train: Sequence[tuple[str, int]] = TRAIN, held_out: Sequence[tuple[str, int]] = HELD_OUT) -> None:
    """Let these be the snippets of the cache that is in use, and the text of the corpus."""

    def write(made: Path) -> None:
        for name, rows in (("train", train), ("held_out", held_out)):
            (made / f"{name}.tsv").write_text("".join(f"{number}\t{text}\n" for text, number in rows))

    def write_text(made: Path) -> None:
        (made / "text.txt").write_text("".join(f"{text}\n" for text, _ in train))

    sealed(sentiment.place(), write)
    sealed(f"corpora/{folder(sentiment.CORPUS).name}", write_text)


def labelled(subject: Subject, rows: Sequence[tuple[str, int]] = TRAIN) -> Labelled:
    """Sentences as a subject's tokenizer has them, with their classes."""
    return Labelled(
        **sentiment.encoded(subject.tokenizer, [text for text, _ in rows]),
        labels=torch.tensor([number for _, number in rows]),
    )
