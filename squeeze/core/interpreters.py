"""Start interpreters that import this very squeeze, and that see the packages of this one's environment if they ask.

An engine whose packages lie in an environment of its own (``runtimes.environments``) asks: its interpreter adds the
folders that ``PACKAGES`` names behind those of its own.
"""

from __future__ import annotations

import os
import site
from collections.abc import Mapping

from squeeze.core.paths import PACKAGE

PACKAGES = "SQUEEZE_PACKAGES"  # names the folders of packages of the environment that a run was started in


def packages() -> list[str]:
    """Return the folders in which this interpreter's own environment keeps its packages."""
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    return [*site.getsitepackages(), *own]


def environment_with(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a process of ours: this one's, the variables, and this very squeeze to import.

    An installed squeeze is found without a word. Were its folder named, all that is installed beside it would go before
    the packages of an engine's own environment.
    """
    named = os.environ.get(PACKAGES) or os.pathsep.join(packages())  # within an engine's: of what started it
    home = str(PACKAGE.parent)
    places = (None if home in named.split(os.pathsep) else home, os.environ.get("PYTHONPATH"))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), PACKAGES: named, **variables}
