"""Measure how far any model is from another of the same vocabulary: what both predict, and their hidden states.

Both are in memory at once. The text goes through them a window at a time; of a window, the hidden states of the
reference are kept, and logits of a few positions at once. So memory grows neither with the text nor the vocabulary.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from squeeze.artifacts.loading import load
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.core.process import settle
from squeeze.core.progress import counted
from squeeze.models.architecture import form, head, named_blocks
from squeeze.models.logits import Logits
from squeeze.models.subject import Subject
from squeeze.probes.divergence import logits_of_both, relative_entropy, wide_head
from squeeze.probes.hidden_states import Errors, States, comparing, fed, watched
from squeeze.records.distance import Distance, Guess, Layer, TokenScores, Worst, overall
from squeeze.runtimes.kv_cache import states_of
from squeeze.sources import corpora

WORST = 5  # positions that are shown
CONTEXT = 24  # tokens before them


@dataclass(frozen=True)
class Conditions:
    """Say on what two models are compared.

    text: a corpus of ours or a file; the first ``tokens`` + 1 tokens of it are read, so that ``tokens`` are predicted,
    in windows of ``window``, none of which sees another. isolate: whether each block is run on the reference's hidden
    states, too. device: "cpu" or "cuda"; threads: torch's.
    """

    text: str
    tokens: int
    window: int
    isolate: bool
    device: str
    threads: int


class Seen(NamedTuple):
    """Hold what both models predict at a position.

    a, b: the likeliest token, its probability, and that of the token that follows.
    """

    kl: float
    position: int
    a: tuple[int, float, float]
    b: tuple[int, float, float]


@dataclass
class Comparison:
    """Compare model B with model A, a window at a time.

    accumulated, alone: where errors of hidden states are gathered; None where they are not asked for, or cannot be.
    """

    a: Subject
    b: Subject
    accumulated: Errors | None
    alone: Errors | None
    scores: list[Tensor] = field(default_factory=list)
    worst: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.heads: tuple[Logits, Logits] = wide_head(self.a.model), wide_head(self.b.model)
        self.predicted = 0

    @torch.inference_mode()
    def __call__(self, token_ids: Tensor) -> None:
        """Compare on a window, (tokens + 1,) int64: each token but the first is predicted from those before it."""
        inputs, targets = token_ids[None, :-1], token_ids[1:]
        states = States()
        a = _hidden(self.a, inputs, states.add if self.accumulated is not None else None)
        b = _hidden(self.b, inputs, None if self.accumulated is None else comparing(states, self.accumulated))
        if self.alone is not None:
            with fed(self.b.model, states):
                _hidden(self.b, inputs, comparing(states, self.alone))
        done = self.predicted
        for logits_a, logits_b in logits_of_both((self.heads[0], a), (self.heads[1], b)):
            start = self.predicted - done
            self._score(logits_a, logits_b, targets[start : start + len(logits_a)])

    def _score(self, a: Tensor, b: Tensor, targets: Tensor) -> None:
        """Score a few positions: logits (few, vocabulary), targets (few,)."""
        log_a, log_b = (F.log_softmax(logits.float(), dim=-1) for logits in (a, b))
        kl = relative_entropy(log_a, log_b)
        likeliest = a.argmax(-1), b.argmax(-1)
        nll = [F.nll_loss(each, targets, reduction="none") for each in (log_a, log_b)]
        self.scores.append(torch.stack([kl, (likeliest[0] == likeliest[1]).float(), *nll]).cpu())
        sides = [
            zip(top.tolist(), each.gather(1, top[:, None])[:, 0].exp().tolist(), loss.neg().exp().tolist(), strict=True)
            for top, each, loss in zip(likeliest, (log_a, log_b), nll, strict=True)
        ]
        found = zip(kl.tolist(), range(self.predicted, self.predicted + len(kl)), *sides, strict=True)
        self.worst = nlargest(WORST, [*self.worst, *(Seen(*each) for each in found)], key=lambda seen: seen.kl)
        self.predicted += len(kl)

    def token_scores(self) -> TokenScores:
        """Return the scores of all tokens so far."""
        kl, agree, nll_a, nll_b = torch.cat(self.scores, dim=1).numpy()
        return TokenScores(kl, agree, nll_a, nll_b)

    def layers(self) -> tuple[Layer, ...]:
        """Return the errors of hidden states, block by block; none where they are not compared."""
        if self.accumulated is None:
            return ()
        names = ["embeddings", *(name for name, _ in named_blocks(self.a.model))]
        return tuple(
            Layer(name, self.accumulated.at(place), self.alone.at(place) if self.alone and place else None)
            for place, name in enumerate(names)
        )


def distance(names: tuple[str, str], folders: tuple[Path, Path], conditions: Conditions) -> Distance:
    """Return how far the model in the second folder is from the one in the first; names: what they are called.

    Raises SqueezeError where the vocabularies, or the tokens that the tokenizers make of the text, are not the same,
    where a model has fewer positions than a window, or predicts nothing finite; IntegrityError for no model.
    """
    if conditions.device.startswith("cuda") and not torch.cuda.is_available():
        raise SqueezeError("no CUDA device is usable here; use --device cpu")
    settle({"threads": conditions.threads}, 0)
    text = corpora.text_or_file(conditions.text)
    a = load(folders[0], conditions.device)
    b = load(folders[1], conditions.device, a.tokenizer)
    _check_models(names, a, b, conditions.window)
    token_ids = _tokens(text, names, (a.tokenizer, b.tokenizer), conditions).to(conditions.device)
    apart = why_not_by_layer(a.model, b.model)
    comparison = Comparison(a, b, None if apart else Errors(), Errors() if conditions.isolate and not apart else None)
    starts = [*range(0, conditions.tokens, conditions.window), conditions.tokens]
    with counted(f"comparing {names[1]} with {names[0]}", conditions.tokens) as done:
        for start, end in pairwise(starts):
            comparison(token_ids[start : end + 1])
            done(end)
    return Distance(
        a=names[0],
        b=names[1],
        text=conditions.text,
        window=conditions.window,
        **overall(comparison.token_scores()),
        worst=tuple(_in_words(seen, token_ids.cpu(), a.tokenizer, conditions.window) for seen in comparison.worst),
        layers=comparison.layers(),
        no_layers=apart,
    )


def why_not_by_layer(a: nn.Module, b: nn.Module) -> str:
    """Say why hidden states of two models cannot be compared block by block; empty where they can."""
    try:
        depths = [len(named_blocks(model)) for model in (a, b)]
    except Unsupported as error:
        return str(error)
    for name, model in (("A", a), ("B", b)):
        if form(model) is not None:
            return f"{name}'s hidden states lie in another frame at each place"
    if depths[0] != depths[1]:
        return f"A has {depths[0]} blocks, B {depths[1]}"
    widths = [model.config.get_text_config().hidden_size for model in (a, b)]  # type: ignore[union-attr,operator]
    return f"A's hidden states have {widths[0]} dimensions, B's {widths[1]}" if widths[0] != widths[1] else ""


def _hidden(subject: Subject, inputs: Tensor, seen: Any) -> Tensor:
    """Return the last hidden states, (tokens, hidden), of a window (1, tokens), and show those between blocks."""
    with ExitStack() as watching:
        if seen is not None:
            watching.enter_context(watched(subject.model, seen))
        return states_of(subject)(subject.model, input_ids=inputs, use_cache=False)[0]


def _check_models(names: tuple[str, str], a: Subject, b: Subject, window: int) -> None:
    for name, subject in zip(names, (a, b), strict=True):
        try:
            head(subject.model)
        except Unsupported as error:
            raise SqueezeError(
                f"{name}: {error}, so it predicts no tokens; expected a causal language model"
            ) from error
    configs: list[Any] = [subject.model.config.get_text_config() for subject in (a, b)]  # type: ignore[operator,union-attr]
    sizes = [config.vocab_size for config in configs]
    if sizes[0] != sizes[1]:
        raise SqueezeError(
            f"{names[0]} predicts {sizes[0]:,} tokens, {names[1]} {sizes[1]:,}: KL needs one vocabulary; compare "
            "models of one family, or resize the embeddings of one (resize_token_embeddings)"
        )
    for name, config in zip(names, configs, strict=True):
        most = getattr(config, "max_position_embeddings", None)
        if isinstance(most, int) and most < window:
            raise SqueezeError(f"{name} has {most:,} positions, a window {window:,}; give --window {most} or less")


def _tokens(
    text: str, names: tuple[str, str], tokenizers: tuple[PreTrainedTokenizerBase, ...], conditions: Conditions
) -> Tensor:
    """Return the tokens of the text, (tokens + 1,). Raises SqueezeError where the tokenizers make other ones of it."""
    needed, title = conditions.tokens + 1, f"text {conditions.text}"
    token_ids = corpora.first_tokens(text, title, tokenizers[0], needed)
    if tokenizers[1] is tokenizers[0]:
        return token_ids
    try:
        others = corpora.first_tokens(text, title, tokenizers[1], needed)
    except SqueezeError as error:
        raise _other_tokens(names, f"to the second, {error}") from error
    if len(places := (token_ids != others).nonzero()):
        place = int(places[0])
        found = [_shown(*each, place) for each in zip(tokenizers, (token_ids, others), strict=True)]
        raise _other_tokens(names, f"token {place:,} of {title} is {found[0]} to the first, {found[1]} to the second")
    return token_ids


def _other_tokens(names: tuple[str, str], what: str) -> SqueezeError:
    return SqueezeError(
        f"the tokenizers of {names[0]} and {names[1]} differ: {what}; KL needs the same tokens: where the tokenizers "
        "ought to be one, copy the first one's files into the second folder"
    )


def _shown(tokenizer: PreTrainedTokenizerBase, token_ids: Tensor, place: int) -> str:
    return f"{int(token_ids[place])} ({tokenizer.decode([int(token_ids[place])])!r})"


def _in_words(seen: Seen, token_ids: Tensor, tokenizer: PreTrainedTokenizerBase, window: int) -> Worst:
    """Describe a position; its context is what of its window lies before the token that follows."""
    first = max(seen.position // window * window, seen.position + 1 - CONTEXT)
    return Worst(
        position=seen.position,
        kl=seen.kl,
        context=tokenizer.decode(token_ids[first : seen.position + 1]),
        actual=tokenizer.decode([int(token_ids[seen.position + 1])]),
        a=Guess(tokenizer.decode([seen.a[0]]), *seen.a[1:]),
        b=Guess(tokenizer.decode([seen.b[0]]), *seen.b[1:]),
    )
