"""Make one table of records: the newest official attempt of each cell, joined into boards, ranked, with verdicts.

A *board* is a set of rows that may be compared: same model (in whatever dtype), protocol and fingerprint, their own or
that of the eager rows that they were timed beside. Nothing is ranked, tested or counted across boards.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from squeeze.boards import controls, terms
from squeeze.boards.terms import Terms
from squeeze.core.hashing import digest
from squeeze.records.answers import ACCURACY, FAILED, PERPLEXITY, SPEED, Estimates, Kind, Margins, answers, kind
from squeeze.records.items import unpacked
from squeeze.records.plausibility import implausible
from squeeze.records.ranking import Ranking, ranking, ranking_by_answers
from squeeze.records.record import (
    BESIDE,
    DECODES_OTHERWISE,
    ENCODES_OTHERWISE,
    IMPLAUSIBLE,
    NOT_CAUSAL,
    UNRANKED,
    WARMING,
    Record,
    Row,
    Status,
)
from squeeze.records.statistics import holm
from squeeze.records.store import RecordStore
from squeeze.request import axes
from squeeze.request.cell import Cell
from squeeze.request.labels import Labelled, distinct

BOUNDS = ("low", "high", "p_value", "n")
VERDICT = ("verdict", "within", "detectable")


def _compared(name: str) -> tuple[str, ...]:
    """Return the columns of an estimate that has a verdict."""
    return (name, *(f"{name}_{part}" for part in (*BOUNDS, *VERDICT)))


REQUESTED = axes.columns()  # numbers where a technique has them, else missing
COLUMNS = (
    *("rank", "rank_low", "rank_high", "group"),
    *("model", "technique", "family", "label", "dtype", *REQUESTED, "effective_bits"),
    *("bytes", "compression_ratio", "load_peak_bytes", "prefill_peak_bytes", "decode_peak_bytes"),
    *("ttft_ms", *_compared("ttft_speedup"), "decode_tokens_per_s", *_compared("decode_speedup")),
    *("perplexity", *_compared("perplexity_delta"), "bits_per_byte", "kl_divergence", "top1_agreement"),
)
LAST_COLUMNS = (
    *("build_seconds", "build_peak_bytes", "bytes_real", "memory_real", "compute_real", "batch_dependent"),
    *("speed_baseline", "verdict_reason", "margins", "flags"),
    *("coverage", "status", "stage", "reason", "isolation", "protocol", "device"),
    *("fingerprint", "board", "key", "artifact_key", "attempt", "finished"),
)
RUNTIME = ("runtime", BESIDE)  # columns of a table whose rows run in several runtimes, beside the eager one
WARMED_UP_NEVER = "every process moved the same way by over 10 %"
# Flags that leave a kind of figure without a verdict.
VETOES: Mapping[Kind, tuple[str, ...]] = {
    SPEED: (WARMING, DECODES_OTHERWISE, ENCODES_OTHERWISE),
    PERPLEXITY: (IMPLAUSIBLE, NOT_CAUSAL),
    ACCURACY: (IMPLAUSIBLE, NOT_CAUSAL),
}
READING_ORDER = ["model", "protocol", "device", "fingerprint", "board", "rank", "perplexity", "label", "key", "attempt"]
COUNTS = ("bytes", "training_tokens", "trainable_parameters")  # beside all sizes: whole numbers
ROWS_AT_ONCE = 5_000  # dicts turned into columns together: bounds the memory of 100,000 records


def read(results: Path, asked: Terms = terms.NONE) -> pd.DataFrame:
    """Read the table of a results folder; files there that are no records are named on stderr and left alone.

    asked: terms of the reader; what follows from them stands in columns of its own.
    Raises SqueezeError when there is not one record.
    """
    return table(map(asked.applied, RecordStore(results).require()), asked.margins)


def table(records: Iterable[Record], margins: Margins | None = None) -> pd.DataFrame:
    """Return a row for the attempt that counts of each (cell, artifact, fingerprint), in the order of the boards.

    Columns: COLUMNS, acc_<task> and acc_<task>_stderr, LAST_COLUMNS with every further scalar of the records before
    them; where rows are trained, those of ``controls.joined``, too, and RUNTIME where some were timed beside another
    runtime. Values that a row does not have are missing. Verdicts are by ``margins`` (default: Margins()), which each
    row names.
    """
    rows = map(_row, records)
    frames = [pd.DataFrame(part) for part in iter(lambda: list(islice(rows, ROWS_AT_ONCE)), [])]
    if not frames:
        return pd.DataFrame(columns=[*COLUMNS, *LAST_COLUMNS])
    frame = controls.joined(_newest(pd.concat(frames, ignore_index=True)))
    place = frame[BESIDE]
    if (place == frame["fingerprint"]).all():
        frame = frame.drop(columns=list(RUNTIME))
    frame["label"] = distinct(list(frame.pop("labelled")))
    found = {**_ranks(frame), "coverage": _coverage(frame), **_verdicts(frame, margins or Margins())}
    frame = _arranged(frame.assign(**found).drop(columns=["block_nll", "item_correct", "training", "doubt"]))
    wrong = 1 - frame["acc_pooled"] if "acc_pooled" in frame else np.nan  # what orders classifiers of one rank
    filled = frame.assign(perplexity=frame["perplexity"].fillna(wrong), fingerprint=place)
    order = filled.sort_values(READING_ORDER, na_position="last")
    return frame.loc[order.index].reset_index(drop=True)


def _row(record: Record) -> dict[str, Any]:
    cell = Cell.from_json(record.cell)
    doubt = implausible(record)  # found anew: a record of before the rule has no flag
    return {
        **_figures(record),
        "model": cell.model["name"],
        "technique": cell.technique["name"],
        "family": cell.technique["family"],
        "label": cell.label,
        "labelled": _labelled(cell),
        "dtype": cell.model["dtype"],
        **{column: cell.axis(axis.name) for column, axis in REQUESTED.items()},
        "bits": record.claimed.get("bits", cell.axis("bits")),
        "sparsity": _sparsity(record),
        "flags": "; ".join(dict.fromkeys([*record.flags, *([IMPLAUSIBLE] if doubt else [])])),
        "doubt": doubt,
        "status": str(record.status),
        "stage": record.stage,
        "reason": record.reason,
        "isolation": record.isolation,
        "protocol": cell.protocol["name"],
        "device": cell.runtime["device"],
        "runtime": str(cell.runtime.get("name", "")),
        "fingerprint": record.fingerprint,
        BESIDE: record.beside,
        "board": _board(cell, record.beside),
        "training": cell.training,
        "key": record.key,
        "artifact_key": record.artifact_key,
        "attempt": record.attempt,
        "finished": record.finished,
        "precedence": record.precedence,
        "block_nll": np.array(record.block_nll, dtype=np.float32),
        "item_correct": record.item_correct,
    }


def _labelled(cell: Cell) -> Labelled:
    """Return what tells a cell from others; what many cells share is kept once."""
    labelled = Labelled.of(cell)
    return labelled._replace(parts=tuple(map(sys.intern, labelled.parts)))


def _figures(record: Record) -> dict[str, Any]:
    """Return every scalar that was realised or estimated, with intervals and p-values but for counts of bytes.

    Of what has a verdict, the number of independent units, too.
    """
    figures = {name: value for name, value in record.realised.items() if isinstance(value, bool | int | float | str)}
    for name, estimate in record.estimates.items():
        figures[name] = float(estimate.value)
        if not name.endswith("_bytes"):
            parts = {"low": estimate.low, "high": estimate.high, "p_value": estimate.p_value}
            parts |= {"n": estimate.n} if kind(name) else {}
            figures |= {f"{name}_{part}": float(value) for part, value in parts.items() if value is not None}
    return figures


def _sparsity(record: Record) -> Any:
    """Return the recounted share of zeros of a row that claims some; those of a coarse grid save nothing."""
    return None if record.claimed.get("sparsity") is None else record.realised.get("sparsity")


def _board(cell: Cell, beside: str) -> str:
    return digest([cell.model_identity, cell.common_protocol, beside])[:12]


def _newest(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep, of the attempts at one cell, artifact and fingerprint, the one of greatest ``Record.precedence``."""
    ordered = frame.sort_values(["precedence"], kind="stable", ignore_index=True).drop(columns="precedence")
    return ordered.drop_duplicates(list(Row._fields), keep="last", ignore_index=True)


def _ranks(frame: pd.DataFrame) -> dict[str, pd.Series]:
    """Return each row's range of ranks on its board, and its group.

    Missing where one failed, has neither losses nor, of a classifier, answers, or has some that are not believed.
    """
    places = {name: pd.Series(pd.NA, index=frame.index, dtype="Int64") for name in ("rank_low", "rank_high")}
    group = pd.Series(None, index=frame.index, dtype=object)
    believed = frame[(frame["status"] == Status.OK) & ~flagged(frame, *UNRANKED)]
    for rows, found in (*_by_losses(believed), *_by_answers(believed)):
        places["rank_low"][rows], places["rank_high"][rows] = found.low, found.high
        group[rows] = found.group
    return {"rank": places["rank_low"], **places, "group": group}


def _by_losses(frame: pd.DataFrame) -> Iterator[tuple[pd.Index, Ranking]]:
    """Yield the rows of each board that have losses of the same text, and their ranking."""
    lengths = frame["block_nll"].map(len)
    for _, board in frame[lengths > 0].groupby("board"):
        board = board[lengths[board.index] == lengths[board.index].mode()[0]]
        yield board.index, ranking(np.stack(list(board["block_nll"])))


def _by_answers(frame: pd.DataFrame) -> Iterator[tuple[pd.Index, Ranking]]:
    """Yield the classifiers of each board that answered as many items, and their ranking."""
    counts = frame["item_correct"].map(lambda text: text.partition(":")[0])
    for _, board in frame[(counts != "") & (frame["block_nll"].map(len) == 0)].groupby("board"):
        board = board[counts[board.index] == counts[board.index].mode()[0]]
        yield board.index, ranking_by_answers(np.stack(list(board["item_correct"].map(unpacked))))


def _coverage(frame: pd.DataFrame) -> pd.Series:
    """Count, as 3/4, how many of the technique's cells on this board are ok. No method wins by crashing."""
    groups = (frame["status"] == Status.OK).groupby([frame["board"], frame["technique"]])
    return groups.transform("sum").astype(str) + "/" + groups.transform("size").astype(str)


def _verdicts(frame: pd.DataFrame, margins: Margins) -> dict[str, Any]:
    """Return the columns of all verdicts, and why there is none where something failed.

    Each is corrected (Holm) for the rows of its board that can show anything.
    """
    found: dict[str, Any] = {"margins": str(margins)}
    reasons = np.full(len(frame), "", dtype=object)
    has = {flag: flagged(frame, flag).to_numpy() for flag in (*UNRANKED, WARMING)}
    words = {flag: np.full(len(frame), flag, dtype=object) for flag in has}
    words[WARMING][:] = f"{WARMING}: {WARMED_UP_NEVER}"
    words[IMPLAUSIBLE] = f"{IMPLAUSIBLE}: it " + frame["doubt"].to_numpy(dtype=object)
    for name in [name for name in frame.columns if kind(name)]:
        of = kind(name)
        assert of is not None
        vetoes = VETOES.get(of, (NOT_CAUSAL,))
        estimates = _estimates(frame, name, of, np.logical_or.reduce([has[flag] for flag in vetoes]))
        answered = answers(of, estimates, margins)
        for flag in vetoes:
            vetoed = has[flag] & np.isfinite(estimates.value)
            answered.word[vetoed], answered.reason[vetoed] = FAILED, words[flag][vetoed]
            answered.within[vetoed] = np.nan
        told = answered.reason != ""
        between = np.where(reasons[told] == "", "", "; ")
        reasons[told] += between + f"{name}: " + answered.reason[told]
        found |= {f"{name}_verdict": answered.word, f"{name}_within": answered.within}
        found[f"{name}_detectable"] = answered.detectable
    return {**found, "verdict_reason": reasons}


def _estimates(frame: pd.DataFrame, name: str, of: Kind, untested: npt.NDArray[np.bool_]) -> Estimates:
    """Return a column's estimates as ``answers`` reads them: perplexities as ratios, p-values corrected by board.

    untested: rows whose figure is no test of anything, and counts in no correction.
    """
    value, low, high, p_value, n = (
        frame[column].astype(float) if column in frame else pd.Series(np.nan, index=frame.index)
        for column in (name, *(f"{name}_{bound}" for bound in BOUNDS))
    )
    p_value = p_value.mask(untested)
    if of is PERPLEXITY:
        own = frame[name.removesuffix("_delta")].astype(float) if name.removesuffix("_delta") in frame else np.nan
        value, low, high = (1 + each / (own - value) for each in (value, low, high))
    same = low == high  # a model beside itself: no test of anything, either
    corrected = p_value.mask(same).groupby(frame["board"]).transform(holm).where(~same, p_value)
    floor = frame["kl_floor"].astype(float) if of.distance and "kl_floor" in frame else value * np.nan
    return Estimates(*(np.asarray(each, dtype=np.float64) for each in (value, low, high, corrected, n, floor)))


def flagged(frame: pd.DataFrame, *flags: str) -> pd.Series:
    """Tell which rows have one of the flags, at least."""
    return ~frame["flags"].str.split("; ").map(set(flags).isdisjoint).astype(bool)


def _arranged(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the named columns first and last, tasks and other figures between; make counts integers."""
    others = sorted(set(frame.columns) - {*COLUMNS, *LAST_COLUMNS})
    tasks = [name for name in others if name.startswith("acc_")]
    further = [name for name in others if not name.startswith("acc_")]
    frame = frame.reindex(columns=[*COLUMNS, *tasks, *further, *LAST_COLUMNS])
    counts = [name for name in frame.columns if name in COUNTS or name.endswith("_bytes")]
    whole = {name: frame[name].astype(float).round().astype("Int64") for name in counts}
    return frame.assign(**whole, **{name: pd.to_numeric(frame[name], errors="coerce") for name in REQUESTED})
