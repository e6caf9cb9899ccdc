"""Draw what serving takes: the first token by length of the prompt, throughput against latency, as PNG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from squeeze.boards import summary
from squeeze.boards.lengths import TIMED
from squeeze.boards.plots import COLOURS, DRAWN, MARKERS, MOST_BOARDS, STYLE, plain
from squeeze.boards.table import flagged
from squeeze.boards.words import short_label
from squeeze.records.record import UNRANKED, Status

WIDTH, HEIGHT = 12.0, 4.8  # inches of the panels of one board
MOST_ROWS = 12  # of a board, those that rank first; more lines would not be told apart
RATE = re.compile(r"decode_tokens_per_s(?:_b([1-9]\d*))?")
CAPTION = (
    "Bars: least and greatest of the rounds. Left: one request at a time.\n"
    "Right: a point for each number of requests at a time, which stands beside it; tokens of all requests together, "
    "and the wait of one of them."
)


class Reach(NamedTuple):
    """Hold a figure, and the least and the greatest of the rounds; both the figure itself where there are none."""

    value: float
    low: float
    high: float


class Point(NamedTuple):
    """Hold a point of a row. name: what stands beside it; "": nothing."""

    x: Reach
    y: Reach
    name: str


@dataclass(frozen=True)
class Panel:
    """Define a panel: what its axes show, a row's points, and what is said where no row has one.

    base: of the logarithms that the x axis has its ticks at.
    """

    x: str
    y: str
    points: Callable[[pd.Series], list[Point]]
    empty: str
    base: int = 10


def serving_picture(frame: pd.DataFrame) -> bytes:
    """Return the picture of a table (see ``squeeze.boards.table``), the boards of most rows below each other."""
    image = io.BytesIO()
    draw(frame).savefig(image, format="png", dpi=120, metadata={"Software": None})
    return image.getvalue()


@matplotlib.rc_context(STYLE)
def draw(frame: pd.DataFrame) -> Figure:
    """Draw two panels for each board; rows that failed, or whose quality is not believed, are left out."""
    boards = sorted(summary.boards(frame), key=len, reverse=True)[:MOST_BOARDS]
    figure = Figure(figsize=(WIDTH, HEIGHT * len(boards) + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for pair, board in zip(figure.subplots(len(boards), len(PANELS), squeeze=False), boards, strict=True):
        rows = board[(board["status"] == Status.OK) & ~flagged(board, *UNRANKED)]
        for axes, panel in zip(pair, PANELS, strict=True):
            _draw(axes, panel, rows.head(MOST_ROWS))
        pair[0].set_title(plain(summary.title(board)), loc="left", fontsize=10, fontweight="bold")
        if len(rows) > MOST_ROWS:
            pair[1].set_title(f"the first {MOST_ROWS} of {len(rows)} rows", loc="right", fontsize=8)
    figure.supxlabel(CAPTION, fontsize=8, color="#444444")
    return figure


def curve(row: pd.Series) -> list[Point]:
    """Return a row's milliseconds to the first token by the tokens of the prompt, shorter ones first."""
    lengths = sorted(int(found[1]) for name in row.index if (found := TIMED.fullmatch(str(name))))
    points = ((length, _reach(row, f"ttft_ms_at_{length}")) for length in lengths)
    return [Point(Reach(length, length, length), reach, "") for length, reach in points if reach is not None]


def trade(row: pd.Series) -> list[Point]:
    """Return a row's tokens a second against the milliseconds from a token to the next, smaller batches first."""
    names = [str(name) for name in row.index]
    batches = sorted(int(found[1] or 1) for name in names if (found := RATE.fullmatch(name)))
    points = []
    for batch in batches:
        ending = "" if batch == 1 else f"_b{batch}"
        wait, rate = (_reach(row, f"{name}{ending}") for name in ("itl_p50_ms", "decode_tokens_per_s"))
        if wait is not None and rate is not None:
            points.append(Point(wait, rate, str(batch)))
    return points


PANELS = (
    Panel("tokens of the prompt", "ms to the first token (less is better)", curve, "no row has a curve", base=2),
    Panel("ms from a token to the next, median (less is better)", "tokens/s (more is better)", trade, "no row decodes"),
)


def _reach(row: pd.Series, name: str) -> Reach | None:
    """Return a figure with its rounds; None where there is none, or one that no axis can hold."""
    value, low, high = (row.get(column) for column in (name, f"{name}_low", f"{name}_high"))
    bounds: tuple[Any, ...] = (value, value, value) if pd.isna(low) or pd.isna(high) else (value, low, high)
    if any(pd.isna(bound) or not DRAWN[0] <= bound <= DRAWN[1] for bound in bounds):
        return None
    return Reach(*map(float, bounds))


def _draw(axes: Axes, panel: Panel, rows: pd.DataFrame) -> None:
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    found = [(number, row, panel.points(row)) for number, (_, row) in enumerate(rows.iterrows())]
    lines = [(number, row, points) for number, row, points in found if points]
    if not lines:
        axes.text(0.5, 0.5, panel.empty, transform=axes.transAxes, ha="center")
        return
    axes.set_xscale("log", base=panel.base)
    axes.set_yscale("log")
    for number, row, points in lines:
        _line(axes, number, plain(short_label(row)), points)
    for axis, base in ((axes.xaxis, panel.base), (axes.yaxis, 10)):
        axis.set_major_locator(LogLocator(base=base, subs=(1, 2, 5) if base == 10 else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    axes.legend(frameon=False, fontsize=8)


def _line(axes: Axes, number: int, label: str, points: Sequence[Point]) -> None:
    """Draw the points of the row of this number, joined, with their bars and names."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    axes.errorbar(
        [x.value for x in xs],
        [y.value for y in ys],
        xerr=_bars(xs),
        yerr=_bars(ys),
        label=label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        lw=1.2,
        ms=5,
        capsize=2,
    )
    for point in points:
        if point.name:
            place = (point.x.value, point.y.value)
            axes.annotate(point.name, place, xytext=(4, 4), textcoords="offset points", fontsize=7)


def _bars(reaches: Sequence[Reach]) -> list[list[float]]:
    """Return how far bars reach below and above their points, (2, points)."""
    return [[max(x.value - x.low, 0.0) for x in reaches], [max(x.high - x.value, 0.0) for x in reaches]]
