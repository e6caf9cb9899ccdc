"""Start one process per job, keep it inside its limits, and report how it ended.

``python -m squeeze.runner.jobs.worker`` reads groups of jobs as JSON lines on standard input, one group at a time, and
answers with JSON lines on standard output; the processes of a group work in turns. Started with ``--fork`` it imports
what every job needs beforehand and forks a child per job: nothing is computed in the parent, so a child starts in
milliseconds from the state that a fresh interpreter would reach in seconds. Without it (CUDA, systems where forking is
unsafe) each child is a fresh interpreter; so is that of a job whose engine lies in an environment of its own, which
names the interpreter, and works in turns with forked ones.

The worker outlives no runner: when its standard input ends, it ends the running jobs with all descendants and leaves.
A child outlives no worker: the kernel kills it.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from squeeze.core import paths
from squeeze.core.files import write_atomically
from squeeze.runner.jobs import limits, outcome
from squeeze.runner.jobs.conductor import Member, Start, conduct
from squeeze.runner.jobs.job import MACHINE, Job
from squeeze.runner.jobs.limits import Limits

PRELOADED = (
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "pytest",
    "pytest_benchmark.plugin",
    "squeeze.artifacts.build",
    "squeeze.probes.quality",
    "squeeze.probes.peaks",
    "squeeze.probes.realised",
    "squeeze.runtimes.eager",
    "squeeze.runner.in_process",
    "squeeze.records.statistics",
)

Perform = Callable[[Path, int | None], int]  # the path of a job file, the descriptor of a gate -> exit code


def perform(path: Path, gate: int | None) -> int:
    """Do one job in this process and return its exit code: build, fine-tune, or run the benches of one stage."""
    job = Job.read(path)
    if job.stage == "build":
        from squeeze.artifacts.build import build
        from squeeze.probes.energy import Meter
        from squeeze.probes.memory import measured
        from squeeze.sources.withheld import withhold

        _keep_temporary_files(path.parent)
        withheld = withhold(job.cell.model, job.cell.calibration)
        try:
            build(job.cell, job.artifact, measured, counted=Meter, withheld=True)
        finally:
            withheld.check()  # however it ended: what it tried is what its row says
        return 0
    if job.stage == "training":
        from squeeze.artifacts.trained import fine_tune
        from squeeze.sources import trained
        from squeeze.sources.withheld import withhold

        _keep_temporary_files(path.parent)
        model = job.cell.model
        withheld = withhold(trained.base(model), {"corpus": model["fine_tuning"]["corpus"]})
        try:
            fine_tune(model, job.cell.runtime, job.artifact, withheld=True)
        finally:
            withheld.check()
        return 0
    if job.stage == "machine":
        from squeeze.probes import peaks

        limits_of_machine = peaks.measure(job.cell.runtime["threads"])
        write_atomically(job.out / MACHINE, json.dumps(limits_of_machine.to_json()).encode())
        return 0
    return run_benches(path, job.out, gate)


def _keep_temporary_files(folder: Path) -> None:
    """Let this process, and those that it starts, have their temporary files where they may read them: `withhold`."""
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    if not (Path.home() / ".triton").exists():  # where Triton keeps what it compiles, for later builds, too
        os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))


def run_benches(path: Path, out: Path, gate: int | None) -> int:
    """Run ``pytest benches --cell FILE``, and leave word of the first bench that fails."""
    import pytest

    folder = str(paths.benches())
    plugins = ["-p", "pytest_benchmark.plugin", "-p", "no:cacheprovider"]  # no other is loaded: see worker_variables
    turns = [] if gate is None else ["--gate", str(gate)]
    command = [folder, "--cell", str(path), *turns, "--rootdir", folder, *plugins]
    code = int(pytest.main(command, [reporter := _FailureReporter(out)]))
    return reporter.code or code


def serve(perform: Perform, *, fork: bool, preloaded: Sequence[str]) -> None:
    """Serve groups of jobs until standard input ends.

    Each request is {"jobs": [{"job": path of JOB.json, "log": path, "limits": {}, "interpreter": path or null}, ...]}.
    Each job is answered with {"event": "started", "pid": } and, with its place in the request,
    {"event": "ended", "place": , "exit": {}}.
    """
    replies = _private_stdout()
    limits.adopt_orphans()
    woken = _wake_on_child()
    if fork:
        _preload(preloaded)
    _reply(replies, {"event": "ready"})
    begin = partial(_begin, perform, fork)
    for request in _requests():
        jobs = request["jobs"]
        starts = [partial(_announced, replies, partial(begin, job)) for job in jobs]
        members = [
            Member(start, Limits(**job["limits"]), accompanied=len(jobs) > 1)
            for start, job in zip(starts, jobs, strict=True)
        ]
        if not conduct(members, sys.stdin.fileno(), woken):
            return
        for place, member in enumerate(members):
            assert member.exit is not None
            _reply(replies, {"event": "ended", "place": place, "exit": asdict(member.exit)})


def run_job(path: Path, bounds: Limits, parent: int, perform: Perform, gate: int | None) -> int:
    """Do one job in the process made for it: confined, and with word left of the exception that ends it."""
    limits.die_with(parent)
    limits.confine(bounds)
    faulthandler.enable()
    try:
        return perform(path, gate)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk may have no room for the log
            traceback.print_exc()
        with contextlib.suppress(OSError):  # nor for a word
            outcome.report(Job.read(path).out, error)
        return outcome.exit_code(error)


def main(perform: Perform = perform, preloaded: Sequence[str] = PRELOADED) -> None:
    """Serve (the default), or do the one job that ``--job`` names."""
    parser = argparse.ArgumentParser(prog="squeeze.runner.jobs.worker")
    parser.add_argument("--fork", action="store_true")
    parser.add_argument("--job", type=json.loads)
    arguments = parser.parse_args()
    if arguments.job is None:
        serve(perform, fork=arguments.fork, preloaded=preloaded)
    else:
        job = arguments.job
        sys.exit(run_job(Path(job["job"]), Limits(**job["limits"]), os.getppid(), perform, job["gate"]))


class _FailureReporter:
    """Report to the output folder the first exception of a bench, a fixture or a collection: a pytest plugin.

    code: the exit code that this exception asks for, 0 before there is any.
    """

    def __init__(self, out: Path):
        self.out, self.code = out, 0

    def pytest_exception_interact(self, call: Any) -> None:
        if not self.code:
            self.code = outcome.exit_code(call.excinfo.value)
            with contextlib.suppress(OSError):  # a full disk has no room for a word
                outcome.report(self.out, call.excinfo.value)


def _announced(replies: int, begin: Start, gate: int | None) -> int:
    """Start a process and tell the runner its number."""
    pid = begin(gate)
    _reply(replies, {"event": "started", "pid": pid})
    return pid


def _begin(perform: Perform, fork: bool, request: Mapping[str, Any], gate: int | None) -> int:
    """Start a job's process: forked from this one where that may be, else a fresh interpreter's; return its number."""
    return _fork(perform, request, gate) if fork and request["interpreter"] is None else _spawn(request, gate)


def _fork(perform: Perform, request: Mapping[str, Any], gate: int | None) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _redirect(Path(request["log"]))
        code = run_job(Path(request["job"]), Limits(**request["limits"]), parent, perform, gate)
    finally:
        _leave(code)


def _leave(code: int) -> NoReturn:
    """End a forked child without running what the parent registered for its own end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _spawn(request: Mapping[str, Any], gate: int | None) -> int:
    interpreter = request["interpreter"] or sys.executable
    command = [interpreter, *_own_module(), "--job", json.dumps({**request, "gate": gate})]
    inherited = () if gate is None else (gate,)
    with Path(request["log"]).open("ab") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=inherited
        )
    child.returncode = 0  # reaped by `limits`, not by Popen
    return child.pid


def _own_module() -> list[str]:
    """Return how this very program was started: as a module, or as a script that brings its own ``perform``."""
    main_module = sys.modules["__main__"]
    if main_module.__spec__ is not None:
        return ["-m", main_module.__spec__.name]
    return [str(main_module.__file__)]


def _redirect(log: Path) -> None:
    """Send standard output and error to the cell's log, and read standard input from nowhere."""
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.dup2(1, 2)


def _preload(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children share these pages instead of copying them at their first collection


def _requests() -> Iterator[dict[str, Any]]:
    """Yield the requests on standard input, read without a buffer: `select` sees whatever has not been read."""
    while line := _read_line():
        yield json.loads(line)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n") and (piece := os.read(sys.stdin.fileno(), 65536)):
        line += piece
    return line


def _private_stdout() -> int:
    """Keep standard output for replies: whatever a library prints goes to standard error."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return replies


def _reply(replies: int, message: Mapping[str, Any]) -> None:
    os.write(replies, json.dumps(message).encode() + b"\n")


def _wake_on_child() -> int:
    """Return the end of a pipe that becomes readable when a child ends."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


if __name__ == "__main__":
    main()
