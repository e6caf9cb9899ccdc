"""Tabulate what can be swept: one entry an axis, beside its default, which is a line of conf/config.yaml.

An entry serves the check of values (``schema``), a cell's label (``cell``), the columns of ``squeeze list``
(``runner.listing``) and of the leaderboards (``boards.table``), and ``squeeze axes``. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from squeeze.request.rules import ABOVE_ZERO, BOOLEAN, POSITIVE, Rule, at_least, is_integer, is_number, one_of, or_null
from squeeze.request.rules import matching as text

STEP, MODEL, RUNTIME, CELL = "step", "model", "runtime", "cell"  # of what the axis is a field
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """Describe one thing that a sweep can vary.

    help: what it means, for people. kind: of what it is a field: of a technique's step, the model, the runtime or the
    cell itself. label: what of its value stands in a cell's label, beside the values of the other axes that the cell
    has; None: nothing, for this value or at all. heading: of its column in ``squeeze list``, where null reads as
    ``null``; None: it has none. column: of the leaderboards, whose values are numbers; None: it has none.
    """

    name: str
    rule: Rule
    help: str
    kind: str = STEP
    label: Callable[[Any, Values], str | None] | None = None
    heading: str | None = None
    null: str = ""
    column: str | None = None


def _group_label(group_size: Any, values: Values) -> str | None:
    """Label a group of weights that share a scale; None where there are no bits: it tells nothing there."""
    if values.get("bits") is None:
        return None
    return f"g{group_size}" if group_size else "row"


def _alpha_label(alpha: Any, values: Values) -> str | None:
    """Label the teacher's share of a loss; None where nobody is taught: other techniques have an alpha, too."""
    return None if alpha == 1 or "divergence" not in values else f"a{alpha:g}"


DTYPE = one_of("float32", "bfloat16", "float16")
DEVICE = text("auto, cpu, cuda or cuda:N", r"auto|cpu|cuda(:\d+)?")
THREADS = or_null(POSITIVE)
NUMBER = Rule("a number", is_number)

# In the order in which they stand in labels and columns.
AXES: tuple[Axis, ...] = (
    Axis("dtype", DTYPE, "the baseline's weights, and what is computed in", MODEL, label=lambda value, _: str(value)),
    Axis(
        "bits",
        Rule("an integer from 1 to 16", lambda value: is_integer(value) and 1 <= value <= 16),
        "of a code, which stands for a weight, an activation, or a key or value in the cache",
        label=lambda value, _: None if value is None else str(value),
        heading="bits",
        column="bits",
    ),
    Axis(
        "gguf_type",
        text("a type of llama.cpp's quantizer, such as Q4_K_M", r"I?Q[1-8]_[A-Z0-9_]+"),
        "what llama.cpp's quantizer makes of a model",
        label=lambda value, _: str(value),
    ),
    Axis(
        "sparsity",
        Rule("a number from 0 to below 1", lambda value: is_number(value) and 0 <= value < 1),
        "share of weights set to zero",
        label=lambda value, _: None if value is None else f"s{value:g}",
        heading="sparsity",
        column="sparsity",
    ),
    Axis(
        "group_size",
        Rule("a positive integer, or null for one group per row", lambda value: value is None or POSITIVE.holds(value)),
        "weights that share a scale",
        label=_group_label,
        heading="group",
        null="row",
        column="group_size",
    ),
    Axis(
        "rank",
        POSITIVE,
        "of low-rank adapters (LoRA, EoRA, LQER)",
        label=lambda value, _: None if value is None else f"rank{value}",
    ),
    Axis(
        "symmetric",
        BOOLEAN,
        "codes around zero, without a zero point",
        label=lambda value, _: "asym" if value is False else None,
    ),
    Axis(
        "grid",
        one_of("signed", "absmax"),
        "of symmetric codes: signed, its outermost code on the largest weight, or absmax, the libraries' +-max",
        label=lambda value, _: value if value == "absmax" else None,
    ),
    Axis(
        "ranges",
        one_of("minmax", "mse"),
        "of a group: its own, or the one of least squared rounding error",
        label=lambda value, _: value if value == "mse" else None,
    ),
    Axis(
        "embed_bits",
        Rule("8, 4, or null", lambda value: value is None or (is_integer(value) and value in (8, 4))),
        "of token embedding and head; null: as they are",
        label=lambda value, _: None if value is None else f"e{value}",
    ),
    Axis(
        "budget",
        Rule("a number from 1 to 16", lambda value: is_number(value) and 1 <= value <= 16),
        "bits a weight on average, where layers differ in them",
    ),
    Axis(
        "layers_kept",
        Rule("a number above 0, at most 1", lambda value: is_number(value) and 0 < value <= 1),
        "share of the blocks that stay, where a technique drops whole ones",
        label=lambda value, _: None if value is None else f"layers{value:g}",
    ),
    Axis(
        "weights_kept",
        Rule("a number above 0, at most 1", lambda value: is_number(value) and 0 < value <= 1),
        "share of the weights that stay: of a matrix's, in two factors; of the blocks', in whole neurons and heads",
        label=lambda value, _: None if value is None else f"kept{value:g}",
    ),
    Axis(
        "hidden_kept",
        Rule("a number above 0, at most 1", lambda value: is_number(value) and 0 < value <= 1),
        "share of the hidden dimensions that stay, where a technique slices them",
        label=lambda value, _: None if value is None else f"hidden{value:g}",
    ),
    Axis(
        "neurons_kept",
        Rule("a number above 0, at most 1", lambda value: is_number(value) and 0 < value <= 1),
        "share of the neurons of each MLP that stay, where a technique removes whole ones",
        label=lambda value, _: None if value is None else f"neurons{value:g}",
    ),
    Axis(
        "heads_kept",
        Rule("a number above 0, at most 1", lambda value: is_number(value) and 0 < value <= 1),
        "share of the heads of each block that stay, where a technique removes whole ones",
        label=lambda value, _: None if value is None else f"heads{value:g}",
    ),
    Axis(
        "cache_tokens",
        POSITIVE,
        "the most tokens whose keys and values are held, where a technique forgets some",
        label=lambda value, _: None if value is None else f"c{value}",
    ),
    Axis(
        "visual_kept",
        Rule("a number above 0, at most 1", lambda value: is_number(value) and 0 < value <= 1),
        "share of a picture's tokens that stay, where a technique leaves some out",
        label=lambda value, _: None if value is None else f"visual{value:g}",
    ),
    Axis(
        "drafted_tokens",
        Rule("an integer from 1 to 64", lambda value: is_integer(value) and 1 <= value <= 64),
        "that are guessed before the model verifies them, at most, where a technique drafts",
        label=lambda value, _: None if value is None else f"d{value}",
    ),
    Axis(
        "damping_of",
        one_of("own", "mean"),
        "of a Hessian's diagonal: own, each element's share of itself, or mean, of the diagonal's mean",
        label=lambda value, _: value if value == "mean" else None,
    ),
    Axis("double_quant", BOOLEAN, "quantize the scales too", label=lambda value, _: "dq" if value else None),
    Axis(
        "divergence",
        one_of("forward", "reverse", "jsd"),
        "of distillation: KL of teacher to student (forward), of student to teacher (reverse), or between (jsd)",
        label=lambda value, _: None if value == "forward" else value,
    ),
    Axis(
        "temperature",
        ABOVE_ZERO,
        "of distillation: at which a student's predictions are compared with its teacher's",
        label=lambda value, _: None if value == 1 else f"t{value:g}",
    ),
    Axis("alpha", NUMBER, "of distillation: the teacher's share of the loss, not the text's", label=_alpha_label),
    Axis("training_steps", POSITIVE, "of the optimizer, where a technique trains"),
    Axis("learning_rate", ABOVE_ZERO, "of the optimizer, where a technique trains"),
    Axis("device", DEVICE, "where everything runs; auto: cuda when there is one, else cpu", RUNTIME),
    Axis("threads", THREADS, "of the processor; null: as many as this process may use", RUNTIME),
    Axis(
        "replicate",
        at_least(0),
        "tells deliberate repetitions of one cell apart",
        CELL,
        label=lambda value, _: f"r{value}" if value else None,
    ),
)


def rules() -> dict[str, Rule]:
    """Map each axis to the rule for its values."""
    return {axis.name: axis.rule for axis in AXES}


def of_steps() -> set[str]:
    """Return the names of the axes that are fields of a technique's steps."""
    return {axis.name for axis in AXES if axis.kind == STEP}


def headings() -> dict[str, Axis]:
    """Map the headings that ``squeeze list`` has for axes to them."""
    return {axis.heading: axis for axis in AXES if axis.heading is not None}


def columns() -> dict[str, Axis]:
    """Map the columns that leaderboards have for axes to them."""
    return {axis.column: axis for axis in AXES if axis.column is not None}


def label_parts(values: Values) -> list[str]:
    """List what tells a cell with these values, by axis, from its kin: such as ``4``, ``g64`` and ``asym``."""
    shown = (axis.label(values[axis.name], values) for axis in AXES if axis.label and axis.name in values)
    return [part for part in shown if part is not None]


def shown(axis: Axis, step_values: Values) -> str:
    """Return what ``squeeze list`` shows of an axis for a cell whose steps have these values."""
    if axis.name not in step_values:
        return ""
    value = step_values[axis.name]
    return axis.null if value is None else str(value)


def described(defaults: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, default, allowed values and meaning of each axis. defaults: the scalars of config.yaml."""
    for axis in AXES:
        default = defaults.get(axis.name)
        yield axis.name, default if isinstance(default, str) else json.dumps(default), axis.rule.allowed, axis.help
