"""Find llama.cpp's library through the Python package that brings it, and keep what it logs.

The package is named by a variable: what an artifact's key knows of libraries is what a technique's files name literally
(``artifacts.code_version``), in the environment that asks. llama.cpp lies in an environment of its own, and keys must
not hang on who asks. So its version stands here, where keys see it, and no other is taken.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from squeeze.core.errors import Unsupported

PACKAGE, DISTRIBUTION = "llama_cpp", "llama-cpp-python"
VERSION = "0.3.36"  # pinned in runtimes/requirements/llama_cpp.txt, too
INSTALL = "`nox -s runtimes -- llama_cpp` makes the environment that has it, where `squeeze run` starts its processes"
KEPT = 4096  # lines of the log: loading a model takes some hundreds
Callback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)  # (level, text, what is not used)


@dataclass(frozen=True)
class Library:
    """Hold llama.cpp's C interface, as the package declares it, and the last lines that it has logged.

    callback: what it logs to; it must live as long as the library.
    """

    api: Any
    lines: deque[str]
    callback: Any

    def complaint(self) -> str:
        """Return the last lines of the log in one, for an error's message."""
        return " ".join("".join(list(self.lines)[-6:]).split())[-300:]


@cache
def library() -> Library:
    """Load the library, once. Raises Unsupported where there is none, or one of another version, or it does not run."""
    if find_spec(PACKAGE) is None:
        raise Unsupported(f"{DISTRIBUTION} is not installed here; {INSTALL}")
    if (found := metadata.version(DISTRIBUTION)) != VERSION:
        raise Unsupported(f"{DISTRIBUTION} {found} is installed, expected {VERSION}; {INSTALL}")
    try:
        api = import_module(PACKAGE)
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        message = " ".join(str(error).split())[:200]
        raise Unsupported(f"{DISTRIBUTION} does not load ({message}); build it anew for this processor") from error
    lines: deque[str] = deque(maxlen=KEPT)
    callback = Callback(lambda _, text, __: lines.append((text or b"").decode(errors="replace")))
    api.llama_log_set(callback, ctypes.c_void_p(0))
    api.llama_backend_init()
    return Library(api, lines, callback)
