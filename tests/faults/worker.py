"""A worker whose jobs compute nothing: they leave made-up output at once, or go wrong as their cell's technique says.

A technique (of a baseline: a model) called ``FAULT@STAGE`` goes wrong in that stage: ``segfault@build``; no more once
there is a file ``mended`` beside the one that SQUEEZE_TEST_JOBS names. Every job that is begun adds a line to that one.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil

from squeeze.core.errors import Unsupported
from squeeze.probes.samples import Samples
from squeeze.probes.turns import Turns
from squeeze.records.roofline import Machine
from squeeze.runner.jobs import worker
from squeeze.runner.jobs.job import MACHINE, Job

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
TOKENS = 4096
TURNS = 4  # of each kind of call


class OutOfMemoryError(RuntimeError):
    """Called as torch's own is."""


def perform(path: Path, gate: int | None) -> int:
    job, turns = Job.read(path), Turns(gate)
    _count(job)
    name = job.cell.technique["name"] if job.cell.technique["steps"] else job.cell.model["name"]
    fault, _, stage = name.partition("@")
    stage = stage.partition("-")[0]
    if stage == job.stage and not Path(os.environ["SQUEEZE_TEST_JOBS"]).with_name("mended").exists():
        if fault == "empty":
            return 0
        if fault in FAULTS:
            FAULTS[fault]()
    if job.stage == "latency":
        _time(job, turns)
    else:
        {"build": _build, "training": _fine_tune, "quality": _score, "machine": _peaks}[job.stage](job)
    if (fault, stage) == ("truncated", job.stage):
        samples = job.out / "samples.npz"
        samples.write_bytes(samples.read_bytes()[:10])
    return 0


def _count(job: Job) -> None:
    with Path(os.environ["SQUEEZE_TEST_JOBS"]).open("a") as file:
        file.write(f"{job.stage} {job.cell.label} {job.round} {os.getpid()}\n")


def _note_turn(job: Job) -> None:
    with Path(os.environ["SQUEEZE_TEST_JOBS"] + ".turns").open("a") as file:
        file.write(f"{job.cell.label}\n")


def _build(job: Job) -> None:
    job.artifact.mkdir(parents=True)
    technique = job.cell.technique["name"]
    known = {"content_hash": technique, "dtype": job.cell.model["dtype"], "parameters": 1000, "claims": {}}
    costs = {"seconds": 0.5, "seconds_marginal": 0.5, "peak_bytes": 2**20}
    (job.artifact / "build.json").write_text(json.dumps({**known, **costs}))


def _fine_tune(job: Job) -> None:
    (job.artifact / "training.json").write_text(json.dumps({"withheld": True}))


def _score(job: Job) -> None:
    samples = Samples(job.out)
    nan = job.cell.technique["name"] == "nan@quality"
    nll = np.random.default_rng(0).normal(2.0, 0.5, TOKENS) + (0.0 if job.baseline is None else 0.1)
    samples.put_array("token_nll", np.full(TOKENS, np.nan) if nan else nll)
    samples.put_array("sciq_correct", np.arange(100) % 3 > 0)
    if job.baseline is not None:
        samples.put_array("kl", np.full(TOKENS, 0.01))
        samples.put("kl_divergence", 0.01)
        samples.put("top1_agreement", 0.9)
    samples.put("perplexity", math.nan if nan else float(np.exp(nll.mean())))
    samples.put_all({"diverged": nan, "reason": "perplexity nan: guessing gives 260"} if nan else {"diverged": False})
    samples.put("bits_per_byte", 0.8)
    samples.put("acc_sciq", 0.66)
    samples.put("acc_sciq_stderr", 0.05)
    samples.put("batch_dependent", False)
    samples.put("stages", {"imports": 0.1, "score": 0.2})
    samples.write()


def _time(job: Job, turns: Turns) -> None:
    latency = job.cell.protocol["latency"]
    pace = 0.012 if job.cell.model["dtype"] == "float32" and job.cell.model["name"] != "even" else 0.008
    pace *= 1.0 if not job.cell.technique["steps"] else 0.5
    pace *= 1.4 if job.cell.technique["name"] == "restless" and job.round % 3 else 1.0
    samples = Samples(job.out)
    for name, count in (("ttft_s", latency["prefill_repeats"]), ("token_s", latency["decode_tokens"])):
        for _ in range(TURNS):
            turns.next()
            _note_turn(job)
        samples.put_entry("turns", f"{name}/1", [[0.0, 0.0, 0.0]] * TURNS)
        samples.put(name, {"1": (pace * (1 + 0.001 * job.round + 0.0001 * np.arange(count))).tolist()})
    samples.put_all({"unsteady": False, "interleaved": turns.interleaved})
    for step in ("load", "prefill", "decode"):
        samples.put(f"{step}_peak_bytes", 2**20 + job.round)
    if job.round == 0:
        samples.put_all({"bytes": 1000, "effective_bits": 8.0, "compression_ratio": 4.0, "bytes_per_token": 1000})
        samples.put_all({"bytes_real": True, "memory_real": True, "compute_real": False, "mismatches": []})
        samples.put("prefill_operations", {"1": 1e6})
    samples.put("stages", {"start": 0.01, "imports": 0.1, "load": 0.05, "timed": 0.1})
    samples.write()


def _peaks(job: Job) -> None:
    machine = Machine(threads=1, read_bandwidth=1e10, matmul={"float32": 1e11, "bfloat16": 1e12, "int8": 2e12})
    (job.out / MACHINE).write_text(json.dumps(machine.to_json()))


def _raise() -> NoReturn:
    raise ValueError("a weight went missing from /home/someone/models/secret.safetensors")


def _unsupported() -> NoReturn:
    raise Unsupported("group size 128 does not divide 576; 64 does")


def _memory_error() -> NoReturn:
    raise MemoryError


def _cuda_out_of_memory() -> NoReturn:
    raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def _no_memory() -> NoReturn:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")


def _hog() -> NoReturn:
    hoard = []
    while True:
        hoard.append(bytearray(20 * 2**20))
        time.sleep(0.01)


def _hang() -> NoReturn:
    """Deaf to SIGTERM, with one child in the same group and one that has left it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _leave_children()
    while True:
        time.sleep(60)


def _leave_children() -> None:
    for leaves in (False, True):
        subprocess.Popen([sys.executable, "-c", DEAF], start_new_session=leaves)


def _kill_neighbour() -> None:
    """Kill a process that waits for its turn meanwhile."""
    others = [child for child in psutil.Process(os.getppid()).children() if child.pid != os.getpid()]
    for other in others:
        other.kill()


def _kill_once() -> None:
    mark = Path(os.environ["SQUEEZE_TEST_JOBS"] + ".killed")
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _kill_twice() -> None:
    """Kill the first attempt, and the second that is made of it."""
    with Path(os.environ["SQUEEZE_TEST_JOBS"] + ".killed").open("a") as marks:
        marks.write("!")
        marks.flush()
        if marks.tell() <= 2:
            os.kill(os.getpid(), signal.SIGKILL)


def _no_room() -> None:
    """Let every further write fail as on a full disk: of samples, of the log, of a last word."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _full() -> NoReturn:
    """Fail as Rust's safetensors does."""
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def _remove_cache() -> NoReturn:
    shutil.rmtree(os.environ["SQUEEZE_CACHE"])
    raise ValueError("the file that was to be read is no file")


def _stop_worker() -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(60)


def _segfault() -> None:
    ctypes.string_at(0)


FAULTS = {
    "raise": _raise,
    "exit": lambda: os._exit(3),
    "segfault": _segfault,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "kill_once": _kill_once,
    "kill_twice": _kill_twice,
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "stop_worker": _stop_worker,
    "no_room": _no_room,
    "full": _full,
    "remove_cache": _remove_cache,
    "kill_worker": lambda: os.kill(os.getppid(), signal.SIGKILL) or time.sleep(60),
    "hang": _hang,
    "kill_neighbour": _kill_neighbour,
    "leave_children": _leave_children,
    "nap": lambda: time.sleep(1.2),
    "sleep": lambda: time.sleep(3),
    "hog": _hog,
    "memory_error": _memory_error,
    "cuda_out_of_memory": _cuda_out_of_memory,
    "no_memory": _no_memory,
    "unsupported": _unsupported,
}

if __name__ == "__main__":
    worker.main(perform, preloaded=("numpy",))
