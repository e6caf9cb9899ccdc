"""Bring labelled sentences to the model that is to read them."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from squeeze.sources import sentiment
from squeeze.techniques.contract import Labelled


def labelled(
    split: sentiment.Split, tokenizer: PreTrainedTokenizerBase, device: str, most: int = sentiment.LONGEST
) -> Labelled:
    """Return the sentences of a split with their classes, on a device. most: tokens of a sentence."""
    texts, classes = sentiment.sentences(split)
    rows = {name: tensor.to(device) for name, tensor in sentiment.encoded(tokenizer, texts, most).items()}
    return Labelled(**rows, labels=torch.tensor(classes, dtype=torch.int64, device=device))
