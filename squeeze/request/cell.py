"""Hold one point of a sweep as frozen, plain data, known by its content. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from squeeze.core.hashing import digest
from squeeze.request import axes

# Fields that name a thing for people; two cells that differ only here are the same cell.
LABELS = frozenset({"name", "family", "title", "description"})

# What a protocol asks beyond the rest where a technique reads text. Rows that differ only here can be compared.
CALIBRATED_ONLY = frozenset({"perplexity_ood"})
DEFAULT_CALIBRATION = "wikipedia"  # the name of the text that a label leaves out

# Fields of a step that trains, and the family of what is trained for comparison alone: the uncompressed model.
STEPS = "training_steps"
SCHEDULE = (STEPS, "windows", "learning_rate")
CONTROL = "control"
DRAFT = "draft"  # of a technique: the steps that make the model which guesses its tokens

# What every row is compared with: the model as it comes, run as transformers runs it.
EAGER: Mapping[str, Any] = {"name": "eager", "_target_": "eager.Eager"}
MACHINE = ("device", "threads")  # fields of a runtime that say what of the machine it has
UNCOMPRESSED: Mapping[str, Any] = {"name": "none", "family": "baseline", "steps": []}


@dataclass(frozen=True)
class Cell:
    """Hold model x technique x calibration x runtime x protocol, all resolved to plain JSON values.

    ``replicate`` tells apart deliberate repetitions of one request (an A/A sweep uses 0-11).
    """

    model: Mapping[str, Any]
    technique: Mapping[str, Any]
    calibration: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    replicate: int = 0

    @cached_property
    def key(self) -> str:
        """Return the sha256 of the request without its labels: equal requests have equal keys."""
        return digest(_without_labels({entry.name: getattr(self, entry.name) for entry in fields(self)}))

    @cached_property
    def label(self) -> str:
        """Return a short name for people, such as ``smollm2_135m-rtn-4``; not unique."""
        # What holds for all of a sweep, such as the runtime, is no part of it; nor is the dtype of what is compressed.
        dtype = {} if self.technique["steps"] else {"dtype": self.model["dtype"]}
        parts = axes.label_parts({**dtype, **self.step_values})
        text = self.calibration.get("name", DEFAULT_CALIBRATION)
        parts += [] if text == DEFAULT_CALIBRATION else [str(text)]
        parts += axes.label_parts({"replicate": self.replicate})
        return "-".join([self.model["name"], self.technique["name"], *parts])

    def axis(self, name: str) -> Any:
        """Return the value of a field (``bits``, ``sparsity``, ...) in the first step that has it, else None."""
        return next((step[name] for step in self.technique["steps"] if name in step), None)

    @property
    def step_values(self) -> dict[str, Any]:
        """Map each axis that is a field of a step to its value in the first step that has it; the draft's come last."""
        names = axes.of_steps()
        steps = reversed([*self.technique["steps"], *self.technique.get(DRAFT, ())])
        return {name: value for step in steps for name, value in step.items() if name in names}

    @property
    def draft(self) -> Cell | None:
        """Return the cell whose artifact guesses this one's tokens; None where none does."""
        steps = self.technique.get(DRAFT)
        if not steps:
            return None
        technique = {"name": f"{self.technique['name']}.{DRAFT}", "family": self.technique["family"], "steps": steps}
        return replace(self, technique=technique, replicate=0)

    @property
    def drafts(self) -> bool:
        """Tell whether a step of its lets it guess tokens before it verifies them."""
        return self.axis("drafted_tokens") is not None

    @property
    def model_identity(self) -> dict[str, Any]:
        """Return what the models of rows that are compared have in common: all but the dtype."""
        return {name: value for name, value in self.model.items() if name != "dtype"}

    @property
    def runtime_identity(self) -> dict[str, Any]:
        """Return what a figure depends on of the runtime: all but its name."""
        return {name: value for name, value in self.runtime.items() if name != "name"}

    @property
    def eager_runtime(self) -> dict[str, Any]:
        """Return the runtime of what the cell is compared with: eager, with as much of the machine."""
        return {**EAGER, **{name: self.runtime[name] for name in MACHINE if name in self.runtime}}

    @property
    def is_eager(self) -> bool:
        """Tell whether it runs as what it is compared with runs."""
        return self.runtime_identity == {name: value for name, value in self.eager_runtime.items() if name != "name"}

    @property
    def common_protocol(self) -> dict[str, Any]:
        """Return the protocol that compared rows have in common: without what calibrated ones are asked beyond it."""
        return {name: value for name, value in self.protocol.items() if name not in CALIBRATED_ONLY}

    @cached_property
    def training(self) -> str | None:
        """Return what a trained cell and its control share, as a sha256; None for a cell that trains nothing.

        A cell is trained where a step has a field of SCHEDULE. The hash covers the model in its dtype, the text,
        SCHEDULE (of several such steps that of all together), the protocol and the device.
        """
        schedules = [{name: step[name] for name in SCHEDULE if name in step} for step in self.technique["steps"]]
        if not any(schedules):
            return None
        schedule = _as_one([each for each in schedules if each])
        shared = [self.model, self.calibration, schedule, self.runtime["device"], self.common_protocol]
        return digest(_without_labels(shared))

    @property
    def is_classifier(self) -> bool:
        """Tell whether the model puts texts into classes: it has accuracy where others have perplexity."""
        return bool(self.model.get("kind") == "classifier")

    @property
    def generates(self) -> bool:
        """Tell whether the model continues texts; others see one as a whole."""
        return self.model.get("kind") in ("causal_lm", "vision_language")

    @property
    def is_control(self) -> bool:
        """Tell whether this is what trained cells are compared with."""
        return bool(self.technique["family"] == CONTROL)

    def baseline(self, dtype: str) -> Cell:
        """Return what the cell is compared with: the uncompressed model, held in ``dtype`` and run eagerly.

        Whatever its own runtime is, so that a speed-up says what its user gains.
        """
        return replace(
            self,
            model={**self.model, "dtype": dtype},
            technique=dict(UNCOMPRESSED),
            calibration={},
            runtime=self.eager_runtime,
            replicate=0,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON data, from which ``from_json`` makes an equal cell."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """Return the cell that ``to_json`` described."""
        return cls(**data)


def _as_one(schedules: Sequence[Mapping[str, Any]]) -> Any:
    """Return the schedule of a control that is trained as the steps with these are together: with all their steps.

    Where they differ in anything else no control is, and the list of them is no control's.
    """
    first = schedules[0]
    if len(schedules) == 1:
        return first
    if any({**each, STEPS: 0} != {**first, STEPS: 0} for each in schedules):
        return list(schedules)
    return {**first, STEPS: sum(each.get(STEPS, 0) for each in schedules)}


def _without_labels(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_labels(item) for key, item in value.items() if key not in LABELS}
    if isinstance(value, list | tuple):
        return [_without_labels(item) for item in value]
    return value
