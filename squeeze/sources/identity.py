"""Hash a model's source and calibration text, before anything of them is fetched. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from squeeze.core import cache
from squeeze.core.hashing import digest, sha256
from squeeze.sources import fetch as assets
from squeeze.sources import sentiment, trained
from squeeze.sources.corpora import corpus_hash

# Raise when squeeze.models.load, gguf_source or tiny come to give other weights from the same source.
LOADING = 1

# Raise when squeeze.sources.corpora comes to draw other calibration windows from the same corpus.
SAMPLING = 1

# Raise when squeeze.artifacts.trained, or what it calls, comes to train other weights from the same model and text.
TRAINING = 1

# Raise when squeeze.artifacts.sentences or squeeze.sources.sentiment come to encode the same sentences otherwise.
ENCODING = 1

PINS = ("source", "member", "sha256", "wheel_sha256", "revision", "seed", "kind")


def baseline_hash(model: Mapping[str, Any]) -> str:
    """Hash (sha256) where a model's weights come from: its pins, or the content of a local source. Not its dtype.

    Of one that is fine-tuned here: what it starts from, the sentences and their classes, the schedule, and the trainer.
    Raises SqueezeError for a local source that is not there.
    """
    if trained.is_trained(model):
        schedule = dict(model["fine_tuning"])
        start, text = baseline_hash(trained.base(model)), text_hash(schedule["corpus"])
        return digest({"training": TRAINING, "base": start, "text": text, "schedule": schedule})
    pins = {key: model[key] for key in PINS if model.get(key) is not None}
    if str(model["source"]).startswith("file:"):
        pins["source"] = _content_hash(assets.fetch(model))
    return digest({"loading": LOADING, **pins})


def trained_place(model: Mapping[str, Any]) -> str:
    """Return where below the cache root a model lies that is fine-tuned here, whether it is there or not."""
    return f"trained/{baseline_hash(model)[:16]}"


def calibration_hash(calibration: Mapping[str, Any]) -> str:
    """Hash (sha256) the calibration tokens' origin: the corpus by its content, samples, window and seed."""
    if not calibration:
        return digest({})
    settings = {key: value for key, value in calibration.items() if key not in {"name", "corpus"}}
    return digest({"sampling": SAMPLING, "corpus": text_hash(calibration["corpus"]), **settings})


def text_hash(corpus: str) -> str:
    """Hash (sha256) a corpus as models are shown it: its text; of sentences with classes, these and their cut, too."""
    if corpus != sentiment.CORPUS:
        return corpus_hash(corpus)
    sentences = {"classes": sentiment.TRAIN_SHA256, "longest": sentiment.LONGEST, "encoding": ENCODING}
    return digest({"text": corpus_hash(corpus), **sentences})


def _content_hash(path: Path) -> str:
    """Hash (sha256) names and bytes of a local file or folder; kept, so that each state of it is hashed once."""
    files = [path] if path.is_file() else sorted(item for item in path.iterdir() if item.is_file())
    state = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]

    def write(folder: Path) -> None:
        (folder / "sha256").write_text(digest([[file.name, sha256(file)] for file in files]))

    return (cache.sealed(f"digests/{digest(state)[:16]}", write) / "sha256").read_text()
