"""What the artifact weighs, what its weights really are, and what it is while it runs. No round changes these."""

import pytest

from squeeze.artifacts import format as artifact
from squeeze.probes import realised, size
from squeeze.probes.recount import recount
from squeeze.probes.samples import Samples
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job
from squeeze.runtimes.contract import TorchEngine

pytestmark = pytest.mark.once


def test_size(job: Job, engine: TorchEngine, cell: Cell, samples: Samples) -> None:
    weighed = size.figures(job.artifact)
    samples.put_all(weighed)
    samples.put_all(realised.figures(engine, weighed["bytes"], cell.protocol["latency"]))


def test_recount(job: Job, samples: Samples) -> None:
    with samples.stage("recount"):
        stored = artifact.load(job.artifact, prepare=False)
        found = recount(job.artifact, stored)
    samples.put_all(found.figures())
    samples.put("mismatches", found.mismatches(stored.claims))
