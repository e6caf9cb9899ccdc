"""Make the environments of engines whose packages are not the core's, and find their interpreters. Imports no torch.

A runtime, or a step of a technique, whose library lies in an environment of its own says which in a field of its class,
``environment: ClassVar[str] = "NAME"``. What belongs into it stands in ``requirements/NAME.txt``, each package with an
exact version; the variables that these are built with are what ``build_flags()`` of ``NAME_build.py`` returns, where
there is such a file. It is an overlay: a venv whose packages go before those of the environment that starts it, which
it sees behind its own through a .pth file. So squeeze, torch and all else are the core's unless the engine brings
another version, and making one takes no more than the engine does.

A runtime that runs on one kind of device alone says so, too, ``only_on: ClassVar[str] = "cuda"``: for no other device
is an environment made. ``python -m squeeze.runtimes.environments [NAME ...]`` makes those that are named, or all that
this machine has the device for (``nox -s runtimes``).
"""

from __future__ import annotations

import ast
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any
from venv import EnvBuilder

from squeeze.core import plugins
from squeeze.core.cache import cache_root, is_intact, sealed
from squeeze.core.environment import default_device
from squeeze.core.errors import SqueezeError, Unsupported, hint
from squeeze.core.hashing import digest
from squeeze.core.interpreters import PACKAGES, environment_with, packages
from squeeze.core.plugins import Named, Plugin
from squeeze.runtimes.contract import current

FIELD, ONLY_ON = "environment", "only_on"  # of a class
FLAGS = "build_flags"  # of NAME_build.py, and among the pins
ROOM = "environments"  # of the cache
PTH = "squeeze_core.pth"
PINNED = re.compile(r"([A-Za-z0-9][\w.-]*)(?:\[[^\]]*\])?\s*==\s*([^\s;]+)")
QUIETLY = ("--no-input", "--disable-pip-version-check", "--quiet", "--progress-bar", "off")
TOLD = 3  # last lines of pip's that an error repeats


@dataclass(frozen=True)
class Environment:
    """Describe an environment.

    name: as a class says it. plugin: whose ``runtimes/requirements`` folder has its packages. only_on: the kind of
    device that it is for, "cpu" or "cuda"; None: any.
    """

    name: str
    plugin: Plugin
    only_on: str | None = None

    @property
    def requirements(self) -> Path:
        """Return the file that names its packages."""
        return self.plugin.folder / "runtimes" / "requirements" / f"{self.name}.txt"

    @property
    def command(self) -> str:
        """Return what makes it, or says at length why it cannot be made."""
        return f"nox -s runtimes -- {self.name}"

    def pins(self) -> dict[str, str]:
        """Map its packages to their versions, and ``requirements`` to a hash of all that its file says.

        Where they are built with variables of their own, ``build_flags`` is a hash of these. Raises SqueezeError for a
        file that cannot be read, and for a package without an exact version; Unsupported where ``build_flags()`` fails.
        """
        lines, flags = self._lines(), self._flags()
        pinned = dict(self._pinned(line) for line in lines if not line.startswith("-"))
        return {**pinned, "requirements": digest(lines)[:16], **({FLAGS: digest(dict(flags))[:16]} if flags else {})}

    def check_for(self, device: str) -> None:
        """Raise Unsupported where it is not for a device, "cpu", "cuda" or "cuda:N"."""
        if self.only_on is not None and device.partition(":")[0] != self.only_on:
            raise Unsupported(
                f"the engine of the environment {self.name} runs on {self.only_on} alone, asked for {device}; use "
                f"device={self.only_on}, or runtime=eager"
            )

    def made(self) -> Path:
        """Return its interpreter; the environment is made unless the cache has it, which takes minutes.

        Raises Unsupported, which says what pip said last and what to type, where it cannot be made.
        """
        return _interpreter(sealed(f"environments/{self._key()}", self._make))

    def existing(self) -> Path | None:
        """Return its interpreter, or None where it has not been made, or is damaged."""
        folder = cache_root() / ROOM / self._key()
        return _interpreter(folder) if is_intact(folder) else None

    def is_here(self) -> bool:
        """Tell whether this very process runs in it."""
        prefix = Path(sys.prefix).resolve()
        return prefix.parent == (cache_root() / ROOM).resolve() and prefix.name.rpartition("-")[0] == self.name

    def _lines(self) -> list[str]:
        try:
            text = self.requirements.read_text()
        except OSError as error:
            raise SqueezeError(
                f"the environment {self.name!r} has no readable {self.requirements.name} in runtimes/requirements of "
                f"{self.plugin.package} ({error.strerror}); install that package again"
            ) from error
        bare = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.replace("\\\n", " ").splitlines())
        return [line for line in bare if line]

    def _pinned(self, line: str) -> tuple[str, str]:
        if (pin := PINNED.match(line)) is None:
            raise SqueezeError(f"{self.requirements.name}: {line!r} has no exact version, expected NAME==VERSION")
        return pin[1], pin[2]

    def _key(self) -> str:
        """Return the folder's name: it is another one for other packages, another Python, or another way to build."""
        where = [sys.implementation.cache_tag, sys.base_prefix, platform.machine()]
        return f"{self.name}-{digest([self.pins(), where])[:16]}"

    def _flags(self) -> Mapping[str, str]:
        """Return the variables that its packages are built with. Raises Unsupported where ``build_flags()`` fails."""
        module = f"{self.name}_build"
        if not (self.plugin.folder / "runtimes" / f"{module}.py").is_file():
            return {}
        try:
            found: dict[str, str] = dict(vars(import_module(f"{self.plugin.package}.runtimes.{module}"))[FLAGS]())
        except Exception as error:
            raise Unsupported(
                f"{module}.{FLAGS}() fails ({type(error).__name__}: {error}); its environment cannot be built without"
            ) from error
        return found

    def _make(self, folder: Path) -> None:
        print(f"making the environment of {self.name}, once: minutes, more where it is compiled", file=sys.stderr)
        EnvBuilder(symlinks=True).create(folder)
        places = {"base": str(folder), "platbase": str(folder)}
        (Path(sysconfig.get_path("purelib", "venv", places)) / PTH).write_text(_seeing_core())
        command = [sys.executable, "-m", "pip", "--python", str(_interpreter(folder)), "install", *QUIETLY]
        done = subprocess.run(
            [*command, "--requirement", str(self.requirements)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment_with(self._flags()),
            check=False,
        )
        if done.returncode:
            last = [line.strip() for line in done.stdout.splitlines() if line.strip()][-TOLD:]
            raise Unsupported(
                f"the environment of {self.name} cannot be made: {' | '.join(last) or 'pip said nothing'}; "
                f"`{self.command}` tries again"
            )


def of(runtime: Mapping[str, Any]) -> Environment | None:
    """Return the environment that a cell's runtime lies in; None for the core's, and for one that is not there."""
    try:
        return named_by(plugins.find("runtimes", str(current(runtime).get("_target_"))))
    except SqueezeError:  # whoever is to run it says so
        return None


def named_by(found: Named) -> Environment | None:
    """Return the environment that a class says it lies in, by reading its file: nothing is imported."""
    return _of_class(found.file, found.attribute, found.plugin)


def check_here(runtime: Mapping[str, Any]) -> None:
    """Raise Unsupported, which says what to type, unless this process runs in the environment of the runtime."""
    wanted = of(runtime)
    if wanted is not None and not wanted.is_here():
        raise Unsupported(
            f"runtime={runtime.get('name', wanted.name)} runs in the environment {wanted.name}, and this process does "
            f"not; `squeeze run` starts such processes, and `{wanted.command}` makes the environment"
        )


def every() -> dict[str, Environment]:
    """Return all environments that runtimes of squeeze and of installed plugins lie in, by name."""
    found: dict[str, Environment] = {}
    for plugin in (plugins.HOUSE, *plugins.installed().values()):
        for file in plugins.modules("runtimes", plugin).values():
            classes = [node.name for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.ClassDef)]
            known = (_of_class(file, name, plugin) for name in classes)
            found |= {each.name: each for each in known if each is not None}
    return dict(sorted(found.items()))


def main(names: Sequence[str]) -> int:
    """Make the environments of these names, or all that there is the device for, and say where they lie.

    Return 1 where one cannot be made.
    """
    known = every()
    failed = False
    for name in names or [name for name, each in known.items() if each.only_on in (None, "cpu", default_device())]:
        try:
            if name not in known:
                raise SqueezeError(f"no runtime lies in an environment {name!r}; {hint(name, known)}")
            print(f"{name}: {known[name].made()}", flush=True)
        except SqueezeError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)
            failed = True
    return int(failed)


def _interpreter(folder: Path) -> Path:
    return folder / "bin" / "python"


def _seeing_core() -> str:
    """Return the line of a .pth file that adds the core's folders, with their own .pth files, behind all others.

    They are those of whoever starts the interpreter; where nobody says, of the environment that made it.
    """
    places = f'os.environ.get("{PACKAGES}", {os.pathsep.join(packages())!r}).split(os.pathsep)'
    return f"import os, site; list(map(site.addsitedir, {places}))\n"


def _of_class(file: Path, attribute: str, plugin: Plugin) -> Environment | None:
    said = _said(file, attribute)
    return Environment(said[FIELD], plugin, said.get(ONLY_ON)) if FIELD in said else None


@lru_cache(maxsize=256)
def _said(file: Path, attribute: str) -> Mapping[str, str]:
    """Return the texts that the class of this name assigns to FIELD and to ONLY_ON; nothing where it has no such."""
    found: dict[str, str] = {}
    for node in ast.parse(file.read_bytes()).body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            for each in node.body:
                match each:
                    case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=str(said))):
                        if name in (FIELD, ONLY_ON):
                            found[name] = said
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
