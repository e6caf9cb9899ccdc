"""Measure peak memory of prefill and decode, at the protocol's largest batch, and what is kept of each token meanwhile.

That of loading is measured where it loads.
"""

from functools import partial

import pytest

from squeeze.artifacts import format as artifact
from squeeze.probes import latency, memory, realised
from squeeze.probes.latency import Prompts
from squeeze.probes.samples import Samples
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job
from squeeze.runtimes import kv_cache
from squeeze.runtimes.contract import Engine
from squeeze.sources import corpora

DECODED = 4  # tokens: each adds only its keys and values to the peak
# Tokens of the longer of two prompts, and how many times as short the other one is. What an allocator keeps differs by
# tens of megabytes from process to process: as much as the tokens between prompts of 256 and 1,024 take.
LONG, SHORTER = 2048, 8


def test_memory(engine: Engine, cell: Cell, prompts: Prompts, samples: Samples) -> None:
    device, prompt = cell.runtime["device"], prompts.nominal()
    with samples.stage("memory"):
        if not cell.generates:
            steps = {"prefill": lambda: engine.encode(prompt)}
        else:
            generation = engine.begin(latency.positions(cell.protocol["latency"]))
            steps = {
                "prefill": lambda: generation.prefill(prompt),
                "decode": lambda: [generation.decode() for _ in range(DECODED)],
            }
        for name, step in steps.items():
            _, usage = memory.measured(step, device)
            samples.put_all(usage.figures(name))
        if cell.generates:
            samples.put("cache_bytes_per_token", generation.bytes_per_token)


@pytest.mark.once
@pytest.mark.kind("causal_lm")
def test_context(job: Job, engine: Engine, cell: Cell, samples: Samples) -> None:
    """Measure the peaks of prefills of two lengths, one prompt each, and what the cache keeps of the longer one.

    A process's memory is a line in the tokens that its cache holds.
    """
    device = cell.runtime["device"]
    most = min(LONG, realised.positions(artifact.skeleton(job.artifact)) or LONG)
    text = corpora.tokens(cell.protocol["perplexity"]["corpus"], engine.tokenizer, most)[None].to(device)
    with samples.stage("context"):
        engine.begin(SHORTER).prefill(text[:, :SHORTER])  # one row: an engine may have room for as many as it last read
        for tokens in (most // SHORTER, most):
            generation = engine.begin(tokens)
            _, usage = memory.measured(partial(generation.prefill, text[:, :tokens]), device)
            samples.put_entry("context_peak_bytes", str(tokens), usage.cuda.get("cuda_allocated_bytes", usage.peak))
            kept, held = round(generation.bytes_per_token * tokens), kv_cache.tokens_held(generation, tokens)
            del generation  # and its cache, which the next one's figures would have in them
        samples.put("context_cache_bytes", kept)
        if held < most:
            samples.put("context_tokens_held", held)
