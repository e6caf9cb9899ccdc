"""Check that a subject can have a cache that forgets tokens: what the methods that forget some have in common."""

from __future__ import annotations

from typing import Any

from squeeze.core.errors import Unsupported
from squeeze.models.layout import LAYOUTS
from squeeze.models.subject import Subject
from squeeze.techniques.inference.plain_cache import check_plain_cache

PIECE = 64  # tokens that are forgotten at a time: few enough to matter little, enough to be read fast


def check_evicting(subject: Subject, name: str, cache_tokens: int, piece: int, always: int) -> None:
    """Raise Unsupported unless a cache of so many tokens fits the subject, and some of them are there to choose.

    name: of the technique. always: tokens that are kept whatever comes.
    """
    model: Any = subject.model
    check_plain_cache(subject, name)
    if piece < 1 or cache_tokens % piece:
        raise Unsupported(
            f"{name} forgets {piece} tokens at a time; expected cache_tokens, {cache_tokens}, to be a multiple of that"
        )
    if not 0 <= always < cache_tokens - piece:
        raise Unsupported(
            f"{name} keeps {always} tokens whatever comes and makes room for {piece}; expected cache_tokens,"
            f" {cache_tokens}, to be above {always + piece}"
        )
    if model.config.model_type not in LAYOUTS:
        raise Unsupported(f"{name}: positions of {type(model).__name__} are not known; expected {', '.join(LAYOUTS)}")
