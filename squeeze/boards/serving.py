"""Say a board as people who serve models read it: a line for each row and batch size, the same in all places."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator

import pandas as pd

from squeeze.boards import summary, words
from squeeze.boards.columns import Column
from squeeze.boards.terms import MEMORY, PRICE
from squeeze.records.serving import LONGEST

LEGEND = (
    "Load: from a process that has imported all to a model that answers. Peak: of a process, in loading, prefill and "
    "decoding, at the protocol's largest batch. TTFT: time to first token. Next: from a token to the next, median "
    "and 95th percentile of each process. All of these: median over rounds. J/token: what the machine's own counters "
    "saw, empty where it has none."
)
BATCHED = re.compile(
    r"((?:decode_tokens_per_s|decode_speedup|ttft_ms|ttft_speedup|encode_ms|items_per_s|encode_speedup|itl_p50_ms"
    r"|itl_p95_ms|itl_p99_ms|energy_j_per_token|cost_per_mtok|cost_per_mtok_prefill)(?:_low|_high|_verdict)?)(?:_b(\d+))?"
)
TAIL = "p95 and p99: where each process has at least 20 and 100 times, so that one of them at least lies beyond."
ONCE = ("load_seconds", LONGEST)  # of a row, whatever the batch
PEAKS = ("load_peak_bytes", "prefill_peak_bytes", "decode_peak_bytes")
# Boards of old records lack all of these.
NEWER = ("itl_p50_ms", "encode_ms", "cost_per_mtok", "cost_per_mtok_prefill", LONGEST)


def _number(name: str, digits: str, scale: float = 1.0) -> Callable[[pd.Series], str]:
    return lambda row: "" if pd.isna(row.get(name)) else format(row[name] * scale, digits)


def _ratio(name: str) -> Callable[[pd.Series], str]:
    return lambda row: "" if pd.isna(row.get(name)) else words.interval(row, name, ".2f")


COLUMNS = (
    Column("technique", lambda row: words.short_label(row), left=True),
    Column("batch", _number("batch", ".0f")),
    Column("load s", _number("load_seconds", ".2f"), where="load_seconds"),
    Column("peak MB", _number("peak_bytes", ",.0f", 1e-6), where="peak_bytes"),
    Column("TTFT ms", _number("ttft_ms", ".4g"), where="ttft_ms"),
    Column("TTFT speed-up", _ratio("ttft_speedup"), where="ttft_speedup"),
    Column("tok/s", _number("decode_tokens_per_s", ".1f"), where="decode_tokens_per_s"),
    Column("decode speed-up", _ratio("decode_speedup"), where="decode_speedup"),
    Column("encode ms", _number("encode_ms", ".4g"), where="encode_ms"),
    Column("texts/s", _number("items_per_s", ".1f"), where="items_per_s"),
    Column("encode speed-up", _ratio("encode_speedup"), where="encode_speedup"),
    Column("next ms", _number("itl_p50_ms", ".4g"), where="itl_p50_ms"),
    Column("p95 ms", _number("itl_p95_ms", ".4g"), where="itl_p95_ms"),
    Column("p99 ms", _number("itl_p99_ms", ".4g"), where="itl_p99_ms"),
    Column("J/token", _number("energy_j_per_token", ".3g"), where="energy_j_per_token"),
    Column("cost/Mtok read", _number("cost_per_mtok_prefill", ".3g"), where="cost_per_mtok_prefill"),
    Column("cost/Mtok written", _number("cost_per_mtok", ".3g"), where="cost_per_mtok"),
    Column("context (computed)", _number(LONGEST, ",.0f"), where=LONGEST),
)


def columns(lines: pd.DataFrame) -> list[Column]:
    """Return the columns that some line of ``by_batch`` fills."""
    return [column for column in COLUMNS if not column.where or _any(lines, column.where)]


def legend(lines: pd.DataFrame) -> str:
    """Say what the columns of these lines are."""
    return f"{LEGEND} {TAIL}" if _any(lines, "itl_p99_ms") else LEGEND


def shown(lines: pd.DataFrame) -> bool:
    """Tell whether a published excerpt has these lines: those of old records say nothing that the board does not."""
    return any(_any(lines, name) for name in NEWER)


def by_batch(board: pd.DataFrame) -> pd.DataFrame:
    """Return a line for each ok row and batch size, its figures named without the batch; sizes that nobody has, none.

    What belongs to the row, such as its loading, stands in its first line only.
    """
    return pd.DataFrame([line for _, row in summary.parted(board)[0].iterrows() for line in _lines(row)])


def caption(board: pd.DataFrame) -> str:
    """Say with what price and memory the board was computed; empty without either."""
    price, memory = (board[name].dropna() if name in board else pd.Series(dtype=float) for name in (PRICE, MEMORY))
    parts = []
    if len(price):
        parts.append(f"Cost: of a million tokens read or written, at {price.iloc[0]:g} an hour of the machine.")
    if len(memory):
        how = "computed from measured parts, not run" if _any(board, LONGEST) else "not known of these records: too old"
        parts.append(f"Context: the longest prompt within {int(memory.iloc[0]):,} bytes, {how}.")
    return " ".join(parts)


def _lines(row: pd.Series) -> Iterator[pd.Series]:
    shared: dict[str, object] = {}
    batched: dict[int, dict[str, object]] = defaultdict(dict)
    for name, value in row.items():
        if (found := BATCHED.fullmatch(str(name))) is None:
            shared[str(name)] = value
        elif pd.notna(value):
            batched[int(found[2] or 1)][found[1]] = value
    peaks = [float(row[name]) for name in PEAKS if pd.notna(row[name])]
    once = {name: row.get(name) for name in ONCE} | {"peak_bytes": max(peaks, default=None)}
    for batch, figures in sorted(batched.items()):
        yield pd.Series({**shared, **figures, **once, "batch": batch})
        once = dict.fromkeys(once)


def _any(lines: pd.DataFrame, name: str) -> bool:
    return name in lines and bool(lines[name].notna().any())
