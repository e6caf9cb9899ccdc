"""A cell: one point of a sweep, as frozen, plain data. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from squeeze.core.hashing import digest

# Fields that name a thing for people; two cells that differ only here are the same cell.
LABELS = frozenset({"name", "family", "title", "description"})

# What a protocol asks beyond the rest where a technique reads text. Rows that differ only here can be compared.
CALIBRATED_ONLY = frozenset({"perplexity_ood"})
DEFAULT_CALIBRATION = "wikipedia"  # the name of the text that a label leaves out

# Fields of a step that trains, and the family of what is trained for comparison alone: the uncompressed model.
SCHEDULE = ("training_steps", "windows", "learning_rate")
CONTROL = "control"

UNCOMPRESSED: Mapping[str, Any] = {"name": "none", "family": "baseline", "steps": []}


@dataclass(frozen=True)
class Cell:
    """model x technique x calibration x runtime x protocol, all resolved to plain JSON values.

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
        """sha256 of the request without its labels: equal requests have equal keys."""
        return digest(_without_labels({entry.name: getattr(self, entry.name) for entry in fields(self)}))

    @cached_property
    def label(self) -> str:
        """A short name for people, such as ``smollm2_135m-rtn-4``; not unique."""
        return "-".join([self.model["name"], self.technique["name"], *self._variants()])

    def axis(self, name: str) -> Any:
        """The value of a field (``bits``, ``sparsity``, ...) in the first step that has it, else None."""
        return next((step[name] for step in self.technique["steps"] if name in step), None)

    @property
    def common_protocol(self) -> dict[str, Any]:
        """What rows that are compared have in common: the protocol without what calibrated ones are asked beyond it."""
        return {name: value for name, value in self.protocol.items() if name not in CALIBRATED_ONLY}

    @cached_property
    def training(self) -> str | None:
        """What a trained cell and its control share, as a sha256; None for a cell that trains nothing.

        A cell is trained where a step has a field of SCHEDULE. The hash covers the model in its dtype, the text,
        SCHEDULE, the protocol and the device.
        """
        steps = self.technique["steps"]
        schedule = {name: step[name] for step in steps for name in SCHEDULE if name in step}
        if not schedule:
            return None
        shared = [self.model, self.calibration, schedule, self.runtime["device"], self.common_protocol]
        return digest(_without_labels(shared))

    @property
    def is_control(self) -> bool:
        """Whether this is what trained cells are compared with."""
        return bool(self.technique["family"] == CONTROL)

    def baseline(self, dtype: str) -> Cell:
        """The same cell with the uncompressed model, held in ``dtype``."""
        return replace(
            self, model={**self.model, "dtype": dtype}, technique=dict(UNCOMPRESSED), calibration={}, replicate=0
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON data, from which ``from_json`` makes an equal cell."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Cell:
        """The cell that ``to_json`` described."""
        return cls(**data)

    def _variants(self) -> Iterator[str]:
        if not self.technique["steps"]:
            yield str(self.model["dtype"])
        if (bits := self.axis("bits")) is not None:
            yield str(bits)
        if (sparsity := self.axis("sparsity")) is not None:
            yield f"s{sparsity:g}"
        if self.axis("bits") is not None and any("group_size" in step for step in self.technique["steps"]):
            group_size = self.axis("group_size")
            yield f"g{group_size}" if group_size else "row"
        if self.axis("symmetric") is False:
            yield "asym"
        if self.axis("ranges") == "mse":
            yield "mse"
        if (embed_bits := self.axis("embed_bits")) is not None:
            yield f"e{embed_bits}"
        if self.axis("double_quant"):
            yield "dq"
        if (calibration := self.calibration.get("name", DEFAULT_CALIBRATION)) != DEFAULT_CALIBRATION:
            yield str(calibration)
        if self.replicate:
            yield f"r{self.replicate}"


def _without_labels(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_labels(item) for key, item in value.items() if key not in LABELS}
    if isinstance(value, list | tuple):
        return [_without_labels(item) for item in value]
    return value
