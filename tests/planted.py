"""A user's folder of choices: three techniques, which an installed plugin offers (fixture ``own``)."""

from squeeze.request.expand import cells
from tests.plugins import install

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
    "round": "family: quantization\nsteps:\n- _target_: planted:methods.Round\n  bits: ${bits}\n"
    "  group_size: ${group_size}\n  symmetric: ${symmetric}\n",
    "prune": "family: pruning\nsteps:\n- _target_: planted:methods.Prune\n  sparsity: ${sparsity}\n",
    "learned": "family: pruning\ncalibrated: true\nsteps:\n- _target_: planted:methods.Prune\n"
    "  sparsity: ${sparsity}\n",
}


def place(folder, group, name, text):
    path = folder / group / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def plant(folder):
    """Write the choices, and install the plugin of their techniques into ``folder/site``."""
    install(folder / "site", "planted", {"techniques/methods.py": SOURCE})
    for name, text in TECHNIQUES.items():
        place(folder, "technique", name, text)


def planned(own, *overrides):
    return cells(["model=tiny_llama", "protocol=smoke", *overrides], own)
