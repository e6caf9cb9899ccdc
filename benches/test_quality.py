"""Measure the quality of the compressed model: perplexity, tasks, classes, and its distance from the baseline.

That of another runtime than eager is held against the eager model of the same artifact first: what does not predict the
same is scored no further, and never timed.
"""

import pytest

from squeeze.probes import memory
from squeeze.probes.samples import Samples
from squeeze.runner.jobs.job import Job
from squeeze.runtimes.contract import Engine, TorchEngine, shows_model
from squeeze.sources import corpora


@pytest.mark.quality
@pytest.mark.kind("causal_lm", "encoder")
def test_quality(job: Job, engine: Engine, samples: Samples) -> None:
    if job.cell.model["kind"] == "encoder":
        return  # it predicts no next token: the samples of this stage are empty, and its record has no perplexity
    with samples.stage("imports"):  # lm-eval: seconds that no other bench should wait for
        from squeeze.probes import engine_quality, parity, quality

    protocol, runtime = job.cell.protocol, job.cell.runtime
    if not job.cell.is_eager:
        with samples.stage("parity"):
            token_ids = corpora.tokens(protocol["perplexity"]["corpus"], engine.tokenizer, parity.POSITIONS + 1)
            found = parity.compared(engine, job.artifact, runtime, token_ids)
        samples.put_all(found.figures())
        if engine.scored_as != "itself":
            samples.put("scored_difference", found.figures()["parity_difference"])
        found.check(f"runtime={runtime['name']}")
    if protocol["tasks"]:  # of many lengths; a text's rows are of one, and malloc's own way is faster
        memory.return_large_blocks()
    measure = quality.measure_quality if shows_model(engine) else engine_quality.measure_engine
    _, usage = memory.measured(
        lambda: measure(engine, protocol, samples, job.baseline, job.baseline_artifact), runtime["device"]
    )
    samples.put_all(usage.figures("quality"))
    samples.put("scored_as", engine.scored_as)


@pytest.mark.quality
@pytest.mark.kind("vision_language")
def test_continuations(job: Job, engine: TorchEngine, samples: Samples) -> None:
    """Continue prompts behind a picture, and score nothing: perplexity is of text alone, which shows no picture lost.

    Nor of text behind one: which tokens of a picture stay may hang on all that is read with it, what is scored too.
    """
    with samples.stage("imports"):
        from squeeze.probes import quality

    asked = {"alone": False, "both": job.baseline is None}
    if "generations" in job.cell.protocol:
        _, usage = memory.measured(
            lambda: quality.put_generations(samples, engine, job.cell.protocol, **asked), job.cell.runtime["device"]
        )
        samples.put_all(usage.figures("quality"))
    samples.put("scored_as", engine.scored_as)


@pytest.mark.quality
@pytest.mark.kind("classifier")
def test_classification(job: Job, engine: TorchEngine, samples: Samples) -> None:
    """Measure the accuracy of a classifier, and how far its answers are from the uncompressed model's."""
    with samples.stage("imports"):
        from squeeze.probes.classification import measure_classification  # evaluate: seconds

    memory.return_large_blocks()  # texts are of many lengths
    _, usage = memory.measured(
        lambda: measure_classification(engine, job.cell.protocol, samples, job.baseline), job.cell.runtime["device"]
    )
    samples.put_all(usage.figures("quality"))
    samples.put("scored_as", engine.scored_as)
