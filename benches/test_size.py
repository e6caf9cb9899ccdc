"""Weigh the artifact, and find what its weights really are, and what it is while it runs. No round changes these."""

import pytest

from squeeze.artifacts import format as artifact
from squeeze.probes import decoding, realised, size
from squeeze.probes.recount import recount
from squeeze.probes.samples import Samples
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job
from squeeze.runtimes.contract import TorchEngine
from squeeze.sources import corpora

COMPARED = 64  # tokens of the text whose inputs few rows and many are compared on

pytestmark = pytest.mark.once


def test_size(job: Job, engine: TorchEngine, cell: Cell, samples: Samples) -> None:
    """Weigh the artifact, in one bench, because each part may find that something is not as it was claimed."""
    weighed = size.figures(job.artifact)
    samples.put_all(weighed)
    found = realised.figures(engine, weighed["bytes"], cell.protocol["latency"])
    mismatches = found.pop("mismatches")
    samples.put_all(found)
    with samples.stage("recount"):
        stored = artifact.load(job.artifact, prepare=False)
        counted = recount(job.artifact, stored)
    samples.put_all(counted.figures())
    with samples.stage("decoding"):
        token_ids = corpora.tokens(cell.protocol["perplexity"]["corpus"], engine.tokenizer, COMPARED)
        difference = decoding.difference(engine.subject.model, token_ids[None].to(cell.runtime["device"]))
    samples.put_all(difference.figures())
    samples.put("mismatches", [*counted.mismatches(stored.claims), *mismatches, *difference.mismatches()])
