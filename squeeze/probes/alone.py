"""Load an artifact in a process that can read nothing else, and compare what it predicts with what is measured.

All files that loading reads are weights; so an artifact whose layers fetch theirs from elsewhere (the uncompressed
model in the cache, a file in the home of its author) has to do without. Only layers and caches that a plugin brings can
do so, and only their artifacts are loaded once more, in a process of their own: a module that has read a file keeps it.

`python -m squeeze.probes.alone FOLDER DEVICE THREADS OUT.npy` writes the logits of ``TOKENS``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn

from squeeze.artifacts import format as artifact
from squeeze.core import landlock, plugins
from squeeze.core.cache import cache_root
from squeeze.core.errors import Unsupported

TOKENS = 32  # the first ones of any vocabulary
APART = 0.02  # of the largest logit: a process of its own may sum in another order
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/opt", "/proc", "/sys", "/nix")
SHARED_MEMORY = "/dev/shm"
CODE = ("*.py", "*.pyc", "*.so")  # of a plugin: what else lies there is data
NO_KERNEL = 3  # exit code where the kernel cannot close anything


def mismatches(folder: Path, model: nn.Module, device: str) -> list[str]:
    """Return what to say where an artifact, loaded alone, is not the model that is measured; nothing where it is.

    model: that artifact, ready to run on the device. Where the kernel has no Landlock, nothing is known.
    """
    if not brings_code(folder):
        return []
    with TemporaryDirectory() as place:
        out = Path(place) / "logits.npy"
        command = [sys.executable, "-P", "-m", __name__, str(folder), device, str(torch.get_num_threads()), str(out)]
        paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        # A home without a token: a library that finds one which it may not read would end.
        surroundings = {**os.environ, "PYTHONPATH": paths, "HF_HOME": place, "HF_HUB_OFFLINE": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, env=surroundings)
        if ended.returncode == NO_KERNEL:
            return []
        if ended.returncode:
            why = (ended.stderr.strip().splitlines() or ["no word of it"])[-1][:200]
            return [f"the artifact does not load from its own folder alone: {why}"]
        alone = torch.from_numpy(np.load(out))
    measured = logits(model)
    apart = float((alone - measured).abs().max() / measured.abs().max())
    if apart <= APART:
        return []
    return [
        f"loaded from its own folder alone, the artifact predicts otherwise: logits are {apart:.0%} apart, expected"
        f" {APART:.0%} at the most; all that it needs belongs in its folder"
    ]


def brings_code(folder: Path) -> bool:
    """Tell whether an artifact has layers or a cache of a plugin."""
    description = artifact.describe(folder)
    return any(":" in spec["_target_"] for spec in (*description["layers"].values(), description.get("cache")) if spec)


@torch.inference_mode()
def logits(model: nn.Module) -> Tensor:
    """Return what a model answers to the first tokens of its vocabulary, float32 on the CPU."""
    token_ids = torch.arange(TOKENS)[None].to(next(model.parameters()).device)
    outputs: Tensor = model(input_ids=token_ids)[0]
    return outputs.float().cpu()


def readable(folder: Path) -> Iterator[str]:
    """Yield what may be read to load an artifact: its folder, the system, and code; no data of plugins, no cache."""
    brought = [plugin.folder for plugin in plugins.installed().values()]
    closed = {os.path.realpath(place) for place in (*brought, cache_root())}
    yield str(folder)
    yield from SYSTEM
    yield from (entry.path for entry in os.scandir("/dev") if entry.path != SHARED_MEMORY)
    for place in {os.path.realpath(entry) for entry in (sys.prefix, sys.base_prefix, *sys.path) if entry}:
        yield from _but(place, closed)
    yield from (str(path) for package in brought for pattern in CODE for path in package.rglob(pattern))


def main(folder: Path, device: str, threads: int, out: Path) -> None:
    """Write the logits of an artifact that this process has loaded without reading anything else."""
    torch.set_num_threads(threads)
    if not landlock.allow(readable(folder)):
        sys.exit(NO_KERNEL)
    try:
        np.save(out, logits(artifact.load(folder, device).model).numpy())
    except Unsupported as error:
        sys.exit(str(error))


def _but(place: str, closed: set[str]) -> Iterator[str]:
    """Yield a place, or where something in it is closed, all that is not."""
    if place in closed or not os.path.exists(place):
        return
    if not any(each.startswith(f"{place}/") for each in closed):
        yield place
    elif os.path.isdir(place):
        for entry in os.scandir(place):
            yield from _but(entry.path, closed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
