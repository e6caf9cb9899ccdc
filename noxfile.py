"""Define the project's sessions, which do all of their own set-up; ``nox -l`` lists them."""

from __future__ import annotations

import os
from pathlib import Path

import nox

nox.needs_version = ">=2024.10"
nox.options.default_venv_backend = "venv"  # pip, not uv: the pin of torch resolves as pip resolves it
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests"]


def install(session: nox.Session, *extras: str) -> None:
    """Install this checkout, editable, at exactly the versions of constraints.txt."""
    wanted = f".[{','.join(extras)}]" if extras else "."
    session.install("--quiet", "--constraint", "constraints.txt", "--editable", wanted)


@nox.session
def bench(session: nox.Session) -> None:
    """Compress, measure and rank: the smoke sweep on the embedded model, or what the arguments name.

    nox -s bench -- sweep=nightly
    nox -s bench -- technique=rtn bits=8,4 protocol=standard

    SQUEEZE_EXTRAS: extras to install, such as torchao,energy.
    """
    install(session, *filter(None, os.environ.get("SQUEEZE_EXTRAS", "").split(",")))
    session.run("squeeze", "run", *(session.posargs or ["sweep=smoke"]))


@nox.session
def runtimes(session: nox.Session) -> None:
    """Make the environments of engines that have one of their own: minutes each, llama.cpp's is compiled.

    They lie in squeeze's cache, for every run on this machine; a run makes those that it lacks by itself.

    nox -s runtimes                      # all whose engines run on this machine's device
    nox -s runtimes -- llama_cpp onnx    # chosen ones
    """
    install(session)
    session.run("python", "-m", "squeeze.runtimes.environments", *session.posargs)


@nox.session
def board(session: nox.Session) -> None:
    """Collate the records that are there, and print the leaderboard."""
    install(session)
    session.run("squeeze", "collate")
    session.run("squeeze", "board", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the whole test suite, on tiny random models and, end to end, on the real one.

    What times nothing shares all cores; what times something (pytest-benchmark sleeps under xdist) follows, alone.

    nox -s tests -- tests/request -k axes     # chosen tests, in one process
    """
    install(session, "test")
    if session.posargs:
        session.run("pytest", *session.posargs)
        return
    session.run("pytest", "tests", "-m", "not timed", "-n", "logical", "--dist", "worksteal")
    session.run("pytest", "tests", "-m", "timed")


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the tests and say which branches of squeeze/ none of them takes; fail below the share in pyproject.toml."""
    install(session, "test", "coverage")
    session.run("coverage", "erase")
    measured = ("--cov", "--cov-append", "--cov-report=")
    session.run("pytest", "tests", "-m", "not timed", "-n", "logical", "--dist", "worksteal", *measured)
    session.run("pytest", "tests", "-m", "timed", *measured)
    session.run("coverage", "report")


@nox.session
def trust(session: nox.Session) -> None:
    """Show that the promises hold, with full counts, and write docs/trust.md: half an hour on a quiet machine."""
    install(session, "test")
    report = Path(session.cache_dir) / "trust.xml"  # not create_tmp(): what lies within the environment is code
    counts = {"SQUEEZE_TEST_KILLS": "200", "SQUEEZE_TEST_TRIALS": "10000"}
    session.run("pytest", "tests", "-m", "promise", f"--junitxml={report}", env=counts, success_codes=[0, 1])
    session.run("python", "scripts/trust.py", str(report))


@nox.session
def crosscheck(session: nox.Session) -> None:
    """Quantize the default model with squeeze and with other libraries, and compare.

    An environment of its own: the libraries want an older transformers, under which squeeze runs here, too.

    nox -s crosscheck -- hqq
    """
    session.install("--quiet", "--requirement", "scripts/crosscheck/requirements.txt", "--editable", ".")
    session.run("python", "-m", "scripts.crosscheck", *session.posargs)


@nox.session
def agreement(session: nox.Session) -> None:
    """Hold losses against other libraries' code on the same tensors; ``tests`` leaves out what is not installed."""
    install(session, "test", "agreement")
    expected = {"SQUEEZE_TEST_AGREEMENT": "1"}  # what is missing here is an error
    session.run("pytest", "tests/techniques/test_trl.py", *session.posargs, env=expected)


@nox.session
def peers(session: nox.Session) -> None:
    """Compare what a row costs with what lm-eval and plain timing take for the same figures, on a quiet machine.

    nox -s peers -- technique=rtn bits=8,4
    nox -s peers -- --items 20 --tokens 1024 --rounds 2 --out results/trial
    """
    install(session)
    session.run("python", "-m", "scripts.peers", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into build/docs, its reference from the code; a dead link is an error."""
    install(session, "docs")
    session.run("python", "scripts/reference.py", "docs/reference")
    session.run("sphinx-build", "--fail-on-warning", "--keep-going", "--fresh-env", "docs", "build/docs")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style: ruff check and format."""
    session.install("--quiet", "--constraint", "constraints.txt", "ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check types: mypy, strict, over the package."""
    install(session, "types")
    session.run("mypy")
