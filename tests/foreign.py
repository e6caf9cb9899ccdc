"""A foreign engine in small: a package that only an environment of its own has, and a plugin's runtime that wants it.

All is made by hand and installed by the real pip out of a folder: no index, no network.
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from squeeze.core import plugins
from squeeze.runtimes.environments import Environment
from tests.plugins import install

PACKAGE = "squeeze_toys"
# What its packages may say: whether logits are those of the model, or of a vocabulary that was turned by one.
RIGHT, WRONG = "TURN = 0\n", "TURN = 1\n"
RUNTIME = """
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from squeeze.core.errors import Unsupported


@dataclass(frozen=True)
class Toy:
    device: str
    threads: int

    environment: ClassVar[str] = "ENVIRONMENT"

    def load(self, folder: Path) -> Any:
        try:
            import toy_engine
        except ImportError as error:
            raise Unsupported("toy_engine is not installed here; run `nox -s runtimes -- ENVIRONMENT`") from error
        from squeeze.runtimes.eager import Eager

        return Engine(Eager(self.device, self.threads).load(folder), toy_engine.TURN)


class Engine:
    scored_as, exact = "itself", True

    def __init__(self, hidden: Any, turn: int) -> None:
        self._hidden, self._turn = hidden, turn  # no subject: torch cannot look into it
        self.tokenizer, self.bytes_held = hidden.tokenizer, hidden.bytes_held

    def begin(self, positions: int) -> Any:
        return self._hidden.begin(positions)

    def encode(self, token_ids: Any) -> Any:
        raise Unsupported("no encoders")

    def logits(self, token_ids: Any) -> Any:
        return self._hidden.logits(token_ids).roll(self._turn, -1)

    def log_probabilities(self, token_ids: Any) -> Any:
        from squeeze.runtimes.generation import log_probability

        return log_probability(self.logits(token_ids[:, :-1]), token_ids[:, 1:])
"""
BACKEND = """
import os, zipfile

def build_wheel(folder, config_settings=None, metadata_directory=None):
    name = "toy_engine-1.0-py3-none-any.whl"
    info = "toy_engine-1.0.dist-info"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        wheel.writestr("toy_engine.py", f"TURN = 0\\nBUILT = {os.environ.get('TOY_FLAGS')!r}\\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: toy-engine\\nVersion: 1.0\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def wheel(folder: Path, source: str = RIGHT, version: str = "1.0") -> Path:
    """The package ``toy-engine``, in a folder that pip may take for an index."""
    info = f"toy_engine-{version}.dist-info"
    members = {
        "toy_engine.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: toy-engine\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"toy_engine-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def sdist(folder: Path) -> Path:
    """The same package as source, whose build keeps what TOY_FLAGS said."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy_engine-1.0.tar.gz"
    about = "Metadata-Version: 2.1\nName: toy-engine\nVersion: 1.0\n"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in {"pyproject.toml": PROJECT, "backend.py": BACKEND, "PKG-INFO": about}.items():
            entry = tarfile.TarInfo(f"toy_engine-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path


def offer(site: Path, patch: pytest.MonkeyPatch, environments: Mapping[str, str], build: str = "") -> Path:
    """Install the plugin ``toys``: a runtime and a choice for each environment, by name -> what its packages are.

    build: source of the file that says how each one's packages are built; none without.
    """
    for module in [module for module in sys.modules if module.partition(".")[0] == PACKAGE]:
        del sys.modules[module]  # that of a test before
    files = {}
    for name, requirements in environments.items():
        files[f"runtimes/{name}.py"] = RUNTIME.replace("ENVIRONMENT", name)
        if build:
            files[f"runtimes/{name}_build.py"] = build
        files[f"runtimes/requirements/{name}.txt"] = requirements
        choice = f"_target_: toys:{name}.Toy\ndevice: ${{device}}\nthreads: ${{threads}}\n"
        files[f"conf/runtime/{name}.yaml"] = choice
    site.mkdir(parents=True, exist_ok=True)
    folder = install(site, "toys", files, PACKAGE)
    patch.syspath_prepend(site)
    patch.setenv("PYTHONPATH", str(site))  # of the processes that are started
    return folder


def requirements(index: Path, version: str = "1.0") -> str:
    """What a requirements file says that takes the package out of a folder."""
    return f"# of a test\n--no-index\n--find-links {index}\ntoy-engine=={version}  # the engine\n"


def named(name: str) -> Environment:
    """The environment of the plugin's runtime."""
    return Environment(name, plugins.installed()["toys"])
