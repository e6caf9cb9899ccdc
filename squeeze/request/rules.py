"""Say which values are allowed, in words and as a test. Standard library only."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from squeeze.core.errors import SqueezeError, shown


@dataclass(frozen=True)
class Rule:
    """Define allowed values: ``allowed`` completes "expected ..."; ``holds`` tells whether a value is that."""

    allowed: str
    holds: Callable[[Any], bool]


def check_value(where: str, value: Any, rule: Rule) -> None:
    """Raise SqueezeError unless the rule holds for the value of the field called ``where``."""
    if not rule.holds(value):
        raise SqueezeError(f"{where}: {shown(value)} is not allowed; expected {rule.allowed}")


def is_integer(value: Any) -> bool:
    """Tell whether a value is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def at_least(least: int) -> Rule:
    """Allow integers from ``least`` up."""
    return Rule(f"an integer of at least {least}", lambda value: is_integer(value) and value >= least)


def at_most(most: int, name: str) -> Rule:
    """Allow what is not greater than the value of the field ``name``."""
    return Rule(f"at most {name}, {most}", lambda value: bool(value <= most))


def one_of(*values: str) -> Rule:
    """Allow these texts."""
    return Rule(f"one of {', '.join(values)}", lambda value: value in values)


def matching(allowed: str, pattern: str) -> Rule:
    """Allow texts that are, as a whole, what the regular expression says."""
    return Rule(allowed, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


def or_null(rule: Rule) -> Rule:
    """Allow null, too."""
    return Rule(f"{rule.allowed}, or null", lambda value: value is None or rule.holds(value))


def several(allowed: str, rule: Rule, least: int = 0) -> Rule:
    """Allow lists of at least so many different values, for each of which the rule holds."""
    return Rule(
        allowed,
        lambda value: (
            isinstance(value, list)
            and len(value) >= least
            and all(rule.holds(item) for item in value)
            and len(set(map(repr, value))) == len(value)
        ),
    )


POSITIVE = at_least(1)
EVEN = Rule("a positive even integer, such as 8", lambda value: is_integer(value) and value > 0 and value % 2 == 0)
BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
TEXT = Rule("a text", lambda value: isinstance(value, str) and value != "")
SCALAR = Rule(
    "a number, a text, true, false or null", lambda value: value is None or isinstance(value, int | float | str)
)
NAME = matching("a name of letters, digits, '_', '-' and '.'", r"[A-Za-z0-9][A-Za-z0-9_.-]*")
ABOVE_ZERO = Rule("a number above 0", lambda value: is_number(value) and value > 0)
