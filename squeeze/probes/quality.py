"""Measure how well a model predicts: token perplexity and tasks, by lm-eval, and how far it is from its baseline."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from torch import Tensor

from squeeze.core.errors import IntegrityError, SqueezeError, hint
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.probes import causality, continuations, rounding
from squeeze.probes import samples as stored
from squeeze.probes.batching import batch_dependent, row_dependent, takes_branches
from squeeze.probes.divergence import Divergence, HiddenWriter, hidden_writer, stored_head, wide_head
from squeeze.probes.held_out import held_out_nll
from squeeze.probes.lm_eval_model import SubjectLM, TokenScores, Windows
from squeeze.probes.samples import Samples
from squeeze.probes.scoring import Row, log_probabilities, predict
from squeeze.records.statistics import standard_error
from squeeze.runtimes.contract import TorchEngine
from squeeze.sources import corpora, own_questions, own_text, questions, tasks

MOST_LOSS = 700.0  # nats, whose exponential a float still holds


def measure_quality(
    engine: TorchEngine,
    protocol: Mapping[str, Any],
    samples: Samples,
    baseline: Path | None = None,
    baseline_artifact: Path | None = None,
) -> None:
    """Score a causal language model by the protocol's perplexity and tasks, and put what was found into the samples.

    Scalars: perplexity, bits_per_byte, acc_TASK, acc_TASK_stderr, batch_dependent, diverged (and then reason), packed,
    causal, causal_difference.
    Arrays: token_nll and window (scored tokens,); TASK_correct (items,), TASK_loglik (items, choices; NaN where an item
    has fewer). Where the protocol asks for it, perplexity_ood and token_nll_ood (scored tokens of that text,).
    baseline: samples folder of the baseline's quality, and baseline_artifact its artifact. With them come kl_divergence
    and top1_agreement, as means and as arrays kl, top1 and confidence (scored tokens,). Without, the model is a
    baseline: its hidden states are kept beside the samples, and its distances from itself under another rounding in
    floor_kl and floor_top1 (some tokens,), named by floor_rounding.
    Of a baseline, and of what predicts the text better: perplexity_held_out and token_nll_held_out (tokens,), on text
    of the same kind (``held_out``), where there is some.
    Where the protocol asks for generations: generated (prompts, tokens), or generated_alone (fewer prompts, tokens) of
    a model that is scored one request at a time; a baseline has both.
    A subject with a cache of its own is scored through it.
    Raises SqueezeError for an unknown task or too short a text; IntegrityError where the baseline's files do not fit.
    """
    subject = engine.subject
    windows = _windows(protocol["perplexity"], subject)
    with samples.stage("probe"):
        dependent = batch_dependent(subject.model)
        alone = dependent or subject.cache is not None
        packed = bool(protocol["tasks"]) and not alone and takes_branches(subject.model)  # a text has no branches
    samples.put_all({"batch_dependent": dependent, "packed": packed})
    # Where a batch changes its own scores, or a cache is filled, each request is scored alone, as it would be in use.
    token_budget = 0 if alone else protocol["token_budget"]
    how: dict[str, Any] = {"token_budget": token_budget, "packed": packed, "states": engine.states}
    with _observer(subject, samples.folder, windows.scored, baseline, baseline_artifact) as observe:
        lm = SubjectLM(subject, windows, observe=observe, **how)
        items = run(lm, protocol, samples)
    if isinstance(observe, Divergence):
        check_same_text(lm.scores, observe.folder)
        _put_divergence(samples, observe)
    elif not alone:
        _put_floor(samples, subject, windows, protocol["perplexity"]["corpus"])
    _put_perplexity(samples, lm.scores, int(subject.model.config.vocab_size))  # type: ignore[union-attr,arg-type]
    _put_causality(samples, engine, windows, protocol, lm.scores, dependent=dependent)
    if "perplexity_ood" in protocol:
        lm = SubjectLM(subject, _windows(protocol["perplexity_ood"], subject), **how)
        run(lm, {**protocol, "perplexity": protocol["perplexity_ood"], "tasks": []}, samples)
        samples.put("perplexity_ood", lm.scores.perplexity)
        samples.put_array("token_nll_ood", lm.scores.nll)
    if baseline is None or samples.values["perplexity"] < stored.read(baseline, arrays=False).values["perplexity"]:
        _put_held_out(samples, engine, protocol["perplexity"])
    for task in protocol["tasks"]:
        _put_task(samples, task, items[task])
    if "generations" in protocol:
        put_generations(samples, engine, protocol, alone=alone, both=not alone and baseline is None)


def run(lm: SubjectLM, protocol: Mapping[str, Any], samples: Samples) -> dict[str, list[dict[str, Any]]]:
    """Have lm-eval score the protocol's text and tasks; return its log of every item, by task."""
    names = [protocol["perplexity"]["corpus"], *protocol["tasks"]]
    own = {name: spec for name in names if (spec := _own(name))}
    for name in names:
        if name not in tasks.names() and name not in own:
            raise SqueezeError(f"unknown task {name!r}; {hint(name, tasks.names())}")
    with samples.stage("tasks"), _only_errors("lm_eval"):
        metadata = {"tokens": protocol["perplexity"]["tokens"], "items": protocol["items"]}
        manager = TaskManager(include_path=str(tasks.FOLDER), include_defaults=False, metadata=metadata)
        loaded = manager.load([own.get(name, name) for name in names])
    with samples.stage("scoring"), _only_errors("lm_eval"):
        # No response cache: it does not know one model from another. No bootstrap: items are kept, errors are exact.
        return evaluate(lm, loaded, bootstrap_iters=0, log_samples=True)["samples"]  # type: ignore[no-any-return]


def _own(name: str) -> dict[str, Any] | None:
    """Return lm-eval's configuration for a text or task of the user's own; None for any other name."""
    if own_text.hash_of(name):
        return {**_shared("_text.yml", questions.text), "task": name, "dataset_kwargs": {"corpus": name}}
    if own_questions.is_own(name):
        shared = _shared("_multiple_choice.yml", questions.questions)
        return {**shared, "task": name, "dataset_kwargs": {"member": name, "sha256": ""}}
    return None


def _shared(name: str, data: Callable[..., Any]) -> dict[str, Any]:
    """Return what tasks of a kind share, by the file of conf/task that says it; ``data`` reads theirs."""
    settings: dict[str, Any] = load_yaml(tasks.FOLDER / name, resolve_func=True)
    return {**settings, "custom_dataset": data}


def check_same_text(scores: TokenScores, baseline: Path) -> None:
    """Raise IntegrityError unless the baseline scored the same tokens."""
    expected = stored.read(baseline, arrays=False).values.get("tokens_sha256")
    if expected != scores.tokens_sha256:
        raise IntegrityError(
            f"scored tokens have sha256 {scores.tokens_sha256}, the baseline's {expected}: not the same text or"
            " tokenizer; score both with one protocol"
        )


def scored_difference(engine: TorchEngine, token_ids: Tensor) -> float:
    """Return the largest |difference of log-probability|, in nats, between the timed forward and the scored one.

    token_ids: (1, tokens) int64; each token is predicted from those before it.
    """
    first, *rest = token_ids[0].tolist()
    model = engine.subject.model
    scored, _ = log_probabilities(model, predict(model, [Row((first,), (tuple(rest),), (0,))], engine.states))
    return float((engine.log_probabilities(token_ids)[0].cpu() - scored).abs().max())


def _windows(text: Mapping[str, Any], subject: Subject) -> Windows:
    """Return the protocol's windows; of ``tokens: null``, as many whole ones as the text has."""
    tokens = text["tokens"] or corpora.whole_windows(text["corpus"], subject.tokenizer, text["window"])
    return Windows(tokens, text["window"], text["stride"])


def _observer(
    subject: Subject, folder: Path, tokens: int, baseline: Path | None, baseline_artifact: Path | None
) -> AbstractContextManager[HiddenWriter | Divergence]:
    """Return what takes the hidden states: it keeps a baseline's, and compares a candidate's with them."""
    if baseline is None or baseline_artifact is None:
        folder.mkdir(parents=True, exist_ok=True)
        return hidden_writer(folder, tokens)
    baseline_head = stored_head(baseline_artifact, next(subject.model.parameters()).device)
    return nullcontext(Divergence(baseline, wide_head(subject.model), baseline_head))


def _put_perplexity(samples: Samples, scores: TokenScores, vocabulary: int) -> None:
    samples.put_all(
        {
            "perplexity": scores.perplexity,
            "bits_per_byte": scores.bits_per_byte,
            "tokens_sha256": scores.tokens_sha256,
            "diverged": not scores.perplexity <= vocabulary,  # NaN is not either
        }
    )
    if samples.values["diverged"]:
        samples.put("reason", f"perplexity {scores.perplexity:.4g}: guessing gives {vocabulary:,}, the vocabulary size")
    samples.put_array("token_nll", scores.nll)
    samples.put_array("window", scores.window)


def _put_divergence(samples: Samples, found: Divergence) -> None:
    kl, top1 = torch.cat(found.kl).numpy(), torch.cat(found.top1).numpy()
    samples.put_all({"kl_divergence": float(kl.mean(dtype=np.float64)), "top1_agreement": float(top1.mean())})
    samples.put_array("kl", kl)
    samples.put_array("top1", top1)
    samples.put_array("confidence", torch.cat(found.confidence).half().numpy())


def _put_floor(samples: Samples, subject: Subject, windows: Windows, corpus: str) -> None:
    """Put how far a baseline, whose hidden states lie beside the samples, is from itself under another rounding."""
    with samples.stage("floor"):
        token_ids = corpora.tokens(corpus, subject.tokenizer, windows.tokens).tolist()
        found = rounding.rounding_floor(subject.model, windows.rows(token_ids), samples.folder)
    samples.put("floor_rounding", f"{str(architecture.dtype(subject.model)).removeprefix('torch.')} {rounding.HOW}")
    samples.put_array("floor_kl", torch.cat(found.kl).numpy())
    samples.put_array("floor_top1", torch.cat(found.top1).numpy())


def _put_held_out(samples: Samples, engine: TorchEngine, scored: Mapping[str, Any]) -> None:
    with samples.stage("held_out"):
        losses = held_out_nll(engine, scored)
    if losses is not None:
        samples.put("perplexity_held_out", math.exp(min(float(losses.mean(dtype=torch.float64)), MOST_LOSS)))
        samples.put_array("token_nll_held_out", losses.numpy())


def _put_causality(
    samples: Samples,
    engine: TorchEngine,
    windows: Windows,
    protocol: Mapping[str, Any],
    scores: TokenScores,
    *,
    dependent: bool,
) -> None:
    """Put whether the scores of the text hang on what comes later in it."""
    with samples.stage("causality"):
        token_ids = corpora.tokens(protocol["perplexity"]["corpus"], engine.tokenizer, windows.tokens).tolist()
        rows = windows.rows(token_ids)
        nll = {row.owners[0]: scores.nll[scores.window == row.owners[0]].astype(np.float64) for row in rows}
        model, seed = engine.subject.model, protocol.get("seed", 0)
        by_right = dependent and row_dependent(model)
        found = causality.probe(model, rows, nll, engine.states, dependent=by_right, seed=seed)
    samples.put_all(found.figures())


def put_generations(
    samples: Samples, engine: TorchEngine, protocol: Mapping[str, Any], *, alone: bool, both: bool
) -> None:
    """Put the greedy continuations of prompts: together, ``alone``, or ``both``: what rounding does to them."""
    asked, device = protocol["generations"], next(engine.subject.model.parameters()).device
    with samples.stage("generations"):
        texts = continuations.prompts(protocol["perplexity"]["corpus"], engine, asked["prompts"]).to(device)
        if not alone:
            found = continuations.continued(engine, texts, asked["tokens"], together=continuations.ROWS)
            samples.put_array("generated", found)
        if alone or both:
            found = continuations.continued(engine, continuations.few(texts), asked["tokens"], together=1)
            samples.put_array("generated_alone", found)


def _put_task(samples: Samples, task: str, items: Sequence[Mapping[str, Any]]) -> None:
    items = sorted(items, key=lambda item: int(item["doc_id"]))
    correct = np.array([bool(item["acc"]) for item in items])
    scores = [[score for score, _ in item["filtered_resps"]] for item in items]
    loglik = np.full((len(items), max(map(len, scores))), np.nan)
    for row, values in zip(loglik, scores, strict=True):
        row[: len(values)] = values
    samples.put_all({f"acc_{task}": float(correct.mean()), f"acc_{task}_stderr": standard_error(correct)})
    samples.put_array(f"{task}_correct", correct)
    samples.put_array(f"{task}_loglik", loglik)


@contextmanager
def _only_errors(name: str) -> Iterator[None]:
    """Keep a library's warnings, which our use of it does not deserve, out of the log."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
