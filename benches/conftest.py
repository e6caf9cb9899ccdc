"""Define what all benches share: cells and samples (squeeze.pytest_plugin), and the prompts of real text."""

import pytest

from squeeze.artifacts import format as artifact
from squeeze.probes import first_tokens, latency, realised
from squeeze.probes.latency import Prompts
from squeeze.runner.jobs.job import Job
from squeeze.runtimes.contract import Engine
from squeeze.sources.corpora import tokens

pytest_plugins = ["squeeze.pytest_plugin"]


@pytest.fixture(scope="session")
def prompts(engine: Engine, job: Job) -> Prompts:
    """Return where prompts of evaluation text are drawn from, on the cell's device."""
    protocol = job.cell.protocol
    needed = max(latency.pool(protocol["latency"]), first_tokens.pool(protocol))
    text = tokens(protocol["perplexity"]["corpus"], engine.tokenizer, needed)
    most = None if job.cell.generates else realised.positions(artifact.skeleton(job.artifact))
    return Prompts(text.to(job.cell.runtime["device"]), protocol["latency"], protocol["seed"], job.round, most)
