"""Check that a subject still has the plain cache of transformers: all methods ask it that give another, or draft."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from squeeze.core.errors import Unsupported
from squeeze.models import architecture
from squeeze.models.subject import Subject


def check_plain_cache(subject: Subject, name: str) -> None:
    """Raise Unsupported for a model that predicts no tokens or forgets some, and for one that has a cache or a draft.

    name: of the technique.
    """
    model: Any = subject.model
    architecture.head(model)
    if subject.cache is not None:
        raise Unsupported(f"{name}: there is a {type(subject.cache).__name__} already; expected one step with a cache")
    if subject.draft is not None:
        raise Unsupported(
            f"{name}: there is a draft already, and only the plain cache forgets what was guessed in vain; expected one"
            " step with a cache or a draft"
        )
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        raise Unsupported(f"{name}: {type(model).__name__} forgets tokens by itself; expected attention to all of them")
