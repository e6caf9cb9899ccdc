"""Define what the fields of a record may hold: all that its readers take for granted, and no more.

A record comes from anywhere: another machine, another version, a disk that filled up, somebody who wants rank 1. One
that its readers would stumble over is refused when it is read, so that it spoils nothing of the others. Whether its
figures can be true is another question (`squeeze.audit.plausible`). Standard library and msgspec only.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from squeeze.records.sanitize import STEERING, STEERS, line
from squeeze.request import axes

if TYPE_CHECKING:
    from squeeze.records.record import Record

EXACT = 2**53  # integers up to here are the same ones as float64
LARGEST = 2**63 - 1  # integers that tables can hold
DEEPEST = 8  # objects and lists within each other, in the parts of free form

Amount = Annotated[int, Meta(ge=-EXACT, le=EXACT)] | float  # counts, such as bytes, stay exact
Count = Annotated[int, Meta(ge=0, le=EXACT)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Loss = Annotated[float, Meta(ge=-1e4, le=1e4)]  # nats; of a model that has not diverged, 128 blocks together have less
Seconds = Annotated[float, Meta(ge=-1e9, le=1e9)]
Answers = Annotated[str, Meta(pattern=r"\A([1-9]\d{0,3}:[0-9a-f]+)?\Z", max_length=2100)]  # see `records.items`
Word = Annotated[str, Meta(pattern=rf"\A[^{STEERING}]*\Z", max_length=300)]
Name = Annotated[str, Meta(pattern=r"\A[\w.+-]+\Z", max_length=100)]
Family = Annotated[str, Meta(pattern=rf"\A[^{STEERING}]*\Z", max_length=60)]  # it names a leaderboard's file
Key = Annotated[str, Meta(pattern=rf"\A[^/\\{STEERING}]+\Z", max_length=300)]  # it names a folder of the cache
Moment = Annotated[str, Meta(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?\Z")]  # sorts as text
Figure = Amount | None

# In JSON: a control character, and not a backslash before a letter.
ESCAPED = re.compile(r"(?<!\\)(?:\\\\)*\\[bfnrtu]")

# Columns that boards compute of all rows, or of what a reader asks for: no record brings its own.
COMPUTED = re.compile(
    r"rank(_low|_high)?|group|coverage|margins|verdict_reason|control|control_.*|(perplexity|acc)_over_control.*"
    r"|cost_per_.*|max_context_estimated|price_per_hour|memory_budget_bytes|.+_(low|high|p_value|verdict|within|detectable)"
)
# Columns that boards compute with: neither words nor booleans.
FIGURES = re.compile(
    r"bits|sparsity|group_size|effective_bits|block_effective_bits|compression_ratio|bits_per_byte|mbu|mfu|.*bytes"
    r"|(kl|top1|acc)_.+|perplexity.*|.+_seconds|training_tokens|training_joules|trainable_(parameters|share)"
    r"|(decode_tokens_per_s|(decode|ttft)_speedup|ttft_ms|itl_p\d+_ms"
    r"|items_per_s|encode_(ms|speedup)|energy_j_per_token)(_b\d+)?|ttft_(ms|speedup)_at_\d+"
    r"|(accepted_tokens|acceptance)(_\w+)?|drafting_speedup_\w+"
)


class _Samples(TypedDict, total=False):
    file: Annotated[str, Meta(pattern=rf"\A[^/\\{STEERING}]+\.npz\Z", max_length=255)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class _Model(TypedDict):
    name: Word
    dtype: Word
    source: NotRequired[Word]


class _Technique(TypedDict):
    name: Word
    family: Family
    steps: list[dict[str, Any]]
    draft: NotRequired[list[dict[str, Any]]]


class _Calibration(TypedDict):
    name: NotRequired[Word]


class _Runtime(TypedDict):
    device: Word


class _Latency(TypedDict):
    prompt_tokens: NotRequired[Annotated[int, Meta(ge=1, le=EXACT)]]


class _Protocol(TypedDict):
    name: Word
    seed: NotRequired[Count]
    latency: NotRequired[_Latency]
    perplexity: NotRequired[dict[str, Any]]


class _Request(TypedDict):
    model: _Model
    technique: _Technique
    runtime: _Runtime
    protocol: _Protocol
    calibration: NotRequired[_Calibration]
    replicate: NotRequired[Count]


class _Software(TypedDict):
    versions: NotRequired[dict[str, str]]


class _Environment(TypedDict):
    hardware: dict[str, Any]
    software: _Software


class _Claimed(TypedDict):
    bits: NotRequired[Figure]
    sparsity: NotRequired[Figure]


class _Step(TypedDict):
    step: Word
    perplexity_held_out: NotRequired[Figure]
    accuracy_held_out: NotRequired[Figure]


class _Realised(TypedDict):
    noise_floor: NotRequired[Word]
    speed_baseline: NotRequired[Word]
    steps: NotRequired[list[_Step]]


# What readers take for granted in the parts of free form, which may hold more.
FREE = {"cell": _Request, "environment": _Environment, "claimed": _Claimed, "realised": _Realised, "samples": _Samples}


def check(record: Record) -> None:
    """Raise ValueError where a record whose fields have their types holds what some reader would stumble over."""
    for part, granted in FREE.items():
        found = getattr(record, part)
        try:
            _check_plain(found, part)
            msgspec.convert(found, granted)
        except msgspec.ValidationError as error:
            raise ValueError(f"{part}: {error}") from error
    datetime.fromisoformat(record.started)
    datetime.fromisoformat(record.finished)
    if record.samples and record.samples.keys() != {"file", "sha256"}:
        raise ValueError("samples without file or sha256")
    _check_steps([*record.cell["technique"]["steps"], *record.cell["technique"].get("draft", ())])
    _check_answers(record.item_correct)
    for name, estimate in record.estimates.items():
        _check_column("estimates", name, estimate.value)
        if (estimate.low is None) != (estimate.high is None):
            raise ValueError(f"estimates.{name} has one end of an interval, expected both or neither")
    for name, value in record.realised.items():
        _check_column("realised", name, value)


def in_words(error: Exception) -> str:
    """Return what an error says, on one line: without the expressions that words are matched with."""
    said = re.sub(r"`str` matching regex '.*'", "another kind of word", line(str(error)))
    return f"no {said}" if isinstance(error, KeyError) else said


def _check_plain(value: Any, where: str) -> None:
    """Check data of free form: how deep it is, its numbers, and that its words cannot steer a terminal."""
    _check_tree(value, where, DEEPEST)
    text = msgspec.json.encode(value).decode()  # to search in once
    printable = text.isascii() and "\x7f" not in text
    if ("\\" in text and ESCAPED.search(text)) or not (printable or STEERS.search(text) is None):
        raise ValueError(f"{where} holds a control character")


def _check_tree(value: Any, where: str, deepest: int) -> None:
    if not deepest:
        raise ValueError(f"{where} is nested deeper than {DEEPEST}")
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list, tuple)):
            _check_tree(item, where, deepest - 1)
        elif type(item) is int and abs(item) > LARGEST:
            raise ValueError(f"{where} holds an integer beyond {LARGEST:,}")


def _check_steps(steps: list[dict[str, Any]]) -> None:
    """Check that the values of axes are scalars, which labels and columns show."""
    for step in steps:
        for name in axes.of_steps() & step.keys():
            if isinstance(step[name], dict | list):
                raise ValueError(f"cell.technique.steps: {name} is {type(step[name]).__name__}, expected a scalar")  # noqa: TRY004


def _check_answers(text: str) -> None:
    count, _, digits = text.partition(":")
    if text and len(digits) != 2 * -(-int(count) // 8):
        raise ValueError(f"item_correct has {len(digits)} digits for {count} items, expected {2 * -(-int(count) // 8)}")


def _check_column(where: str, name: str, value: Any) -> None:
    """Check a value that becomes a board's column: it must not spoil what the board computes of all rows."""
    if _is_computed(name):
        raise ValueError(f"{where}.{name} has the name of a column that boards compute")
    if isinstance(value, bool | str):
        if _is_figure(name):
            raise ValueError(f"{where}.{name} is {type(value).__name__}, expected a number")
    elif isinstance(value, int | float) and abs(value) > EXACT and name.endswith("bytes"):
        raise ValueError(f"{where}.{name} is {value:.3g}, expected at most {EXACT:.3g}")


@lru_cache(4096)
def _is_computed(name: str) -> bool:
    return COMPUTED.fullmatch(name) is not None


@lru_cache(4096)
def _is_figure(name: str) -> bool:
    return FIGURES.fullmatch(name) is not None
