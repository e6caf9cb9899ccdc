"""Carry out one trial in this process: quantize, score, and write what came of it.

NAME.json: name, library, version, seconds (unless the machine is shared) and peak_bytes of quantizing (loading the
model included, importing libraries not), perplexity. NAME.npz: losses, (windows, window - 1) float32, nats; of a pruned
model also zeros, which of a sample of its weights are zero (``masks.zeros``).
"""

from __future__ import annotations

import argparse
import importlib
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from scripts.crosscheck.comparisons import OURS, Trial, trials
from scripts.crosscheck.masks import zeros
from scripts.crosscheck.perplexity import perplexity, token_losses
from scripts.crosscheck.prepare import Inputs
from squeeze.probes.memory import measured


def run(trial: Trial, inputs: Inputs, results: Path, timed: bool = True) -> None:
    """Carry out the trial and write its files; without seconds unless ``timed``. Raises whatever the library does."""
    module = _module(trial.library)
    torch.manual_seed(0)
    start = time.perf_counter()
    quantized, usage = measured(lambda: module.quantize(inputs, **trial.options))
    seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as scratch:
        model = module.ready(quantized, Path(scratch)) if hasattr(module, "ready") else quantized
        losses = token_losses(model.eval(), inputs.evaluation)
    mask = zeros(model)
    np.savez_compressed(results / f"{trial.name}.npz", losses=losses, **({} if mask is None else {"zeros": mask}))
    outcome = {
        "name": trial.name,
        "library": trial.library,
        "version": version("squeeze-bench" if trial.library == OURS else trial.library),
        **({"seconds": round(seconds, 2)} if timed else {}),
        "peak_bytes": usage.peak,
        "perplexity": perplexity(losses),
    }
    (results / f"{trial.name}.json").write_text(json.dumps(outcome, indent=1) + "\n")


def _module(library: str) -> ModuleType:
    name = OURS if library == OURS else f"with_{library}"
    return importlib.import_module(f"scripts.crosscheck.{name}")


def main() -> None:
    """Run ``python -m scripts.crosscheck.trial NAME INPUTS RESULTS [--untimed]``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=trials())
    parser.add_argument("inputs", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--untimed", action="store_true")
    options = parser.parse_args()
    run(trials()[options.name], Inputs(options.inputs), options.results, timed=not options.untimed)


if __name__ == "__main__":
    main()
