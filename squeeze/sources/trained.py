"""Tell of models that squeeze fine-tunes itself, once: ``trained:SOURCE``, where SOURCE is what they start from.

Their field ``fine_tuning`` says on which corpus, for how many epochs, ...; the pins are those of SOURCE.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "trained:"
MODEL = "model"  # folder of the fine-tuned model, in its place in the cache
INFO = "training.json"  # beside it: what is known of its making


def is_trained(model: Mapping[str, Any]) -> bool:
    """Tell whether squeeze fine-tunes a model itself."""
    return str(model["source"]).startswith(PREFIX)


def base(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a model is fine-tuned from; one that is taken as it is is its own base."""
    if not is_trained(model):
        return model
    fields = {name: value for name, value in model.items() if name != "fine_tuning"}
    return {**fields, "source": str(model["source"]).removeprefix(PREFIX)}
