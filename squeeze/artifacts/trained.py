"""Train a classifier that a cell names as ``trained:SOURCE``: once, before anything of it is built or measured.

    model/          as ``from_pretrained`` reads it, in float32
    training.json   what it took, its loss curve, and the accuracy on the sentences held out: never on those scored

It is a starting point like any other model, only that no package holds it: no step of a technique, and no row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from squeeze.artifacts.keys import WITHHELD, code_version
from squeeze.artifacts.sentences import labelled
from squeeze.artifacts.step_by_step import accuracy
from squeeze.core.cache import cache_root, sealed
from squeeze.core.files import write_atomically
from squeeze.core.hashing import digest
from squeeze.core.process import settle
from squeeze.models.load import load_with_new_head
from squeeze.sources import sentiment, trained
from squeeze.sources.identity import baseline_hash, trained_place
from squeeze.techniques.contract import Workplace
from squeeze.techniques.training.sentence_training import cross_entropy, train_all
from squeeze.techniques.training_loop import Plan


def make(model: Mapping[str, Any], runtime: Mapping[str, Any]) -> None:
    """Train a model in this process, in the open, unless it is taken as it is, or the cache has it.

    Official runs do not build on what was trained in the open (``runner.fine_tuning``).
    """
    if trained.is_trained(model):
        sealed(trained_place(model), lambda folder: fine_tune(model, runtime, folder))


def fine_tune(model: Mapping[str, Any], runtime: Mapping[str, Any], folder: Path, *, withheld: bool = False) -> None:
    """Write the fine-tuned model of source ``trained:SOURCE`` to a folder, and what is known of its making.

    What it starts from and the sentences have been fetched. The same threads on the same machine give the same bytes;
    what a killed training has left is gone on with. withheld: whether what rows are scored on is withheld from this
    process (``sources.withheld``); what was trained where it was not is no beginning for one where it is.
    """
    schedule = model["fine_tuning"]
    settle(runtime, int(schedule["seed"]))
    device, seed, most = str(runtime["device"]), int(schedule["seed"]), int(schedule["tokens"])
    subject = load_with_new_head(trained.base(model), sentiment.CLASSES, seed, device)
    sentences = labelled("train", subject.tokenizer, device, most)
    plan = Plan(
        steps=math.ceil(schedule["epochs"] * len(sentences.labels) / schedule["batch"]),
        windows=int(schedule["batch"]),
        learning_rate=float(schedule["learning_rate"]),
    )
    identity = digest([baseline_hash(model), code_version((__name__,)), withheld])
    workplace = Workplace(cache_root() / "training" / identity)
    claims = train_all(
        subject.model,
        partial(cross_entropy, subject.model),
        sentences,
        plan,
        seed=seed,
        title=f"fine-tuning {model['name']}",
        workplace=workplace,
    )
    info = {
        **claims,
        "steps": plan.steps,
        "seconds": workplace.seconds,
        "sentences": len(sentences.labels),
        "curve": workplace.curve,
        "accuracy_held_out": accuracy(subject.model, labelled("held_out", subject.tokenizer, device, most)),
        WITHHELD: withheld,
    }
    subject.model.save_pretrained(folder / trained.MODEL)  # type: ignore[operator]
    subject.tokenizer.save_pretrained(folder / trained.MODEL)
    write_atomically(folder / trained.INFO, json.dumps(info, indent=1).encode())
    workplace.clear()
