"""Measure peak memory of prefill and decode, at the protocol's largest batch, and what is kept of each token meanwhile.

That of loading is measured where it loads.
"""

from torch import Tensor

from squeeze.probes import latency, memory
from squeeze.probes.samples import Samples
from squeeze.request.cell import Cell
from squeeze.runtimes.contract import Engine

DECODED = 4  # tokens: each adds only its keys and values to the peak


def test_memory(engine: Engine, cell: Cell, prompts: Tensor, samples: Samples) -> None:
    device = cell.runtime["device"]
    with samples.stage("memory"):
        if cell.model["kind"] == "encoder":
            steps = {"prefill": lambda: engine.encode(prompts)}
        else:
            generation = engine.begin(latency.positions(cell.protocol["latency"]))
            steps = {
                "prefill": lambda: generation.prefill(prompts),
                "decode": lambda: [generation.decode() for _ in range(DECODED)],
            }
        for name, step in steps.items():
            _, usage = memory.measured(step, device)
            samples.put_all(usage.figures(name))
        if cell.model["kind"] != "encoder":
            samples.put("cache_bytes_per_token", generation.bytes_per_token)
