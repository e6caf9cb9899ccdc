"""Say a table in the few words that people read, the same in the terminal and in leaderboard.md."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pandas as pd

from squeeze.boards import drafting, flags
from squeeze.boards.controls import NONE, OVER, OVER_ANSWERS
from squeeze.boards.words import DAGGER, DASH, EAGER, interval, is_baseline, short_label
from squeeze.records.record import BESIDE, Status
from squeeze.records.sanitize import line

OF_BASELINE = {  # figure of the baseline -> change that a row has against it
    "perplexity": "perplexity_delta",
    "perplexity_ood": "perplexity_ood_delta",
    "acc_pooled": "acc_pooled_delta",
}
WHATEVER = ("model", "protocol", "device", "fingerprint", "board", "margins", "dtype")  # what it shares with its rows
MACHINE = 8  # digits of a fingerprint in a title


def boards(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the boards of a table, in reading order."""
    return [board for _, board in frame.groupby("board", sort=False)]


def title(board: pd.DataFrame) -> str:
    """Say what all rows of a board share."""
    first = board.iloc[0]
    machine = str(first.get(BESIDE, first["fingerprint"]))[:MACHINE]
    return line(f"{first['model']}, protocol {first['protocol']}, {first['device']}, machine {machine}")


def classified(rows: pd.DataFrame) -> bool:
    """Tell whether rows of one board are classifiers, ranked by accuracy: they have answers, and predict no text."""
    return "acc_pooled" in rows and bool(rows["acc_pooled"].notna().any()) and not rows["perplexity"].notna().any()


def parted(board: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the ok rows of a board, and the failed ones."""
    ok = board["status"] == Status.OK
    return board[ok], board[~ok]


def shown(ok: pd.DataFrame, of: Collection[str] | None = None) -> pd.DataFrame:
    """Return the ok rows of a board as a table shows them, each called in column ``name``; a baseline is among them.

    of: keys of cells; only those, and baselines, are returned. Where no baseline was measured as a row of its own, its
    figures are those that the first row of its dtype was measured against, and its name has a dagger.
    """
    baseline = ok.apply(is_baseline, axis=1) if len(ok) else ok["family"] == "baseline"
    rows = ok if of is None else ok[ok["key"].isin(list(of)) | baseline]
    found = rows.assign(name=[short_label(row) for _, row in rows.iterrows()])
    if found.empty or baseline.any():
        return found
    first = found.drop_duplicates("dtype")
    implied = pd.DataFrame([_implied(row) for _, row in first.iterrows()]).reindex(columns=found.columns)
    texts = [name for name in found.columns if not pd.api.types.is_numeric_dtype(found[name])]
    implied = implied.astype(object).fillna(dict.fromkeys(texts, ""))
    return pd.concat([implied, found.astype(object)], ignore_index=True)


def _implied(row: pd.Series) -> dict[str, object]:
    figures = {
        name: float(row[name]) - float(row[change])
        for name, change in OF_BASELINE.items()
        if pd.notna(row.get(name)) and pd.notna(row.get(change))
    }
    own = {"family": "baseline", "technique": "none", "name": f"none-{row['dtype']} {DAGGER}", "coverage": DASH}
    shared = {name: row[name] for name in WHATEVER}
    return {**shared, **({"runtime": EAGER, BESIDE: row[BESIDE]} if BESIDE in row else {}), **own, **figures}


def below(rows: pd.DataFrame) -> Iterator[str]:
    """Yield what must be known of rows that ``shown`` returned: flags, failed verdicts, guesses, whence a baseline."""
    yield from flags.explained(rows)
    yield from drafting.told(rows)
    if any(name.endswith(DAGGER) for name in rows["name"]):
        yield f"{DAGGER} not measured as a row: what the others were measured against; technique=none makes it one"


def failure(row: pd.Series) -> str:
    """Say which row has no figures, and why: ``bnb_int8-3: unsupported: 3 bits, expected 8``."""
    return line(f"{short_label(row)}: {row['status']}: {row['reason']}")


def controls(board: pd.DataFrame) -> list[str]:
    """Set each ok row that is trained against its control: ``qat-3-g64: perplexity 35.2, its control's 20.1; ...``."""
    if "control" not in board:
        return []
    return [_control(row) for _, row in parted(board)[0].iterrows() if pd.notna(row["control"])]


def _control(row: pd.Series) -> str:
    answers = classified(pd.DataFrame([row]))
    if row["control"] == NONE:
        technique = "finetune_classifier" if answers else "finetune"
        return line(f"{short_label(row)}: control: none; measure technique={technique} with the same training settings")
    ratio = interval(row, OVER, ".3g")
    parts = (
        _pair(row, "perplexity", "perplexity"),
        "" if ratio == DASH else f"ratio {ratio}",
        _pair(row, "perplexity_ood", "on other text"),
        _pair(row, "acc_pooled", "accuracy") if answers else "",
        "" if pd.isna(row.get(OVER_ANSWERS)) else f"difference {interval(row, OVER_ANSWERS, '+.3f')}",
    )
    return line(f"{short_label(row)}: {'; '.join(part for part in parts if part)}")


def _pair(row: pd.Series, name: str, words: str) -> str:
    own, control = row.get(name), row.get(f"control_{name}")
    return "" if pd.isna(own) or pd.isna(control) else f"{words} {own:.4g}, its control's {control:.4g}"
