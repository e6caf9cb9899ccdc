"""What the artifact weighs, what its weights really are, and what it is while it runs. No round changes these."""

import pytest

from squeeze import artifact
from squeeze.cell import Cell
from squeeze.job import Job
from squeeze.probes import running, size
from squeeze.probes.recount import recount
from squeeze.samples import Samples
from squeeze.subject import Subject

pytestmark = pytest.mark.once


def test_size(job: Job, subject: Subject, cell: Cell, samples: Samples) -> None:
    weighed = size.figures(job.artifact)
    samples.put_all(weighed)
    samples.put_all(running.figures(subject, weighed["bytes"], cell.protocol["latency"]))


def test_recount(job: Job, samples: Samples) -> None:
    with samples.stage("recount"):
        stored = artifact.load(job.artifact, prepare=False)
        found = recount(job.artifact, stored)
    samples.put_all(found.figures())
    samples.put("mismatches", found.mismatches(stored.claims))
