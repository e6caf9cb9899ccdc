"""Write an artifact for other software, with the interpreter that has what its format takes. Imports no torch."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path

from squeeze.core.errors import SqueezeError
from squeeze.core.interpreters import environment_with
from squeeze.runtimes import environments

WRITER = "squeeze.artifacts.exports.by_name"


def export(layout: str, source: Path, folder: Path) -> None:
    """Write the artifact in ``source`` to ``folder``, which is new or empty, in a format such as ``gguf``.

    A format that is called as the environment of an engine is (``onnx``, ``openvino``) is written with that one's
    interpreter; the environment is made unless it is there. Raises Unsupported where it cannot be made, and whatever
    writing raises: of another interpreter's, SqueezeError with its last word.
    """
    environment = environments.every().get(layout.replace("-", "_"))
    if environment is None or environment.is_here():
        import_module(WRITER).writer(layout)(source, folder)  # torch: seconds
        return
    command = [str(environment.made()), "-m", WRITER, layout, str(source.resolve()), str(folder.resolve())]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment_with({}), check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no word of why"]
        raise SqueezeError(f"{said[-1]} (written in the environment {environment.name})")
