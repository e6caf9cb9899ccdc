"""Set the best row of each family beside the others' of as many bytes or fewer: ``squeeze board --iso-bytes``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from squeeze.boards import summary, terms, words
from squeeze.boards.columns import Column
from squeeze.boards.pick import ANSWERED, TESTED, best_first, ties
from squeeze.boards.table import flagged
from squeeze.core.errors import SqueezeError
from squeeze.records.items import unpacked
from squeeze.records.record import UNRANKED, Estimate, Record, Status
from squeeze.records.sanitize import line
from squeeze.records.statistics import accuracy_change, perplexity_ratio

BESIDE = "beside_best"  # perplexity over the best row's; of classifiers, accuracy less the best row's
BOUNDS = {BESIDE: "value", f"{BESIDE}_low": "low", f"{BESIDE}_high": "high"}  # column -> field of an Estimate
BEST, TIED = "best", "tie"
LEGEND = (
    "Of each family the ranked row of the best perplexity (of classifiers: accuracy) within the bytes. Beside "
    "the best: perplexity over the best row's (accuracy less the best row's), with its 95 % interval, paired by "
    "block of tokens (by item). A tie: no difference shown, corrected (Holm) for all pairs of these rows."
)


def _quality(row: pd.Series) -> str:
    return words.number(row["perplexity"], ".2f") if pd.notna(row["perplexity"]) else f"{row[ANSWERED]:.1%}"


def _beside(row: pd.Series) -> str:
    return words.interval(row, BESIDE, ".3g" if pd.notna(row["perplexity"]) else "+.3f")


def _speed(heading: str, name: str) -> Column:
    def short(row: pd.Series) -> str:
        return f"{words.number(row[name], '.2f')} {words.mark(row, name)}".rstrip()

    return Column(heading, lambda row: words.interval(row, name, ".2f"), where=name, short=short)


COLUMNS = (
    Column("family", lambda row: line(str(row["family"])), left=True),
    Column("technique", lambda row: row["name"], left=True),
    Column("bytes", lambda row: f"{int(row['bytes']):,}", short=lambda row: words.size(row["bytes"])),
    Column("quality", _quality),
    Column("beside the best", _beside),
    Column("", lambda row: row["remark"], left=True),
    _speed("decode speed-up", "decode_speedup"),
    _speed("encode speed-up", "encode_speedup"),
)


def budget(text: str) -> float:
    """Return the bytes that a text such as ``100M`` names. Raises SqueezeError when it names none."""
    found = terms.amount(text)
    if found is None or found <= 0:
        raise SqueezeError(f"--iso-bytes {text} is no size; expected bytes above 0, such as --iso-bytes 100M (k, M, G)")
    return found


def best_of_families(board: pd.DataFrame, most: float, records: Mapping[str, Record]) -> pd.DataFrame:
    """Return the best ranked row of each family that has one of at most so many bytes, the best of all first.

    board: rows of one board. records: by attempt. Further columns: name; BESIDE with its interval, paired with the
    first row's; remark, BEST, TIED or empty.
    """
    quality = by(board)
    fitting = ranked(board)
    fitting = best_first(fitting[fitting["bytes"].astype(float) <= most], quality).drop_duplicates("family")
    fitting = fitting.reset_index(drop=True)
    if fitting.empty:
        return fitting
    first = records[fitting["attempt"].iloc[0]]
    beside = [_compared(records[attempt], first) for attempt in fitting["attempt"]]
    parts = {name: [getattr(each, part, None) for each in beside] for name, part in BOUNDS.items()}
    figures = {name: pd.Series(each, dtype=float) for name, each in parts.items()}
    tied = ties(fitting, quality, records)
    remarks = [BEST if number == 0 else TIED if tie else "" for number, tie in enumerate(tied)]
    names = [words.short_label(row) for _, row in fitting.iterrows()]
    return fitting.assign(name=names, remark=remarks, **figures)


def without(board: pd.DataFrame, chosen: pd.DataFrame, most: float) -> Iterator[str]:
    """Yield why a family of the board has no row among those chosen, a line each."""
    sizes = ranked(board).groupby("family")["bytes"].min()
    for family in sorted(set(board["family"]) - set(chosen.get("family", ()))):
        why = f"its smallest takes {words.size(sizes[family])}" if family in sizes else "none is ranked"
        yield line(f"{family}: no row of at most {words.size(most)}: {why}")


def ranked(board: pd.DataFrame) -> pd.DataFrame:
    """Return the rows whose quality may be believed, and compared with the others' of their board."""
    return board[(board["status"] == Status.OK) & board["rank_low"].notna() & ~flagged(board, *UNRANKED)]


def by(board: pd.DataFrame) -> str:
    """Return the column that ranks a board: perplexity, or accuracy of classifiers."""
    return ANSWERED if summary.classified(board) else TESTED


def columns(chosen: pd.DataFrame) -> list[Column]:
    """Return the columns that have something to show of the chosen rows."""
    return [each for each in COLUMNS if not each.where or (each.where in chosen and chosen[each.where].notna().any())]


def _compared(own: Record, best: Record) -> Estimate | None:
    """Set a row beside the best one; None for that row itself, and where the two have not read the same."""
    if own.attempt == best.attempt:
        return None
    if own.block_nll and len(own.block_nll) == len(best.block_nll):
        return perplexity_ratio(own.block_nll, best.block_nll)
    if own.item_correct and own.item_correct.partition(":")[0] == best.item_correct.partition(":")[0]:
        return accuracy_change(unpacked(own.item_correct), unpacked(best.item_correct))
    return None
