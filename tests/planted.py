"""A user's folder of choices: three techniques, whose module is planted (fixture ``own``)."""

from squeeze.request import steps
from squeeze.request.expand import cells

SOURCE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Round:
    bits: int
    group_size: int | None
    symmetric: bool
    def apply(self, subject, calibration): ...

@dataclass(frozen=True)
class Prune:
    sparsity: float
    seed: int = 0
    def apply(self, subject, calibration): ...
"""

TECHNIQUES = {
    "round": "family: quantization\nsteps:\n- _target_: squeeze.techniques.planted.Round\n  bits: ${bits}\n"
    "  group_size: ${group_size}\n  symmetric: ${symmetric}\n",
    "prune": "family: pruning\nsteps:\n- _target_: squeeze.techniques.planted.Prune\n  sparsity: ${sparsity}\n",
    "learned": "family: pruning\ncalibrated: true\nsteps:\n- _target_: squeeze.techniques.planted.Prune\n"
    "  sparsity: ${sparsity}\n",
}


def place(folder, group, name, text):
    path = folder / group / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def plant(folder):
    """Write the choices, and the module of their techniques, which is read anew."""
    (folder / "planted.py").write_text(SOURCE)
    steps.find.cache_clear()
    for name, text in TECHNIQUES.items():
        place(folder, "technique", name, text)


def planned(own, *overrides):
    return cells(["model=tiny_llama", "protocol=smoke", *overrides], own)
