"""Select which cells benches/ measure, and provide the fixtures that benches share: a pytest plugin.

``pytest benches --cell JOB.json`` is a measuring process: it does the one stage of one cell that the job names, and
leaves its samples in the job's folder. ``pytest benches`` measures the cells that --squeeze selects, one after the
other in this process (squeeze.runner.in_process): quick, for developing a technique.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from squeeze.core import process
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.probes.samples import Samples
from squeeze.probes.turns import Turns
from squeeze.request.cell import Cell
from squeeze.runner.jobs.job import Job
from squeeze.runtimes import contract as runtimes
from squeeze.runtimes.contract import Engine

if TYPE_CHECKING:
    from squeeze.probes.global_state import Snapshot
    from squeeze.runner.in_process import InProcess

STAGES = pytest.StashKey[dict[str, float]]()  # seconds spent before the first bench
JOBS = pytest.StashKey[list[Job]]()
FAILURES = pytest.StashKey[dict[Path, dict[str, BaseException]]]()  # by the job's ``out`` and the bench's name
IN_PROCESS: pytest.StashKey[InProcess] = pytest.StashKey()

# By the name of a bench's argument: the part of the protocol and its field that list the points, and their letter.
POINTS = {"batch": ("latency", "batch_sizes", "b"), "tokens": ("ttft_curve", "prompt_tokens", "t")}
MARKERS = (
    "quality: benches of the quality stage",
    "once: benches whose figures no round changes, done in the first one only",
    "kind(*names): benches of some kinds of model (causal_lm, encoder, classifier, vision_language); without, of all",
    "scoring: our scoring against lm-eval's own, side by side; left out unless asked for",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say what to measure."""
    group = parser.getgroup("squeeze")
    group.addoption("--cell", type=Path, metavar="JOB.json", help="be the measuring process of this job")
    group.addoption("--gate", type=int, metavar="FD", help="take turns, which are given on this descriptor")
    group.addoption(
        "--squeeze",
        default="technique=none protocol=smoke",
        metavar="OVERRIDES",
        help="cells to measure in this process, in the grammar of `squeeze run` (default: %(default)s)",
    )
    group.addoption(
        "--results",
        type=Path,
        default=Path("results"),
        help="folder for the records of what is measured in this process (default: %(default)s)",
    )
    group.addoption("--config-dir", type=Path, metavar="FOLDER", help="choices of your own, as for `squeeze run`")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep Python's collector out of timed calls, before pytest-benchmark reads its options."""
    config.stash[STAGES] = {"start": process.age()}
    config.stash[FAILURES] = {}
    config.option.benchmark_disable_gc = True
    for line in MARKERS:
        config.addinivalue_line("markers", line)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Read the jobs and import what they need, so that collecting is not charged with it."""
    stages, started = session.config.stash[STAGES], time.perf_counter()
    session.config.stash[JOBS] = _jobs(session.config)
    import squeeze.artifacts.format  # noqa: F401 - torch and transformers: seconds, unless a worker forked with them imported

    imported = time.perf_counter()
    yield
    stages |= {"imports": imported - started, "collect": time.perf_counter() - imported}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test per job of the stage, such as test_decode[smollm2_135m-gptq-4], and per point if it has any.

    A point is a batch size, or a length of the protocol's curve: a protocol without a curve has no test of it.
    """
    jobs = [job for job in metafunc.config.stash[JOBS] if _suits(metafunc.definition, job)]
    if "job" not in metafunc.fixturenames or not jobs:
        return
    if (axis := next((name for name in POINTS if name in metafunc.fixturenames), None)) is None:
        metafunc.parametrize("job", jobs, indirect=True, ids=[job.cell.label for job in jobs], scope="session")
        return
    part, field, letter = POINTS[axis]
    points = [(job, point) for job in jobs for point in job.cell.protocol.get(part, {}).get(field, ())]
    ids = [job.cell.label if point == 1 else f"{job.cell.label}-{letter}{point}" for job, point in points]
    if points:
        metafunc.parametrize(("job", axis), points, indirect=["job"], ids=ids, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the benches of other stages, kinds and rounds; finish each job before the next begins."""
    jobs = config.stash[JOBS]
    position = {id(job): index for index, job in enumerate(jobs)}
    config.hook.pytest_deselected(items=[item for item in items if not _is_wanted(item)])
    items[:] = sorted(filter(_is_wanted, items), key=lambda item: position.get(id(_job(item)), -1))


def pytest_exception_interact(node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any]) -> None:
    """Remember what a bench failed with, so that its job's samples say what is missing from them."""
    if isinstance(node, pytest.Item) and (job := _job(node)) is not None and call.excinfo is not None:
        node.config.stash[FAILURES].setdefault(job.out, {}).setdefault(node.name, call.excinfo.value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the records of the cells that were measured in this process, and name them."""
    if IN_PROCESS not in config.stash:
        return
    failures = {out: next(iter(errors.values())) for out, errors in config.stash[FAILURES].items()}
    for record in config.stash[IN_PROCESS].records(failures):
        terminalreporter.write_line(f"{Cell.from_json(record.cell).label}: {record.status} {record.reason}".rstrip())
    terminalreporter.write_line(f"records are in {config.option.results}")
    config.stash[IN_PROCESS].close()


@pytest.fixture(scope="session")
def job(request: pytest.FixtureRequest) -> Job:
    """Return the job of this measurement, its artifact built, this process set up for its runtime."""
    found: Job = request.param
    if IN_PROCESS in request.config.stash:
        try:
            request.config.stash[IN_PROCESS].build(found)
        except Unsupported as error:
            request.config.stash[FAILURES].setdefault(found.out, {})["build"] = error
            pytest.skip(f"{found.cell.label}: {error}")
    process.settle(found.cell.runtime, found.cell.protocol["seed"])
    return found


@pytest.fixture(scope="session")
def cell(job: Job) -> Cell:
    """Return the cell that is measured."""
    return job.cell


@pytest.fixture(scope="session")
def turns(pytestconfig: pytest.Config) -> Turns:
    """Return what keeps this process to its turns, where others are measured beside it."""
    return Turns(pytestconfig.option.gate)


@pytest.fixture(scope="session")
def samples(job: Job, turns: Turns, pytestconfig: pytest.Config) -> Iterator[Samples]:
    """Yield where benches put what they saw; write it when the job's last bench is done, failed ones named."""
    collected = Samples(job.out, clock=turns.clock)
    collected.put_all({"stages": pytestconfig.stash[STAGES], "interleaved": turns.interleaved})
    collected.put("gomp_spincount", os.environ.get("GOMP_SPINCOUNT", "default"))
    yield collected
    failures = pytestconfig.stash[FAILURES].get(job.out, {})
    collected.put("failures", {name: f"{type(error).__name__}: {error}" for name, error in failures.items()})
    collected.write()


@pytest.fixture(scope="session")
def before(job: Job, samples: Samples) -> Snapshot:
    """Return this process's global state before it has anything of the artifact.

    The code of its model is watched, and that of its runtime, which is imported before: only what is there is seen.
    """
    import transformers

    from squeeze.artifacts import format as artifact
    from squeeze.probes.global_state import Snapshot

    runtimes.of(job.cell.runtime)
    model = getattr(transformers, artifact.describe(job.artifact)["architecture"], None)
    found = Snapshot.now((model.__module__,) if model else ())
    samples.put("state", found.settings)
    return found


@pytest.fixture(scope="session")
def engine(job: Job, samples: Samples, before: Snapshot) -> Engine:  # noqa: ARG001 - it is taken before
    """Return the artifact, loaded once per process by the cell's runtime; put the memory loading took into samples.

    Raises Unsupported where the engine shows no model and the cell is no plain language model: all else is measured by
    what torch sees of it; and where the artifact has a draft, which the engine would leave out.
    """
    from squeeze.artifacts import format as artifact
    from squeeze.probes import memory

    runtime, kind = runtimes.of(job.cell.runtime), job.cell.model["kind"]
    with samples.stage("load"):
        loaded, usage = memory.measured(lambda: runtime.load(job.artifact), runtime.device)
    samples.put_all({**usage.figures("load"), "load_kept_bytes": memory.kept(usage)})
    if kind != "causal_lm" and not runtimes.shows_model(loaded):
        raise Unsupported(f"runtime={job.cell.runtime['name']} is measured with causal_lm alone, not with {kind}")
    if "draft" in artifact.describe(job.artifact) and not runtimes.drafts(loaded):
        raise Unsupported(f"runtime={job.cell.runtime['name']} would leave the artifact's draft out; use runtime=eager")
    return loaded


def _jobs(config: pytest.Config) -> list[Job]:
    try:
        if config.option.cell is not None:
            return [Job.read(config.option.cell)]
        from squeeze.runner.in_process import InProcess  # Hydra, which a measuring process does without

        config.stash[IN_PROCESS] = InProcess.of(
            config.option.squeeze.split(), config.option.results, config.option.config_dir
        )
        return config.stash[IN_PROCESS].jobs()
    except SqueezeError as error:
        raise pytest.UsageError(str(error)) from error


def _stage(node: pytest.Item) -> str:
    return "quality" if node.get_closest_marker("quality") else "latency"


def _suits(node: pytest.Item, job: Job) -> bool:
    """Tell whether a bench is one of the job's stage, and of its kind of model."""
    kind = node.get_closest_marker("kind")
    return job.stage == _stage(node) and (kind is None or job.cell.model["kind"] in kind.args)


def _job(item: pytest.Item) -> Job | None:
    callspec = getattr(item, "callspec", None)
    return None if callspec is None else callspec.params.get("job")


def _is_wanted(item: pytest.Item) -> bool:
    if item.get_closest_marker("scoring"):
        return "scoring" in item.config.option.markexpr
    if "job" not in getattr(item, "fixturenames", ()):
        return True
    found = _job(item)
    return found is not None and (found.round == 0 or not item.get_closest_marker("once"))
