"""Tell how long ago this process began, and set it up for one job."""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil


def age() -> float:
    """Return seconds since this process was started or forked, to 10 ms on Linux (a second elsewhere)."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return time.time() - psutil.Process().create_time()
    after_name = stat.read_text().rpartition(")")[2].split()
    started = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), which counts from 1
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


def settle(runtime: Mapping[str, Any], seed: int) -> None:
    """Give torch the runtime's number of threads and fix its seed, before anything is computed.

    bitsandbytes would warn of a cast at each call of each layer: log lines written within what is timed.
    """
    import torch  # here, so that a job file can be refused without waiting for it

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    torch.set_num_threads(runtime["threads"])
    torch.manual_seed(seed)
