"""Make one table of records: the newest official attempt of each cell, joined into boards, ranked, with verdicts.

A *board* is a set of rows that may be compared: same model (in whatever dtype), protocol and fingerprint. Nothing
is ranked, tested or counted across boards.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from squeeze.boards import controls, terms
from squeeze.boards.terms import Terms
from squeeze.core.hashing import digest
from squeeze.records.record import UNSTEADY, Record, Row, Status
from squeeze.records.statistics import ALPHA, holm, ranks
from squeeze.records.store import RecordStore
from squeeze.request import axes
from squeeze.request.cell import Cell

REQUESTED = axes.columns()  # numbers where a technique has them, else missing
COLUMNS = (
    *("rank", "model", "technique", "family", "label", "dtype", *REQUESTED, "effective_bits"),
    *("bytes", "compression_ratio", "load_peak_bytes", "prefill_peak_bytes", "decode_peak_bytes"),
    *("ttft_ms", "ttft_speedup", "ttft_speedup_low", "ttft_speedup_high"),
    *("decode_tokens_per_s", "decode_speedup", "decode_speedup_low", "decode_speedup_high", "decode_speedup_p_value"),
    *("decode_speedup_verdict", "perplexity", "perplexity_delta", "perplexity_delta_low", "perplexity_delta_high"),
    *("perplexity_delta_p_value", "perplexity_delta_verdict", "bits_per_byte", "kl_divergence", "top1_agreement"),
)
LAST_COLUMNS = (
    *("build_seconds", "build_peak_bytes", "bytes_real", "memory_real", "compute_real", "batch_dependent"),
    *("speed_baseline", "flags", "coverage", "status", "stage", "reason", "isolation", "protocol", "device"),
    *("fingerprint", "board", "key", "artifact_key", "attempt", "finished"),
)
TIMED = {"decode_speedup"}
VERDICTS = {"decode_speedup": ("slower", 1.0, "faster"), "perplexity_delta": ("better", 0.0, "worse")}
NO_DIFFERENCE, NO_VERDICT = "no difference shown", "no verdict"
READING_ORDER = ["model", "protocol", "device", "fingerprint", "board", "rank", "perplexity", "label", "key", "attempt"]
ROWS_AT_ONCE = 5_000  # dicts turned into columns together: bounds the memory of 100,000 records


def read(results: Path, asked: Terms = terms.NONE) -> pd.DataFrame:
    """Read the table of a results folder; files there that are no records are named on stderr and left alone.

    asked: terms of the reader; what follows from them stands in columns of its own.
    Raises SqueezeError when there is not one record.
    """
    return table(map(asked.applied, RecordStore(results).require()))


def table(records: Iterable[Record]) -> pd.DataFrame:
    """Return a row for the attempt that counts of each (cell, artifact, fingerprint), in the order of the boards.

    Columns: COLUMNS, acc_<task> and acc_<task>_stderr, LAST_COLUMNS with every further scalar of the records before
    them; where rows are trained, those of ``controls.joined``, too. Values that a row does not have are missing.
    """
    rows = map(_row, records)
    frames = [pd.DataFrame(part) for part in iter(lambda: list(islice(rows, ROWS_AT_ONCE)), [])]
    if not frames:
        return pd.DataFrame(columns=[*COLUMNS, *LAST_COLUMNS])
    frame = _arranged(controls.joined(_newest(pd.concat(frames, ignore_index=True))))
    frame["rank"] = _ranks(frame)
    frame["coverage"] = _coverage(frame)
    for name in VERDICTS:
        frame[f"{name}_verdict"] = _verdicts(frame, name)
    return frame.drop(columns=["block_nll", "training"]).sort_values(
        READING_ORDER, na_position="last", ignore_index=True
    )


def _row(record: Record) -> dict[str, Any]:
    cell = Cell.from_json(record.cell)
    return {
        **_figures(record),
        "model": cell.model["name"],
        "technique": cell.technique["name"],
        "family": cell.technique["family"],
        "label": cell.label,
        "dtype": cell.model["dtype"],
        **{column: cell.axis(axis.name) for column, axis in REQUESTED.items()},
        "bits": record.claimed.get("bits", cell.axis("bits")),
        "sparsity": _sparsity(record),
        "flags": "; ".join(record.flags),
        "status": str(record.status),
        "stage": record.stage,
        "reason": record.reason,
        "isolation": record.isolation,
        "protocol": cell.protocol["name"],
        "device": cell.runtime["device"],
        "fingerprint": record.fingerprint,
        "board": _board(cell, record.fingerprint),
        "training": cell.training,
        "key": record.key,
        "artifact_key": record.artifact_key,
        "attempt": record.attempt,
        "finished": record.finished,
        "precedence": record.precedence,
        "block_nll": np.array(record.block_nll, dtype=np.float32),
    }


def _figures(record: Record) -> dict[str, Any]:
    """Return every scalar that was realised or estimated, with intervals and p-values but for counts of bytes."""
    figures = {name: value for name, value in record.realised.items() if isinstance(value, bool | int | float | str)}
    for name, estimate in record.estimates.items():
        figures[name] = float(estimate.value)
        if not name.endswith("_bytes"):
            parts = {"low": estimate.low, "high": estimate.high, "p_value": estimate.p_value}
            figures |= {f"{name}_{part}": float(value) for part, value in parts.items() if value is not None}
    return figures


def _sparsity(record: Record) -> Any:
    """Return the recounted share of zeros of a row that claims some; those of a coarse grid save nothing."""
    return None if record.claimed.get("sparsity") is None else record.realised.get("sparsity")


def _board(cell: Cell, fingerprint: str) -> str:
    return digest([cell.model_identity, cell.common_protocol, fingerprint])[:12]


def _newest(frame: pd.DataFrame) -> pd.DataFrame:
    """Keep, of the attempts at one cell, artifact and fingerprint, the one of greatest ``Record.precedence``."""
    ordered = frame.sort_values(["precedence"], kind="stable", ignore_index=True).drop(columns="precedence")
    return ordered.drop_duplicates(list(Row._fields), keep="last", ignore_index=True)


def _ranks(frame: pd.DataFrame) -> pd.Series:
    """Return 1 + the number of significantly better rows of the board; missing where one failed or has no losses."""
    result = pd.Series(pd.NA, index=frame.index, dtype="Int64")
    lengths = frame["block_nll"].map(len)
    scored = frame[(frame["status"] == Status.OK) & (lengths > 0)]
    for _, board in scored.groupby("board"):
        board = board[lengths[board.index] == lengths[board.index].mode()[0]]
        result[board.index] = ranks(np.stack(list(board["block_nll"])))
    return result


def _coverage(frame: pd.DataFrame) -> pd.Series:
    """Count, as 3/4, how many of the technique's cells on this board are ok. No method wins by crashing."""
    groups = (frame["status"] == Status.OK).groupby([frame["board"], frame["technique"]])
    return groups.transform("sum").astype(str) + "/" + groups.transform("size").astype(str)


def _verdicts(frame: pd.DataFrame, name: str) -> pd.Series:
    """Say what the estimate ``name`` shows, corrected (Holm) for the rows of its board that can show anything."""
    lower, neutral, higher = VERDICTS[name]
    value = frame[name].astype(float)
    p_values = frame[f"{name}_p_value"].astype(float)
    if name in TIMED:
        p_values = p_values.mask(frame["flags"].str.split("; ").map(lambda flags: UNSTEADY in flags))
    adjusted = p_values.groupby(frame["board"]).transform(holm)
    verdict = pd.Series(NO_VERDICT, index=frame.index).mask(adjusted > ALPHA, NO_DIFFERENCE)
    verdict = verdict.mask(adjusted.le(ALPHA) & value.lt(neutral), lower)
    verdict = verdict.mask(adjusted.le(ALPHA) & value.gt(neutral), higher)
    return verdict.where(value.notna())


def _arranged(frame: pd.DataFrame) -> pd.DataFrame:
    """Put the named columns first and last, tasks and other figures between; make counts of bytes integers."""
    others = sorted(set(frame.columns) - {*COLUMNS, *LAST_COLUMNS})
    tasks = [name for name in others if name.startswith("acc_")]
    further = [name for name in others if not name.startswith("acc_")]
    frame = frame.reindex(columns=[*COLUMNS, *tasks, *further, *LAST_COLUMNS])
    counts = [name for name in frame.columns if name == "bytes" or name.endswith("_bytes")]
    whole = {name: frame[name].astype(float).round().astype("Int64") for name in counts}
    return frame.assign(**whole, **{name: pd.to_numeric(frame[name], errors="coerce") for name in REQUESTED})
