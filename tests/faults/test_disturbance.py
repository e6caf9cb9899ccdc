"""Promise 10: a process is as fast under the runner, its worker and its display as it is alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import quantile_test

from squeeze.core.interpreters import environment_with
from squeeze.runner.jobs.display import Display
from squeeze.runner.jobs.executor import Executor, worker_variables
from squeeze.runner.jobs.job import Job
from squeeze.runner.rounds import order
from tests.faults.steady_work import FILE
from tests.faults.sweeps import RUNTIME, cell

WORK = (sys.executable, str(Path(__file__).with_name("steady_work.py")))
PAIRS = 80
ALL_CORES = {**RUNTIME, "threads": len(os.sched_getaffinity(0))}  # no core is left over for whoever watches

pytestmark = [pytest.mark.promise(10), pytest.mark.quiet]


def test_a_process_is_as_fast_under_the_runner_as_alone(tmp_path: Path, figure: Callable[[str], None]) -> None:
    job = Job(cell(runtime=ALL_CORES), tmp_path / "artifact", "build", tmp_path / "out")
    medians: dict[str, list[float]] = {"alone": [], "under the runner": []}
    with open(os.devnull, "w") as terminal:
        display = Display({job.cell.key: "steady"}, {"build": 2 * PAIRS}, Console(file=terminal, force_terminal=True))
        with display, Executor(tmp_path, display, WORK) as shop:
            ways = {
                "alone": lambda: _alone(job, tmp_path / "job.json"),
                "under the runner": lambda: shop.run(job, tmp_path / "log", "steady work"),
            }
            for number in range(PAIRS):
                for way in order(list(ways), number):
                    ways[way]()
                    medians[way].append(float(np.median(json.loads((job.out / FILE).read_text()))))
    alone, under = medians.values()
    # Of the pairs the median, not the mean: a neighbour of this machine slows single processes by half, either way.
    ratios = np.array(under) / np.array(alone)
    interval = quantile_test(ratios, p=0.5).confidence_interval(0.95)
    figure(
        f"{PAIRS} pairs of processes on all cores, under the runner and alone: {1000 * np.median(under):.3f} and "
        f"{1000 * np.median(alone):.3f} ms a step; median ratio of a pair {np.median(ratios):.4f} "
        f"(95 % interval {interval.low:.4f} to {interval.high:.4f})"
    )
    assert abs(np.median(ratios) - 1) < 0.01


def _alone(job: Job, path: Path) -> None:
    path.write_text(json.dumps(job.to_json()))
    environment = environment_with(worker_variables(job.cell.runtime))
    subprocess.run([*WORK, "--alone", str(path)], env=environment, check=True)
