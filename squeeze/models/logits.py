"""Turn hidden states into logits as the model's own forward does: its head, and what scales or caps come with it.

Granite divides by ``logits_scaling``, HyperCLOVA X multiplies by it, Cohere multiplies by ``logit_scale``, Gemma 2
caps: c tanh(x / c). No list of such habits is kept here. The model's forward itself is run, with given hidden states
in the place of the transformer's; once for a model, what it gives is held against what it gives of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from squeeze.core.errors import Unsupported
from squeeze.models.architecture import base_model, head, text_config

Logits = Callable[[Tensor], Tensor]  # (n, hidden) -> (n, vocabulary)

TOKENS = 8  # on which the two ways to the logits are compared
LARGER = 8  # times as large as they are, hidden states show a cap, too
ROUNDINGS = 16  # of the logits' dtype, relative to the largest, by which sums of another order may differ

_bare: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a model's logits are its head's outputs


def logits_of(model: nn.Module) -> Logits:
    """Return what maps the last hidden states of a causal model, (n, hidden), to its logits, (n, vocabulary).

    That is the head itself where the model's forward adds nothing. Raises Unsupported for a model without a head, and
    for one whose logits are not a function of its last hidden states alone.
    """
    if model not in _bare:
        _bare[model] = _is_bare(model)
    return head(model) if _bare[model] else lambda hidden: own_logits(model, hidden)


def own_logits(model: nn.Module, hidden: Tensor, output: Logits | None = None) -> Tensor:
    """Run a model's forward on given hidden states: (n, hidden) -> (n, vocabulary).

    output: takes the place of the model's head, (1, n, hidden) -> (1, n, vocabulary); the model may then be one without
    data, on the meta device. Raises Unsupported for a forward that does not ask its transformer for hidden states.
    """
    asked = []

    def given(*_: Any, **__: Any) -> _Given:
        asked.append(True)
        return _Given(hidden[None])

    token_ids = torch.zeros((1, len(hidden)), dtype=torch.int64, device=hidden.device)
    with ExitStack() as stands_in:
        for transformer in _transformers(model):
            stands_in.enter_context(_computing(transformer, given))
        if output is not None:
            stands_in.enter_context(_computing(head(model), output))
        logits: Tensor = model(input_ids=token_ids, use_cache=False).logits
    if not asked:
        raise unknown(model)
    return logits[0]


def unknown(model: nn.Module) -> Unsupported:
    """Return the refusal of a model that has a way of its own to its logits."""
    return Unsupported(
        f"{type(model).__name__} transforms its logits in a way that squeeze does not know; expected a function of "
        "the transformer's last hidden states alone"
    )


class _Given:
    """Stand for a transformer's outputs: the last hidden states, and None of all others."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, number: int | slice) -> Any:
        return (self.last_hidden_state,)[number]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _transformers(model: nn.Module) -> list[nn.Module]:
    """Return the modules that a forward may ask for hidden states: some pass over the base model, to its decoder."""
    base = base_model(model)
    decoder = getattr(base, "decoder", None)
    return [base, decoder] if isinstance(decoder, nn.Module) else [base]


@torch.no_grad()
def _is_bare(model: nn.Module) -> bool:
    try:
        hidden, logits = _seen(model)
        known = _same(own_logits(model, hidden), logits)
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        raise unknown(model) from error
    if not known:
        raise unknown(model)
    output, larger = head(model), LARGER * hidden
    if getattr(output, "in_features", None) != hidden.shape[1]:
        return False
    return _same(output(larger), own_logits(model, larger))


def _seen(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the last hidden states, (n, hidden), and the logits, (n, vocabulary), of one forward of a few tokens."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, outputs: Any) -> None:
        kept.append(outputs.last_hidden_state[0])

    hooks = [transformer.register_forward_hook(keep) for transformer in _transformers(model)]
    vocabulary: int = text_config(model).vocab_size
    token_ids = torch.randint(vocabulary, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    try:
        logits = model(input_ids=token_ids.to(next(model.parameters()).device), use_cache=False).logits[0]
    finally:
        for hook in hooks:
            hook.remove()
    return kept[-1], logits  # the base model's, where it is asked: it ends after its decoder


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    largest = float(expected.float().nan_to_num(0, 0, 0).abs().max())
    bound = ROUNDINGS * torch.finfo(expected.dtype).eps * largest
    return torch.allclose(found.float(), expected.float(), rtol=0, atol=bound, equal_nan=True)


@contextmanager
def _computing(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module compute something else within the body."""
    before = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before
