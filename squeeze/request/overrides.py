"""Read and apply overrides in Hydra's grammar: ``technique=rtn,gptq bits=8,4 +technique.steps.0.seed=1 ~replicate``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import count, islice
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    Override,
    OverrideType,
    QuotedString,
    RangeSweep,
    Sweep,
)
from hydra.errors import HydraException

from squeeze.core.errors import SqueezeError, hint, shown

# Characters of an override. Hydra's parser takes half a second for a list of them, for twice as many four times that.
LONGEST = 2**13
MOST_POINTS = 100_000  # of one grid: far beyond what anyone measures, and listed in seconds


@dataclass(frozen=True)
class Setting:
    """Hold one override. ``path`` is its dotted key, ``values`` what a grid crosses: one value unless it is swept."""

    path: tuple[str, ...]
    values: tuple[Any, ...]
    type: OverrideType

    @property
    def key(self) -> str:
        """Return the dotted key, as it was written."""
        return ".".join(self.path)


def parse(texts: Sequence[str], choices: Callable[[str], list[str]]) -> dict[str, Setting]:
    """Return the settings of a list of overrides, by key, in order. ``choices`` names what a group's glob() can match.

    Raises SqueezeError for what Hydra's grammar refuses, for a key given twice, and for what cannot be enumerated.
    """
    settings: dict[str, Setting] = {}
    for text in texts:
        setting = _setting(_parsed(text), choices)
        if setting.key in settings:
            raise SqueezeError(f"{setting.key!r} is given twice; sweep over values with {setting.key}=A,B")
        settings[setting.key] = setting
    return settings


def is_addition(setting: Setting) -> bool:
    """Tell whether the setting may name a key that is not there yet (``+`` or ``++``)."""
    return setting.type in (OverrideType.ADD, OverrideType.FORCE_ADD)


def is_plain_change(setting: Setting) -> bool:
    """Tell whether the setting was written without a sign."""
    return setting.type is OverrideType.CHANGE


def edited(node: Any, setting: Setting, value: Any, *, depth: int = 0) -> Any:
    """Return a copy of ``node`` whose value at the setting's path is ``value``; as in Hydra, + adds and ~ deletes.

    ``depth`` is how much of the path lies above ``node``. Raises SqueezeError when the path is not there (or, for
    ``+``, is there).
    """
    name, place = setting.path[depth], ".".join(setting.path[: depth + 1])
    key = int(name) if isinstance(node, list) and name.isdecimal() else name
    known = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
    if depth + 1 < len(setting.path):
        if key not in known:
            raise SqueezeError(f"unknown option {place!r}; {hint(name, map(str, known))}")
        return _with(node, key, edited(node[key], setting, value, depth=depth + 1))
    if key in known and setting.type is OverrideType.ADD:
        raise SqueezeError(f"{place!r} is there already; change it without '+'")
    if key not in known and not (is_addition(setting) and _extends(node, key)):
        raise SqueezeError(f"unknown option {place!r}; {hint(name, map(str, known))}")
    if setting.type is OverrideType.DEL:
        return _without(node, key)
    return _with(node, key, _merged(node[key], value) if key in known else value)


def _parsed(text: str) -> Override:
    if len(text) > LONGEST:
        raise SqueezeError(
            f"{shown(text)} is too long, expected at most {LONGEST:,} characters; write range(A,B) or a sweep file"
        )
    try:
        text.encode()
        return OverridesParser.create().parse_override(text)
    except (HydraException, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SqueezeError(f"{shown(text)} is not an override: {reason}; write KEY=VALUE, as in bits=8,4") from error


def _setting(override: Override, choices: Callable[[str], list[str]]) -> Setting:
    key = override.key_or_group
    if override.package is not None or key.startswith(("hydra.", "hydra/")):
        raise SqueezeError(f"{shown(override.input_line)} is about Hydra's own layout, which squeeze does not read")
    if override.is_delete() and override.value_type is not None:
        raise SqueezeError(f"{shown(override.input_line)}: to delete, write ~{key} without a value")
    values = _values(override, choices(key))
    if not 0 < len(values) <= MOST_POINTS:
        raise SqueezeError(
            f"{shown(override.input_line)} names {len(values)} values or more; expected 1 to {MOST_POINTS}"
        )
    return Setting(tuple(key.split(".")), values, override.type)


def _values(override: Override, choices: list[str]) -> tuple[Any, ...]:
    value: Any = override.value()
    if isinstance(value, Glob):
        return tuple(value.filter(choices))
    if isinstance(value, ChoiceSweep):
        return tuple(map(_plain, value.list))
    if isinstance(value, RangeSweep):
        return tuple(islice(_range(value), MOST_POINTS + 1))
    if isinstance(value, Sweep):
        raise SqueezeError(
            f"{shown(override.input_line)} cannot be enumerated; write the values out, or range(START,STOP)"
        )
    return (value,)


def _range(sweep: RangeSweep) -> Iterator[int | float]:
    """Yield values from start up (or down) to stop, excluding it, in decimals: 0.3 and no 0.30000000000000004."""
    start, stop, step = (Decimal(str(bound)) for bound in (sweep.start, sweep.stop, sweep.step))
    if step == 0 or not all(bound.is_finite() for bound in (start, stop, step)):
        raise SqueezeError(
            f"range({start},{stop},{step}) cannot be enumerated; expected finite numbers, and a step but 0"
        )
    whole = all(isinstance(bound, int) for bound in (sweep.start, sweep.stop, sweep.step))
    for index in count():
        value = start + index * step
        if (value >= stop) if step > 0 else (value <= stop):
            return
        yield int(value) if whole else float(value)


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _extends(node: Any, key: str | int) -> bool:
    return key == len(node) if isinstance(node, list) else isinstance(node, dict)


def _with(node: Any, key: Any, value: Any) -> Any:
    if isinstance(node, dict):
        return {**node, key: value}
    return [*node[:key], value, *node[key + 1 :]]


def _without(node: Any, key: Any) -> Any:
    if isinstance(node, dict):
        return {name: item for name, item in node.items() if name != key}
    return [*node[:key], *node[key + 1 :]]


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new
