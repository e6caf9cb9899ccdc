"""From the plain data of a step to the technique that it names. Imports torch, through the technique's module."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from squeeze.core.errors import SqueezeError
from squeeze.models.subject import Subject
from squeeze.request.steps import check_step
from squeeze.techniques.calibration import Calibration


class Technique(Protocol):
    """A frozen dataclass under squeeze.techniques; its fields are the keys of its YAML."""

    def apply(self, subject: Subject, calibration: Calibration) -> Subject:
        """The compressed subject. Raises Unsupported before doing any work."""
        ...


def resolve_step(step: Mapping[str, Any]) -> Technique:
    """The technique of a step such as ``{_target_: squeeze.techniques.quantization.rtn.RoundToNearest, bits: 4}``.

    Raises SqueezeError for any target that is not a technique of our own (see ``request.steps.check_step``; here the
    resolved object is checked as well, so no alias passes), and for fields that it does not take.
    """
    target = check_step(step)
    made: Any = vars(importlib.import_module(target.module)).get(target.name)
    if not _is_technique(made) or (made.__module__, made.__qualname__) != (target.module, target.name):
        raise SqueezeError(f"{step['_target_']!r} is refused: not a technique that is defined in {target.module}")
    technique: Technique = made(**{name: value for name, value in step.items() if name != "_target_"})
    return technique


def _is_technique(made: Any) -> bool:
    return isinstance(made, type) and dataclasses.is_dataclass(made) and callable(getattr(made, "apply", None))
