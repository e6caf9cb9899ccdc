"""Draw what each family reaches within so many bytes: perplexity (or accuracy) against bytes, a front each, as PNG."""

from __future__ import annotations

import io

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from squeeze.boards import iso, summary
from squeeze.boards.plots import COLOURS, DRAWN, MARKERS, MOST_BOARDS, OF_CLASSIFIERS, PANELS, STYLE, front, plain

WIDTH, HEIGHT = 8.0, 4.6  # inches of one board
LOG_FROM = 3.0  # the axis is logarithmic where the worst figure is so many times the best


@matplotlib.rc_context(STYLE)
def families(frame: pd.DataFrame, most: float) -> bytes:
    """Return the picture of a table, the boards of most rows below each other, ``most`` bytes marked.

    Of each family every ranked row is a point, and a line steps from each row that is better than all smaller ones of
    its family to the next: what the family reaches within the bytes to its left.
    """
    boards = sorted(summary.boards(frame), key=len, reverse=True)[:MOST_BOARDS]
    figure = Figure(figsize=(WIDTH, HEIGHT * len(boards)), layout="constrained")
    FigureCanvasAgg(figure)
    names = sorted(frame["family"].unique(), key=lambda family: (family != "baseline", family))
    for axes, board in zip(figure.subplots(len(boards), 1, squeeze=False)[:, 0], boards, strict=True):
        _panel(axes, board, names, most)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    return image.getvalue()


def best_so_far(rows: pd.DataFrame, quality: str, better: int) -> pd.DataFrame:
    """Return the rows that are better than all smaller ones, by bytes. better: 1: more is; -1: less is."""
    kept = rows[front(rows["bytes"].astype(float), -better * rows[quality].astype(float))]
    return kept.sort_values("bytes", kind="stable")


def _panel(axes: Axes, board: pd.DataFrame, names: list[str], most: float) -> None:
    panel = (OF_CLASSIFIERS if summary.classified(board) else PANELS)[0]
    quality = panel.quality
    rows = iso.ranked(board)
    rows = rows[rows[quality.column].astype(float).between(*DRAWN)]
    for family, own in rows.groupby("family"):
        number = names.index(str(family))
        colour = COLOURS[number % len(COLOURS)]
        reached = best_so_far(own, quality.column, quality.better)
        axes.step(reached["bytes"] / panel.unit, reached[quality.column], where="post", color=colour, lw=1.4)
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(own["bytes"] / panel.unit, own[quality.column], marker, color=colour, ms=6, label=plain(str(family)))
    if len(rows) and rows[quality.column].max() > LOG_FROM * rows[quality.column].min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.axvline(most / panel.unit, color="#999999", lw=1, ls="--")
    axes.set_title(plain(summary.title(board)), loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(panel.label)
    axes.set_ylabel(quality.label)
    if len(rows):
        axes.legend(frameon=False)
