"""Promises 16 and 19: what is fast where the clock runs and only there, or meddles with its process, is found."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from squeeze.artifacts import format as artifact
from squeeze.core.cache import sealed
from squeeze.models import architecture
from squeeze.probes import samples
from squeeze.records import decoded
from squeeze.request.cell import Cell
from squeeze.runner.jobs.executor import worker_variables
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.launcher import WORKER, Launcher, Task
from squeeze.runner.jobs.limits import Limits
from squeeze.sources.corpora import corpus_hash
from tests.faults.sweeps import MODEL, PROTOCOL, RUNTIME
from tests.plugins import install
from tests.tiny import tiny_subject

pytestmark = [pytest.mark.timed, pytest.mark.promise(16), pytest.mark.promise(19)]

CORPUS = "wikipedia_eval"
LIMIT = {"seconds": 120, "bytes": 4 * 2**30}
LATENCY = {**PROTOCOL["latency"], "prompt_tokens": 16, "decode_tokens": 16, "batch_sizes": [1, 2]}
TEXT = {"corpus": CORPUS, "tokens": 2048, "window": 256, "stride": 256}
CURVE = {"prompt_tokens": [*range(41, 49)], "repeats": 2}
SMALL = {
    **PROTOCOL,
    "latency": LATENCY,
    "ttft_curve": CURVE,
    "perplexity": TEXT,
    "limits": dict.fromkeys(PROTOCOL["limits"], LIMIT),
}
CELL = Cell(
    model={**MODEL, "dtype": "float32"},
    technique={"name": "shortcut", "family": "quantization", "steps": []},
    runtime=RUNTIME,
    protocol=SMALL,
)

ROUNDS = 4  # a protocol has 8 at least
WRONG_TOKENS = {
    "SkipsTokens": "for each token that is decoded",
    "SkipsBehindTimedPrompts": "for tokens behind prompts as long as those that are timed",
    "SkipsOnceWarm": "for tokens after 40 calls",
    "SkipsBatchesOfOne": "for tokens at batch size 1",
    "SkipsEverySecondToken": "for every second token",
    "SkipsTimedPrompts": "for prompts as long as those that are timed",
    "SkipsPromptsOfTheCurve": "for prompts as long as those of the curve, and no others",
}
MEDDLES = {
    "TurnsUpThreads": "threads to compute with (1 before, 2 after)",
    "LowersPrecision": "precision of float32 products (highest before, medium after)",
    "PatchesLinear": "torch.nn.functional.linear",
    "PatchesCode": "code of torch.nn.functional.softmax",
    "PatchesTheModel": "transformers.models.llama.modeling_llama.LlamaDecoderLayer.forward",
    "PatchesTheClock": "time.perf_counter",
    "StartsAHelper": "children (0 before, 1 after)",
    "HooksAllModules": "hooks of all modules",
    "SetsAVariable": "variable OMP_NUM_THREADS",
}
LOOKS_AHEAD = ("LooksAhead", "LooksAheadInLongTexts")


@dataclass
class Workshop:
    """Measures a tiny model, one matrix of which a layer of the plugin holds, as the runner would."""

    launcher: Launcher
    layers: ModuleType
    folder: Path

    def measured(self, name: str, stage: Any = "latency", number: int = 0) -> tuple[dict[str, Any], str, str]:
        """What a round left: its samples' values, the reason of its failure and its log; nothing of what is not."""
        here = self.folder / f"{name}-{stage}-{number}"
        subject, place = tiny_subject("llama"), "model.layers.0.mlp.down_proj"
        dense = architecture.weight(subject.model.get_submodule(place))
        layer = getattr(self.layers, name)(dense.shape[1], dense.shape[0])
        layer.weight = dense.detach().clone()
        architecture.replace(subject.model, place, layer)
        artifact.save(subject, here / "artifact")
        (here / "job.json").write_text(json.dumps(Job(CELL, here / "artifact", stage, here / "out", number).to_json()))
        [end] = self.launcher.run([Task(here / "job.json", here / "log", Limits(**LIMIT))])
        log = (here / "log").read_text()
        if end.code:
            return {}, json.loads((here / "out" / "failure.json").read_text())["message"], log
        return samples.read(here / "out").values, "", log


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("shortcuts")
    source = Path(__file__).with_name("shortcuts.py").read_text()
    install(folder / "site", "shortcuts", {"layers/shortcuts.py": source})
    words = np.random.default_rng(0).choice(["one", "two", "three", "a", "longer", "word", "\n"], 20_000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SQUEEZE_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(folder / "site"))
        patch.syspath_prepend(folder / "site")
        text = f"corpora/{CORPUS}-{corpus_hash(CORPUS)[:16]}"
        sealed(text, lambda made: (made / "text.txt").write_text(" ".join(words)) and None)
        layers = importlib.import_module("shortcuts.layers.shortcuts")
        with Launcher(folder / "worker.log", worker_variables(RUNTIME), (*WORKER, "--fork")) as launcher:
            yield Workshop(launcher, layers, folder)


def test_an_honest_layer_passes(workshop: Workshop, figure: Callable[[str], None]) -> None:
    values, reason, log = workshop.measured("Honest")
    assert reason == "", log
    gap = decoded.worst([values])
    assert gap is not None
    assert gap <= decoded.allowed(coarse=False)
    scored, reason, log = workshop.measured("Honest", "quality")
    assert scored["causal"], log
    figure(f"an honest layer: decoded tokens {gap:.2g} standard deviations below the scored model's choice, causal")


@pytest.mark.parametrize("name", WRONG_TOKENS)
def test_what_decodes_is_what_is_scored(workshop: Workshop, name: str, figure: Callable[[str], None]) -> None:
    rounds = []
    for number in range(ROUNDS):
        values, reason, log = workshop.measured(name, number=number)
        assert reason == "", log
        rounds.append(values)
    gap = decoded.worst(rounds)
    assert gap is not None
    assert gap > decoded.allowed(coarse=False)
    figure(f"caught, a layer left out {WRONG_TOKENS[name]}: {gap:.2g}, rounding is {decoded.allowed(coarse=False):g}")


@pytest.mark.parametrize("name", MEDDLES)
def test_what_meddles_with_its_process_is_invalid(workshop: Workshop, name: str, figure: Callable[[str], None]) -> None:
    _, reason, log = workshop.measured(name)
    assert reason.startswith("the artifact changed its process: "), log
    assert MEDDLES[name] in reason
    figure(f"caught, one that changed its process: {MEDDLES[name]}")


@pytest.mark.parametrize("name", LOOKS_AHEAD)
def test_the_future_is_not_seen(workshop: Workshop, name: str, figure: Callable[[str], None]) -> None:
    values, reason, log = workshop.measured(name, "quality")
    assert reason == "", log
    assert values["causal"] is False
    figure(
        f"caught, one that looks ahead: other tokens later on move a score by {values['causal_difference']:.2g} nats"
    )


def test_nothing_that_is_timed_was_asked_before(workshop: Workshop, figure: Callable[[str], None]) -> None:
    """Once a batch size a prompt is read again, when the clock stands still: to hold its token against the scores."""
    notes = workshop.folder / "cache" / "remembered"
    _, reason, log = workshop.measured("Remembers")
    assert reason == "", log
    remembered = notes.read_text().splitlines()
    assert len(remembered) <= len(LATENCY["batch_sizes"]), remembered
    figure("without effect, one that remembers outputs by input: no timed input comes twice")
