"""Keep the state of a training in a file, whole or not at all, from which a killed one goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from squeeze.core.files import replacing
from squeeze.techniques.contract import Point

PROGRESS = "progress"  # of a file's metadata: all that is no tensor


@dataclass
class State:
    """Hold what is trained, its optimizer, and what has come of it so far.

    curve: a point for each step done and, where there are held-out windows, one before the first. best: copies of the
    parameters where the held-out loss was least; empty where nobody asked for them. seconds: that the steps took,
    without the looks at held-out windows; joules: likewise, None where some were not counted.
    """

    parameters: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    curve: list[Point] = field(default_factory=list)
    best: list[torch.Tensor] = field(default_factory=list)
    seconds: float = 0.0
    joules: float | None = 0.0

    @property
    def steps(self) -> int:
        """Return how many steps are done."""
        return self.curve[-1].step if self.curve else 0

    @property
    def waited(self) -> int:
        """Return how often the held-out windows were looked at since they were predicted best; they were, once."""
        losses = [point.held_out for point in self.curve if point.held_out is not None]
        return len(losses) - 1 - losses.index(min(losses))

    def add(self, point: Point, *, keeps_best: bool) -> None:
        """Add a point to the curve. keeps_best: copy the parameters where its held-out loss is the least so far."""
        self.curve.append(point)
        if keeps_best and point.held_out is not None and self.waited == 0:
            self.best = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def go_back_to_best(self) -> None:
        """Give the parameters the values that they had where the held-out loss was least, if those were kept."""
        for parameter, value in zip(self.parameters, self.best, strict=False):
            parameter.copy_(value)

    def save(self, path: Path) -> None:
        """Write the state to a file."""
        tensors = {f"parameter.{i}": parameter.detach() for i, parameter in enumerate(self.parameters)}
        tensors |= {f"best.{i}": tensor for i, tensor in enumerate(self.best)}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"state.{i}.{name}": tensor for name, tensor in state.items()}
        progress = {"curve": self.curve, "seconds": self.seconds, "joules": self.joules}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={PROGRESS: json.dumps(progress)})

    @torch.no_grad()
    def restore(self, path: Path) -> None:
        """Take over the state that ``save`` wrote."""
        states: dict[int, dict[str, torch.Tensor]] = {i: {} for i in range(len(self.parameters))}
        best: dict[int, torch.Tensor] = {}
        with safe_open(path, framework="pt") as file:
            for i, parameter in enumerate(self.parameters):
                parameter.copy_(file.get_tensor(f"parameter.{i}"))
            for key in file.keys():  # noqa: SIM118 - not a mapping
                kind, number, *name = key.split(".")
                if kind == "state":
                    states[int(number)][name[0]] = file.get_tensor(key).clone()
                elif kind == "best":
                    best[int(number)] = file.get_tensor(key).to(self.parameters[int(number)].device, copy=True)
            progress = json.loads(file.metadata()[PROGRESS])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.curve = [Point(*point) for point in progress["curve"]]
        self.best = [best[i] for i in sorted(best)]
        self.seconds, self.joules = progress["seconds"], progress["joules"]
