"""Measure how well an engine predicts that torch cannot look into: by the logits that it gives of given tokens.

The same text, windows, tasks and questions as of any other row (``quality``), each read alone; and the same distance
from the uncompressed model, whose hidden states are kept: its own head makes logits of them, the engine gives its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from squeeze.artifacts import format as artifact
from squeeze.probes import causality, quality
from squeeze.probes.divergence import Divergence, stored_head
from squeeze.probes.lm_eval_model import engine_lm, max_length
from squeeze.probes.samples import Samples
from squeeze.runtimes.contract import Engine


def measure_engine(
    engine: Engine, protocol: Mapping[str, Any], samples: Samples, baseline: Path, baseline_artifact: Path
) -> None:
    """Score an engine by the protocol's perplexity and tasks, and put what was found into the samples.

    Names and errors are those of ``quality.measure_quality``; batch_dependent is left out, for nothing is batched.
    baseline: samples folder of the uncompressed model's quality, and baseline_artifact its artifact, whose
    configuration says how long texts may be.
    """
    config: Any = artifact.skeleton(baseline_artifact).config
    longest, vocabulary = max_length(config, engine.tokenizer), int(config.vocab_size)
    windows = quality.windows_of(protocol["perplexity"], engine.tokenizer)
    observe = Divergence(baseline, lambda logits: logits, stored_head(baseline_artifact, torch.device("cpu")))
    lm = engine_lm(engine, windows, max_length=longest, observe=observe)
    items = quality.run(lm, protocol, samples)
    samples.put("packed", False)
    quality.check_same_text(lm.scores, baseline)
    quality.put_divergence(samples, observe)
    quality.put_perplexity(samples, lm.scores, vocabulary)
    # What is quantized over a whole call hangs on all of it by right; no engine says in which dtype it rounds.
    bound = causality.ROUNDED if engine.exact else None
    quality.put_causality(samples, lm, protocol, vocabulary=vocabulary, bound=bound)
    if "perplexity_ood" in protocol:
        other = quality.windows_of(protocol["perplexity_ood"], engine.tokenizer)
        quality.put_other_text(samples, engine_lm(engine, other, max_length=longest), protocol)
    if quality.is_better(samples, baseline):
        quality.put_held_out(samples, engine, protocol["perplexity"])
    for task in protocol["tasks"]:
        quality.put_task(samples, task, items[task])
    if "generations" in protocol:
        quality.put_generations(samples, engine, protocol, alone=True, both=False)
