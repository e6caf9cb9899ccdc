"""Set what a technique claims to leave beside what was found to be left and won: ``squeeze board --claims``.

A claim is what a paper's headline names: half of the weights are zero, three quarters of the blocks stay, 4 bits a
weight. It is of matrices within the blocks; what a user gets is bytes, memory and time, of everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from squeeze.boards import words
from squeeze.boards.columns import Column
from squeeze.records.record import Record, Status
from squeeze.records.sanitize import line
from squeeze.request.cell import Cell

BITS = {"float32": 32, "bfloat16": 16, "float16": 16}
KEPT = ("layers_kept", "weights_kept", "hidden_kept")  # of everything in the blocks
PARTS = ("channels_kept", "heads_kept")  # of the MLPs, and of attention
ASKED = "weights_kept"  # what a step is asked for, and has no claim of: its headline, whatever parts it takes it from
WHOLE = 1.005  # of a share: from here on it prints as more than 100 %
SPARE = ("of", "family")  # columns that go first where there is little room
LEGEND = (
    "Claimed: the nominal share of what is left within the blocks, the settings named beside it multiplied: bits over "
    "the dtype's, 1 - sparsity, shares kept (of channels and heads the mean, each of its own part). All others are of "
    "the whole model, against the uncompressed one in the same dtype: bytes on disk, and peak memory of a process that "
    "decodes; speed-ups of decoding, reading a prompt (prefill) and encoding, against the faster dtype. Larger, more, "
    "slower: worse than not compressing at all."
)


def joined(board: pd.DataFrame, records: Mapping[str, Record]) -> pd.DataFrame:
    """Return the ok, compressed rows of a board, by family, with what they claim and what was found.

    records: by attempt. Further columns: name; claimed, a share, missing where nothing nominal is claimed; of, its
    settings in words; bytes_share and peak_share, missing without a baseline of the same dtype on the board.
    """
    ok = board[(board["status"] == Status.OK) & (board["family"] != "baseline")]
    rows = ok.sort_values("family", kind="stable").reset_index(drop=True)
    found = [nominal(records[attempt]) for attempt in rows["attempt"]]
    dense = [BITS.get(dtype, math.nan) for dtype in rows["dtype"]]
    return rows.assign(
        name=[words.short_label(row) for _, row in rows.iterrows()],
        claimed=[share(claims, bits) for claims, bits in zip(found, dense, strict=True)],
        of=[_in_words(claims) for claims in found],
        bytes_share=rows["effective_bits"].astype(float) / dense,
        peak_share=list(_peaks(rows, board)),
    )


def nominal(record: Record) -> dict[str, float]:
    """Return what a row's technique claims to leave of the weights, by name, or was asked to leave (ASKED).

    None of it is found: a claim is the technique's word.
    """
    told = {name: record.claimed.get(name) for name in ("bits", "sparsity", *KEPT, *PARTS)}
    if told[ASKED] is None and (asked := Cell.from_json(record.cell).axis(ASKED)) is not None:
        told |= {ASKED: asked, **dict.fromkeys(PARTS)}
    return {name: float(value) for name, value in told.items() if isinstance(value, int | float)}


def share(claims: Mapping[str, float], dense_bits: float) -> float:
    """Return the share that is left if all claims hold; NaN where there is none.

    dense_bits: of the uncompressed model's weights.
    """
    if not claims:
        return math.nan
    kept = [claims[name] for name in KEPT if name in claims]
    parts = [claims[name] for name in PARTS if name in claims]
    kept += [sum(parts) / len(parts)] if parts else []
    return claims.get("bits", dense_bits) / dense_bits * (1 - claims.get("sparsity", 0.0)) * math.prod(kept)


def _in_words(claims: Mapping[str, float]) -> str:
    return ", ".join(f"{name.removesuffix('_kept')} {value:.3g}" for name, value in claims.items())


def columns(rows: pd.DataFrame) -> list[Column]:
    """Return the columns that have something to show of joined rows."""
    return [each for each in COLUMNS if not each.where or (each.where in rows and rows[each.where].notna().any())]


def unwon(rows: pd.DataFrame) -> Iterator[str]:
    """Yield, for each worse figure, which of the joined rows claim to leave less and have it: a line each."""
    found: dict[str, list[str]] = {}
    for _, row in rows.iterrows():
        if row["claimed"] < 1:
            for what in _worse(row):
                found.setdefault(what, []).append(row["name"])
    for what, names in found.items():
        yield f"claim less, and are {what}: {', '.join(names)}"


def _worse(row: pd.Series) -> Iterator[str]:
    if row["bytes_share"] > WHOLE:
        yield "larger on disk"
    if row["peak_share"] > WHOLE:
        yield "larger in memory"
    for name, what in (("decode_speedup", "decoding"), ("ttft_speedup", "reading"), ("encode_speedup", "encoding")):
        if row.get(f"{name}_verdict") == "slower":
            yield f"slower in {what}"


def _peaks(rows: pd.DataFrame, board: pd.DataFrame) -> Iterator[float]:
    """Yield each row's peak of decoding over that of the board's baseline in the same dtype; NaN without one."""
    baselines = board[(board["family"] == "baseline") & (board["status"] == Status.OK)].drop_duplicates("dtype")
    of_dtype = dict(zip(baselines["dtype"], baselines["decode_peak_bytes"].astype(float), strict=True))
    for peak, dtype in zip(rows["decode_peak_bytes"].astype(float), rows["dtype"], strict=True):
        yield peak / of_dtype.get(dtype, math.nan)


def _share(name: str, more: str) -> Callable[[pd.Series], str]:
    return lambda row: f"{words.number(row[name], '.0%')} {more if row[name] > WHOLE else ''}".rstrip()


def _speed(heading: str, name: str) -> Column:
    def said(row: pd.Series, text: str) -> str:
        return f"{text} {'slower' if row.get(f'{name}_verdict') == 'slower' else ''}".rstrip()

    def short(row: pd.Series) -> str:
        return said(row, f"{words.number(row[name], '.2f')} {words.mark(row, name)}".rstrip())

    return Column(heading, lambda row: said(row, words.interval(row, name, ".2f")), where=name, short=short)


COLUMNS = (
    Column("family", lambda row: line(str(row["family"])), left=True),
    Column("technique", lambda row: row["name"], left=True),
    Column("claimed", lambda row: words.number(row["claimed"], ".0%")),
    Column("of", lambda row: row["of"] or words.DASH, left=True),
    Column("bytes", _share("bytes_share", "larger"), where="bytes_share"),
    Column("peak", _share("peak_share", "more"), where="peak_share"),
    _speed("decode", "decode_speedup"),
    _speed("prefill", "ttft_speedup"),
    _speed("encode", "encode_speedup"),
)
