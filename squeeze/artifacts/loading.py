"""Load a causal model from any folder that holds one: an artifact of ours, or what transformers has saved."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from squeeze.artifacts import format as artifact
from squeeze.models.load import load_folder
from squeeze.models.subject import Subject


def load(folder: Path, device: str = "cpu", tokenizer: PreTrainedTokenizerBase | None = None) -> Subject:
    """Load a folder, ready to run. tokenizer: taken where a model's folder has none; an artifact always has its own.

    Raises IntegrityError for a folder that holds no model or is damaged, SqueezeError where there is no tokenizer.
    """
    if (folder / artifact.DESCRIPTION).is_file():
        return artifact.load(folder, device)
    return load_folder(folder, device, tokenizer)
