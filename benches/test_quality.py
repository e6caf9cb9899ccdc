"""Measure the quality of the compressed model: perplexity, tasks, classes, and its distance from the baseline."""

import pytest

from squeeze.probes import memory
from squeeze.probes.samples import Samples
from squeeze.runner.jobs.job import Job
from squeeze.runtimes.contract import TorchEngine
from squeeze.sources import corpora

COMPARED = 512  # tokens on which the timed forward and the scored one are compared


@pytest.mark.quality
@pytest.mark.kind("causal_lm", "encoder")
def test_quality(job: Job, engine: TorchEngine, samples: Samples) -> None:
    if job.cell.model["kind"] == "encoder":
        return  # it predicts no next token: the samples of this stage are empty, and its record has no perplexity
    with samples.stage("imports"):
        from squeeze.probes import quality  # lm-eval: seconds that no other bench should wait for

    protocol, runtime = job.cell.protocol, job.cell.runtime
    if protocol["tasks"]:  # of many lengths; a text's rows are of one, and malloc's own way is faster
        memory.return_large_blocks()
    _, usage = memory.measured(
        lambda: quality.measure_quality(engine, protocol, samples, job.baseline, job.baseline_artifact),
        runtime["device"],
    )
    samples.put_all(usage.figures("quality"))
    samples.put("scored_as", engine.scored_as)
    if engine.scored_as != "itself":
        token_ids = corpora.tokens(protocol["perplexity"]["corpus"], engine.tokenizer, COMPARED)
        difference = quality.scored_difference(engine, token_ids[None].to(runtime["device"]))
        samples.put("scored_difference", difference)


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
