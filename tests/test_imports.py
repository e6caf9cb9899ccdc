"""Imports run down only: the house plan, held by reading the source. CONTRIBUTING.md has the same table."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec

import pytest

from squeeze.artifacts import keys
from squeeze.core.paths import PACKAGE
from squeeze.runner import stages
from squeeze.runner.jobs import launcher, worker

# What a module of each room may import: rooms, or single modules of a room. Every room may import core and itself.
MAY_IMPORT: Mapping[str, tuple[str, ...]] = {
    "core": (),
    "sources": (),
    "request": ("sources",),
    "models": ("sources",),
    "layers": ("models",),
    "records": ("request",),
    "techniques": ("models", "layers"),
    "boards": ("request", "records"),
    "artifacts": ("request", "sources", "models", "layers", "techniques"),
    "runtimes": ("sources", "models", "layers", "artifacts"),
    "probes": ("sources", "models", "layers", "records", "artifacts", "runtimes"),
    "runner": (
        *("request", "sources", "records", "artifacts.keys", "runtimes.contract", "runtimes.environments"),
        "probes.samples",
    ),
    "audit": ("request", "records", "boards", "artifacts", "runner"),
    "commands": ("request", "records", "boards", "artifacts", "probes", "runner", "audit"),
}
# Functions of these do a job, in a process that is made for it; they may import what the job needs.
DO_JOBS = {"squeeze.runner.jobs.worker", "squeeze.runner.jobs.together", "squeeze.runner.in_process"}
JOBS_NEED = ("artifacts", "probes", "runtimes")

# What papers share, beside the families; the machinery around it is handed in by the build.
OF_PAPERS = ("contract", "hessian", "losses", "training_loop")

# Importing any module of these rooms, or these modules, imports none of HEAVY.
LIGHT = (
    "core",
    "request",
    "sources",
    "records",
    "boards",
    "runner",
    "audit",
    "commands",
    "artifacts.keys",
    "artifacts.code_version",
)
HEAVY = {"torch", "transformers", "torchao", "bitsandbytes", "lm_eval", "accelerate", "peft"}

LONGEST_FILE = 300  # lines
MOST_AT_THE_ROOT = 3  # modules: __init__, the command line, the pytest plugin
DOTTED = re.compile(r"squeeze(\.[a-z_]\w*)+")


def name_of(path_parts: tuple[str, ...]) -> str:
    return ".".join(("squeeze", *path_parts)).removesuffix(".__init__")


FILES = {name_of(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
PAPERS = [name for name, path in FILES.items() if name.startswith("squeeze.techniques.") and name.count(".") == 3]


@cache
def imports(module: str) -> frozenset[tuple[str, bool]]:
    """What a module's file imports, each as far as it names a module, and whether only when a function runs.

    What is under ``if TYPE_CHECKING`` is never imported.
    """
    return frozenset(_imports(ast.parse(FILES[module].read_bytes()), module, deferred=False))


def _imports(node: ast.AST, module: str, *, deferred: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Import():
                yield from ((_module(alias.name), deferred) for alias in child.names)
            case ast.ImportFrom(level=0):
                yield from ((_module(f"{child.module}.{alias.name}"), deferred) for alias in child.names)
            case ast.ImportFrom():
                raise AssertionError(f"{module} has a relative import: write it out")
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _imports(child, module, deferred=True)
            case _:
                yield from _imports(child, module, deferred=deferred)


def _module(dotted: str) -> str:
    """The module of ours that a dotted name denotes, or in which it is defined; else the top-level package."""
    if dotted.partition(".")[0] != "squeeze":
        return dotted.partition(".")[0]
    return dotted if dotted in FILES else dotted.rpartition(".")[0]


@cache
def ours(module: str, *, at_once: bool = False) -> frozenset[str]:
    """The modules of ours that a module imports, ``at_once`` or also when its functions run."""
    found = {name for name, deferred in imports(module) if not (at_once and deferred)}
    return frozenset(name for name in found if name in FILES and name not in ("squeeze", module))


def is_below(module: str, places: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"squeeze.{place}.") for place in places)


def told(wrong: list[str]) -> str:
    return "\n".join(["", *sorted(wrong)])


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room: str) -> None:
    wrong = []
    for module in (name for name in FILES if is_below(name, (room,))):
        allowed = ("core", room, *MAY_IMPORT[room])
        deferred = {name for name in ours(module) - ours(module, at_once=True) if module in DO_JOBS}
        wrong += [
            f"{module} imports {name}"
            for name in sorted(ours(module))
            if not is_below(name, (*allowed, *JOBS_NEED) if name in deferred else allowed)
        ]
    assert not wrong, told(wrong)


def test_every_folder_is_a_room() -> None:
    assert {name.split(".")[1] for name in FILES if name.count(".") > 1} <= MAY_IMPORT.keys()


def test_a_paper_imports_no_other_family_and_none_of_the_machinery() -> None:
    wrong = []
    for module in PAPERS:
        family = module.split(".")[2]
        allowed = tuple(f"techniques.{place}" for place in (family, *OF_PAPERS))
        of_techniques = (name for name in ours(module) if is_below(name, ("techniques",)))
        wrong += [f"{module} imports {name}" for name in sorted(of_techniques) if not is_below(name, allowed)]
    assert PAPERS
    assert not wrong, told(wrong)


@pytest.mark.parametrize("place", LIGHT)
def test_no_torch_is_imported_with(place: str) -> None:
    wrong = []
    for module in (name for name in FILES if is_below(name, (place,))):
        for name, way in reached(module).items():
            if heavy := {found for found, deferred in imports(name) if not deferred} & HEAVY:
                wrong.append(f"{' -> '.join(way)} -> {', '.join(sorted(heavy))}")
    assert not wrong, told(wrong)


def reached(module: str) -> dict[str, tuple[str, ...]]:
    """The modules that importing one imports, itself included, each with a way to it."""
    found = {module: (module,)}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        parents = {name.rpartition(".")[0]} & FILES.keys()
        for other in (ours(name, at_once=True) | parents) - found.keys():
            found[other] = (*found[name], other)
            waiting.append(other)
    return found


def test_no_circle_among_modules() -> None:
    try:
        TopologicalSorter({module: ours(module) for module in FILES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def test_no_file_is_too_long_and_the_root_holds_next_to_nothing() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_AT_THE_ROOT


def test_modules_that_are_named_in_strings_exist() -> None:
    """A moved module must not break what names it only when that runs."""
    wrong = []
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and DOTTED.fullmatch(node.value):
                name = node.value
                if name not in FILES and name.rpartition(".")[0] not in FILES:
                    wrong.append(f"{module} names {name}")
    assert not wrong, told(wrong)


NAMED = {*worker.PRELOADED, *stages.SCORING, *stages.CLASSIFYING, keys.BUILDER, launcher.WORKER[-1]}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_modules_that_are_named_in_strings_can_be_imported(name: str) -> None:
    import_module(name)
    assert find_spec(name) is not None
