"""Write crosscheck.csv and crosscheck.md from the trials' results: ours against each library, paired token by token."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from scripts.crosscheck.comparisons import UNCOMPRESSED, Comparison, Trial, comparisons
from scripts.crosscheck.masks import Mask, agreement
from squeeze.boards.leaderboard import csv
from squeeze.core.files import write_atomically
from squeeze.records.record import Estimate
from squeeze.records.statistics import TOKEN_BLOCK, block_means, ratio

MARGIN = 0.01  # of perplexity: what two implementations may differ by
FIGURES = ("perplexity", "seconds", "peak_bytes")
COLUMNS = (
    *("ours", "form", "library", "version", "theirs", "their_form"),
    *(column for figure in FIGURES for column in (figure, f"their_{figure}")),
    *("ratio", "ratio_low", "ratio_high", "verdict", "same_zeros", "note"),
)
HEADINGS = ("", "ours", "library", "perplexity", "theirs", "ratio", "verdict", "s", "theirs", "MB", "theirs")
ALIGNMENT = ("--:", ":--", ":--", "--:", "--:", "--:", ":--", "--:", "--:", "--:", "--:")
LEGEND = """Ours against other implementations, on the same model (perplexity {perplexity:.3f} uncompressed), the same
{tokens:,} tokens of evaluation and, where text is read, the same windows of calibration. Ratio: ours / theirs, with the
95 % interval of a paired t-test over blocks of {block} tokens. Seconds: to quantize, once, from the model on disk, on a
machine that did nothing else (untimed: it was shared); MB: the process's peak meanwhile."""


@dataclass(frozen=True)
class Outcome:
    """Hold what a trial wrote.

    losses: (windows, window - 1), nats; empty where facts hold an ``error``. zeros: of a sample of the weights of a
    pruned model, which are zero.
    """

    facts: Mapping[str, Any]
    losses: npt.NDArray[np.float32]
    zeros: Mask | None = None

    @classmethod
    def read(cls, results: Path, trial: Trial) -> Outcome:
        """Read the trial's files. Raises FileNotFoundError for one that never ran."""
        path = _path(results, trial)
        facts = json.loads(path.read_bytes())
        if "error" in facts:
            return cls(facts, np.empty((0, 0), dtype=np.float32))
        with np.load(path.with_suffix(".npz")) as arrays:
            return cls(facts, arrays["losses"], arrays.get("zeros"))


def collate(results: Path, pairs: Iterable[Comparison] | None = None) -> str:
    """Write crosscheck.csv and crosscheck.md beside the trials' results, and return the latter's text."""
    chosen = list(comparisons() if pairs is None else pairs)
    run = [pair for pair in chosen if all(_path(results, trial).is_file() for trial in (pair.ours, pair.theirs))]
    frame = pd.DataFrame(rows(results, run), columns=COLUMNS)
    left = [f"{_short(pair.ours.request)} against {pair.theirs.library}" for pair in chosen if pair not in run]
    text = markdown(frame, Outcome.read(results, UNCOMPRESSED), left)
    write_atomically(results / "crosscheck.csv", csv(frame))
    write_atomically(results / "crosscheck.md", text.encode())
    return text


def rows(results: Path, pairs: Iterable[Comparison]) -> Iterator[dict[str, Any]]:
    """Yield COLUMNS of each pair; where a trial failed, its error is the verdict."""
    for pair in pairs:
        ours, theirs = (Outcome.read(results, trial) for trial in (pair.ours, pair.theirs))
        errors = [outcome.facts["error"] for outcome in (ours, theirs) if "error" in outcome.facts]
        row = {"ours": pair.ours.request, "form": pair.ours.form, "theirs": pair.theirs.request, "note": pair.note}
        row |= {"library": pair.theirs.library, "version": theirs.facts.get("version"), "their_form": pair.theirs.form}
        for figure in FIGURES:
            row |= {figure: ours.facts.get(figure), f"their_{figure}": theirs.facts.get(figure)}
        if errors:
            yield {**row, "verdict": f"failed: {errors[0]}"}
            continue
        estimate = perplexity_ratio(ours.losses, theirs.losses)
        row |= {"ratio": estimate.value, "ratio_low": estimate.low, "ratio_high": estimate.high}
        yield {**row, "verdict": verdict(estimate), "same_zeros": agreement(ours.zeros, theirs.zeros)}


def perplexity_ratio(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> Estimate:
    """Return perplexity, ours / theirs, with a paired t interval on mean losses of blocks of about 512 tokens.

    Raises ValueError where the two are not losses of the same tokens.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"losses must be of the same tokens: {ours.shape} of ours, {theirs.shape} of theirs")
    blocks = ours.size // TOKEN_BLOCK
    return ratio(*(np.exp(block_means(losses.ravel(), blocks)).tolist() for losses in (ours, theirs)))


def verdict(estimate: Estimate) -> str:
    """Judge a ratio of perplexities, of which less is better.

    Within MARGIN two agree; beyond it they differ if the interval leaves 1 out.
    """
    if abs(estimate.value - 1) <= MARGIN:
        return f"within {100 * MARGIN:g} %"
    if estimate.low is None or estimate.high is None or estimate.low <= 1 <= estimate.high:
        return "no difference shown"
    return "worse" if estimate.value > 1 else "better"


def markdown(frame: pd.DataFrame, uncompressed: Outcome, left: Sequence[str]) -> str:
    """Return the table, below it each row's forms and note, and the comparisons that are ``left`` to run."""
    numbered = list(enumerate(frame.to_dict("records"), 1))
    tokens, perplexity = uncompressed.losses.size, uncompressed.facts.get("perplexity", np.nan)
    legend = LEGEND.format(tokens=tokens, perplexity=perplexity, block=TOKEN_BLOCK)
    lines = [HEADINGS, ALIGNMENT, *([str(number), *_cells(row)] for number, row in numbered)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    forms = [
        f"{number}. Ours: {row['form']}. Theirs: {row['their_form']}. {_of_zeros(row)}{row['note']}"
        for number, row in numbered
    ]
    parts = ["# Cross-checks", legend, table, "\n".join(map(str.rstrip, forms))]
    if left:
        parts.append(f"Not run here: {'; '.join(left)}.")
    return "\n\n".join(parts) + "\n"


def _path(results: Path, trial: Trial) -> Path:
    return results / f"{trial.name}.json"


def _short(request: str) -> str:
    return request.removeprefix("technique=").replace("technique.steps.0.", "")


def _cells(row: Mapping[str, Any]) -> list[str]:
    library = row["library"] if pd.isna(row["version"]) else f"{row['library']} {row['version']}"
    interval = "{ratio:.4f} \\[{ratio_low:.4f}, {ratio_high:.4f}\\]".format(**row)
    return [
        *(_short(row["ours"]), library),
        *(_number(row[name], ".3f") for name in ("perplexity", "their_perplexity")),
        *("" if pd.isna(row["ratio"]) else interval, row["verdict"]),
        *(_seconds(row[name], failed=pd.isna(row["ratio"])) for name in ("seconds", "their_seconds")),
        *(_number(row[name], ".0f", 1e-6) for name in ("peak_bytes", "their_peak_bytes")),
    ]


def _of_zeros(row: Mapping[str, Any]) -> str:
    return "" if pd.isna(row["same_zeros"]) else f"{row['same_zeros']:.1%} of the weights are zero in both or neither. "


def _seconds(value: float | None, failed: bool) -> str:
    return _number(value, ".0f") or ("" if failed else "untimed")


def _number(value: float | None, form: str, unit: float = 1) -> str:
    return "" if value is None or pd.isna(value) else format(unit * value, form)
