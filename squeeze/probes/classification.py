"""Score a classifier on labelled texts, by Hugging Face's ``evaluate``, and say how far it is from its baseline.

Texts of like length share a batch, padded and masked. A model whose answer to a text hangs on what else is in the call
(activations quantized with one scale) reads each text alone, as it would be in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.core.hashing import digest
from squeeze.probes import latency
from squeeze.probes import samples as stored
from squeeze.probes.classes import answers, class_logits, is_dependent
from squeeze.probes.metrics.accuracy.accuracy import Accuracy
from squeeze.probes.samples import Samples
from squeeze.records.statistics import standard_error
from squeeze.runtimes.contract import TorchEngine
from squeeze.sources import classification, sentiment

Array = npt.NDArray[Any]


def measure_classification(
    engine: TorchEngine, protocol: Mapping[str, Any], samples: Samples, baseline: Path | None = None
) -> None:
    """Score a classifier on the protocol's sets of labelled texts, and put what was found into the samples.

    Scalars: acc_TASK, acc_TASK_stderr, batch_dependent, items_sha256, diverged (and then reason).
    Arrays: TASK_correct (items,); TASK_loglik (items, classes), log-probabilities of the classes in nats.
    baseline: samples folder of the baseline's quality. With it come kl_divergence and top1_agreement, means over the
    items of all tasks, and the arrays item_kl, in nats, and item_top1 (items,), tasks in the order of their names.
    Raises SqueezeError for a model with fewer classes than the texts have; IntegrityError for a baseline that was asked
    other texts.
    """
    model = engine.subject.model
    sets = {name: classification.items(name, protocol["items"]) for name in sorted(protocol["tasks"])}
    with samples.stage("probe"):
        alone = is_dependent(model)
    samples.put_all({"batch_dependent": alone, "items_sha256": digest(sets)})
    with samples.stage("warmup"):  # as warm as where it is timed: what changes by then is scored as it is then
        for _ in range(latency.calls(protocol["latency"])):
            class_logits(model, [[0, 0]])
    found: dict[str, Array] = {}
    for name, (texts, labels) in sets.items():
        with samples.stage("scoring"):
            logits = answers(model, tokenized(engine, texts), 0 if alone else protocol["token_budget"])
        _check_classes(name, labels, logits)
        found[name] = logits.double().log_softmax(-1).numpy()
        with samples.stage("metrics"):
            _put_task(samples, name, logits.argmax(-1).tolist(), labels)
        samples.put_array(f"{name}_loglik", found[name])
    lost = sum(int((~np.isfinite(each)).any(axis=1).sum()) for each in found.values())
    samples.put("diverged", lost > 0)
    if lost:
        samples.put("reason", f"{lost:,} of {sum(map(len, found.values())):,} answers are no numbers")
    if baseline is not None:
        _put_distance(samples, found, baseline)


def tokenized(engine: TorchEngine, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, special ones included, cut as the sentences are that models are trained on."""
    rows = sentiment.encoded(engine.tokenizer, list(texts))
    pairs = zip(rows["input_ids"], rows["attention_mask"].bool(), strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def judged(predictions: Sequence[int], references: Sequence[int]) -> dict[str, Any]:
    """Return what our metric ``accuracy`` says in Hugging Face's ``evaluate``: accuracy, and correct, item by item.

    The class is taken as it is: ``evaluate.load`` copies its file into the home, and puts that on the import path.
    """
    with TemporaryDirectory() as place:  # else evaluate makes a folder in the home
        metric = Accuracy(cache_dir=place, keep_in_memory=True)
        found: dict[str, Any] = metric.compute(predictions=predictions, references=references)
    return found


def _check_classes(name: str, labels: Sequence[int], logits: Tensor) -> None:
    if (classes := logits.shape[-1]) <= max(labels):
        raise SqueezeError(
            f"the model has {classes} classes, {name} has {max(labels) + 1}; choose a model that was trained for it"
        )


def _put_task(samples: Samples, name: str, predictions: Sequence[int], labels: Sequence[int]) -> None:
    found = judged(predictions, labels)
    correct = np.array(found["correct"], dtype=bool)
    samples.put_all({f"acc_{name}": found["accuracy"], f"acc_{name}_stderr": standard_error(correct)})
    samples.put_array(f"{name}_correct", correct)


def _put_distance(samples: Samples, found: Mapping[str, Array], baseline: Path) -> None:
    """Put how far the distributions over classes are from the baseline's: KL(baseline || candidate), agreement."""
    of_baseline = stored.read(baseline)
    if (expected := of_baseline.values.get("items_sha256")) != samples.values["items_sha256"]:
        raise IntegrityError(
            f"scored items have sha256 {samples.values['items_sha256']}, the baseline's {expected}: not the same texts;"
            " score both with one protocol"
        )
    pairs = [(of_baseline.arrays[f"{name}_loglik"], each) for name, each in found.items()]
    kl = np.concatenate([(np.exp(its) * (its - own)).sum(axis=1) for its, own in pairs])
    top1 = np.concatenate([its.argmax(axis=1) == own.argmax(axis=1) for its, own in pairs])
    kl = np.maximum(kl, 0.0).astype(np.float32)  # rounding may leave a hair below
    samples.put_all({"kl_divergence": float(kl.mean(dtype=np.float64)), "top1_agreement": float(top1.mean())})
    samples.put_array("item_kl", kl)
    samples.put_array("item_top1", top1)
