"""Weigh the artifact, and find what its weights really are, and what it is while it runs. No round changes these."""

import pytest

from squeeze.probes import alone, decoding, engine_inspection, inspection, memory
from squeeze.probes.samples import Samples
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job
from squeeze.runtimes.contract import Engine, shows_model
from squeeze.sources import corpora

COMPARED = 64  # tokens of the text on which the model is watched

pytestmark = pytest.mark.once


def test_size(job: Job, engine: Engine, cell: Cell, samples: Samples) -> None:
    """Weigh the artifact, in one bench, because each part may find that something is not as it was claimed.

    Of an engine that torch cannot look into, what it reads in the artifact's place.
    """
    device = cell.runtime["device"]
    if not shows_model(engine):
        with samples.stage("recount"):
            baseline, kept = job.baseline_artifact or job.artifact, samples.values["load_kept_bytes"]
            samples.put_all(engine_inspection.figures(job.artifact, baseline, engine, kept))
        return
    token_ids = corpora.tokens(cell.protocol["perplexity"]["corpus"], engine.tokenizer, COMPARED)[None].to(device)
    with samples.stage("recount"):
        found = inspection.inspect(
            job.artifact, job.baseline_artifact or job.artifact, engine, cell.protocol["latency"], token_ids
        )
    samples.put_all(found.figures)
    resident = memory.mismatches(samples.values["load_kept_bytes"], found.figures["live_bytes"], device)
    with samples.stage("decoding"):
        difference = decoding.difference(engine.subject.model, token_ids)
    samples.put_all(difference.figures())
    with samples.stage("recount"):
        elsewhere = alone.mismatches(job.artifact, engine.subject.model, device)
    samples.put("mismatches", [*found.mismatches, *resident, *elsewhere, *difference.mismatches()])
