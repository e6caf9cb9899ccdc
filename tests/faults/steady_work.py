"""A worker whose one job is a fixed piece of work, timed step by step; ``--alone JOB`` does the job without a runner.

Both ways the job runs in a forked child of a process that has imported and not computed, so that nothing but the
runner, its worker's watch and its display tells them apart.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from squeeze.runner.jobs import worker
from squeeze.runner.jobs.job import Job

# A step multiplies on all cores out of their caches: whoever takes a core from it shows, a neighbour of this machine on
# the memory bus, who would be there with or without a runner, does not.
STEPS, SIZE = 200, 512
FILE = "steps.json"


def perform(path: Path, gate: int | None) -> int:
    job = Job.read(path)
    factor, product = np.ones((2, SIZE, SIZE), np.float32)
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        np.matmul(factor, factor, out=product)
        times.append(time.perf_counter() - start)
    job.out.mkdir(exist_ok=True)
    (job.out / FILE).write_text(json.dumps(times))
    return 0


def alone(path: Path) -> int:
    if (child := os.fork()) == 0:
        os._exit(perform(path, None))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        sys.exit(alone(Path(sys.argv[2])))
    worker.main(perform, preloaded=("numpy",))
