"""Draw pareto.png: size against quality and speed against quality, one row of panels for each board."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator

from squeeze.boards import summary, words
from squeeze.boards.table import flagged
from squeeze.boards.trades import DISTILBERT
from squeeze.records.record import UNRANKED, Status
from squeeze.records.sanitize import line

# Okabe & Ito's colours, told apart by colour-blind readers, too.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vPX*<>ph"
MOST_BOARDS = 3
MOST_ROWS = 60  # of a board, the best and those on its fronts; more would be a cloud
MOST_NAMES = 20
DRAWN = (1e-15, 1e15)  # figures beyond are of no measurement, and more than axes can hold
PUBLISHED = "1"  # the marker of another model's figures
HEADROOM = 5.0  # perplexities above this multiple of the best are drawn on the upper edge,
MOST_BEYOND = 3  # unless they are more than these: then the axis goes on to the others,
MOST_HEADROOM = 100.0  # as far as this multiple
FOOTROOM, MOST_FOOTROOM = 0.1, 1.0  # of accuracy, likewise, this far below the best
HALO = withStroke(linewidth=2.5, foreground="white")  # keeps names readable on lines
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
}


@dataclass(frozen=True)
class Quality:
    """Define the y axis: ``column``, of which less (``better`` -1) or more (1) is better, and its ``change``."""

    column: str
    label: str
    better: int
    change: str


@dataclass(frozen=True)
class Panel:
    """Define the x axis: ``column`` in units of ``unit``, the boolean that says whether it is real; and the y axis.

    verdict: the estimate whose verdict stands behind a row's name.
    """

    column: str
    unit: float
    label: str
    better: int  # -1: smaller is better, 1: larger
    real: str
    verdict: str
    quality: Quality


PERPLEXITY = Quality("perplexity", "perplexity (less is better)", -1, "perplexity_delta")
ACCURACY = Quality("acc_pooled", "accuracy (more is better)", 1, "acc_pooled_delta")
SIZE, DECODING, CLASSIFYING = "size on disk, MB", "decoding, tokens/s at batch 1", "classifying, texts/s at batch 1"
PANELS = (
    Panel("bytes", 1e6, SIZE, -1, "bytes_real", "perplexity_delta", PERPLEXITY),
    Panel("decode_tokens_per_s", 1.0, DECODING, 1, "compute_real", "decode_speedup", PERPLEXITY),
)
OF_CLASSIFIERS = (
    Panel("bytes", 1e6, SIZE, -1, "bytes_real", "acc_pooled_delta", ACCURACY),
    Panel("items_per_s", 1.0, CLASSIFYING, 1, "compute_real", "encode_speedup", ACCURACY),
)


def pareto(frame: pd.DataFrame) -> bytes:
    """Return the figure of a table (see ``squeeze.boards.table``) as PNG."""
    image = io.BytesIO()
    draw(frame).savefig(image, format="png", metadata={"Software": None})
    return image.getvalue()


@matplotlib.rc_context(STYLE)
def draw(frame: pd.DataFrame) -> Figure:
    """Draw the boards with most rows, at most MOST_BOARDS. Rows that failed are counted, not drawn."""
    boards = sorted(summary.boards(frame), key=len, reverse=True)
    families = sorted(frame["family"].unique(), key=lambda family: (family != "baseline", family))
    shown = boards[:MOST_BOARDS]
    figure = Figure(figsize=(12, 5 * len(shown) + 0.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    named = []
    for board, row in zip(shown, figure.subplots(len(shown), len(PANELS), squeeze=False), strict=True):
        row[0].set_title(plain(summary.title(board)), loc="left", fontsize=10, fontweight="bold")
        panels = OF_CLASSIFIERS if summary.classified(board) else PANELS
        named += [(axes, _draw(axes, panel, board, families)) for panel, axes in zip(panels, row, strict=True)]
    figure.legend(handles=_legend(families), loc="outside upper left", ncols=len(families) + 3, frameon=False)
    figure.supxlabel(_caption(shown, len(boards) - len(shown)), fontsize=8, color="#444444")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # names are moved apart in pixels: the layout stays as it is now
    for axes, names in named:
        _move_apart(axes, names)
    return figure


def _draw(axes: Axes, panel: Panel, board: pd.DataFrame, families: Sequence[str]) -> list[Text]:
    """Draw one panel; returns the names in it."""
    axes.set_xlabel(f"{panel.label} ({'more' if panel.better > 0 else 'less'} is better)")
    axes.set_ylabel(panel.quality.label)
    rows = _placed(panel, board)
    if rows.empty:
        axes.text(0.5, 0.5, "no row has both figures", transform=axes.transAxes, ha="center")
        return []
    steps = rows[rows["front"]].sort_values("x")
    axes.step(steps["x"], steps["y"], where="post" if panel.better < 0 else "pre", color="#999999", lw=1, zorder=1)
    for _, row in rows.iterrows():
        _point(axes, panel, row, families)
    if rows["y"].max() > 3 * rows["y"].min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.ticklabel_format(axis="x", useOffset=False)  # rows of one size would stand at "+1.636e2"
    axes.margins(x=0.15, y=0.12)
    look = {"fontsize": 8, "zorder": 1.5, "path_effects": [HALO], "in_layout": False}  # they are moved inside
    by_need = rows.sort_values(["front", "beyond"], ascending=False, kind="stable")  # only its name says how far beyond
    named = by_need.drop_duplicates(["label", "x", "y"]).head(MOST_NAMES)
    told = panel if len(board) <= MOST_ROWS else None  # long names in a crowd take minutes to move apart
    names = [axes.text(x, y, name, look) for x, y, name in _names(told, named)]
    return names + (_trade(axes, panel, rows, look) if panel in OF_CLASSIFIERS else [])


def _names(panel: Panel | None, rows: pd.DataFrame) -> list[tuple[float, float, str]]:
    """Return (x, y, name) of each row; those that lie on each other on the edge have one name, a line each."""
    together: dict[object, list[tuple[float, float, str]]] = {}
    for _, row in rows.iterrows():
        place = f"{row['x']:.2g}" if row["beyond"] else object()
        together.setdefault(place, []).append((row["x"], row["y"], _name(panel, row)))
    return [(*places[0][:2], "\n".join(name for *_, name in places)) for places in together.values()]


def _trade(axes: Axes, panel: Panel, rows: pd.DataFrame, look: dict[str, Any]) -> list[Text]:
    """Draw what DistilBERT has of BERT as the same shares of the largest baseline; returns its name."""
    baselines = rows[rows["family"] == "baseline"].sort_values("bytes", ascending=False, kind="stable")
    if baselines.empty:
        return []
    whole = baselines.iloc[0]
    x, y = whole["x"] * DISTILBERT.of(panel.column), whole["y"] * DISTILBERT.accuracy
    axes.plot(x, y, PUBLISHED, color="#666666", ms=10, mew=1.4, zorder=3)
    return [axes.text(x, y, DISTILBERT.name, {**look, "style": "italic"})]


def _placed(panel: Panel, board: pd.DataFrame) -> pd.DataFrame:
    """Return the rows to draw, those on the front first, with their place (x, y) and whether ``beyond`` the edge."""
    sign = panel.quality.better
    figures = board.reindex(columns=[panel.quality.column, panel.column]).astype(float)
    drawn = (board["status"] == Status.OK) & ~flagged(board, *UNRANKED)
    for name in figures:
        drawn &= figures[name].between(*DRAWN)
    rows, quality = board[drawn], figures.loc[drawn, panel.quality.column]
    end = _end(quality, sign)
    rows = rows.assign(
        x=figures.loc[drawn, panel.column] / panel.unit,
        y=quality.clip(upper=end) if sign < 0 else quality.clip(lower=end),
        quality=quality,
        beyond=sign * (quality - end) < 0,
    )
    rows["front"] = front(-panel.better * rows["x"], -sign * quality) & ~rows["beyond"]
    return rows.sort_values("front", ascending=False, kind="stable").head(MOST_ROWS)


def _end(quality: pd.Series, better: int) -> float:
    """Return where the axis ends on its worse side: where many rows lie on an edge, so do their names."""
    worst_first = quality.sort_values(ascending=better > 0)
    reached = worst_first.iloc[min(MOST_BEYOND, len(quality) - 1)] if len(quality) else np.nan
    if better < 0:
        return float(np.clip(reached, quality.min() * HEADROOM, quality.min() * MOST_HEADROOM))
    return float(np.clip(reached, quality.max() - MOST_FOOTROOM, quality.max() - FOOTROOM))


def _point(axes: Axes, panel: Panel, row: pd.Series, families: Sequence[str]) -> None:
    colour, marker = _look(families, row["family"])
    filled = row["family"] == "baseline" or row[panel.real] is True
    if not row["beyond"]:
        above = _bar(row["y"], row, panel.quality.change, relative=False)
        aside = _bar(row["x"], row, panel.verdict, relative=True) if panel.verdict.endswith("_speedup") else None
        axes.errorbar(row["x"], row["y"], yerr=above, xerr=aside, color=colour, lw=1, capsize=2, zorder=2)
    axes.plot(row["x"], row["y"], marker, color=colour, mfc=colour if filled else "white", ms=7, mew=1.4, zorder=3)


def _bar(value: float, row: pd.Series, name: str, *, relative: bool) -> list[list[float]] | None:
    """Carry the paired interval of a change against the baseline over to the value itself: [[below], [above]]."""
    change, low, high = (row.get(column, np.nan) for column in (name, f"{name}_low", f"{name}_high"))
    if pd.isna(low) or max(map(abs, (change, low, high))) > DRAWN[1] or (relative and not change):
        return None
    scale = value / change if relative else 1.0
    return [[max((change - low) * scale, 0.0)], [max((high - change) * scale, 0.0)]]


def _name(panel: Panel | None, row: pd.Series) -> str:
    """Return a row's label; in a panel, its range of ranks before and the sign of its verdict: ``3-6 rtn-4-g64 ▲``."""
    label, value = plain(words.short_label(row)).replace("@", "\n@"), row["quality"]  # half as wide
    arrow = "↑" if value > row["y"] else "↓"
    if panel is not None:
        place = words.rank(row).strip(words.DASH)
        label = " ".join(part for part in (place, label, words.mark(row, panel.verdict)) if part)
    if not row["beyond"]:
        return label
    return f"{label} {arrow} " + (f"{value:.3g}" if value < 1000 else f"{value:.0e}".replace("e+0", "e"))


def plain(text: str) -> str:
    """Escape a text so that matplotlib takes it for no formula."""
    return line(text).replace("$", r"\$")


def _move_apart(axes: Axes, names: list[Text]) -> None:
    if not names:
        return
    markers = [line for line in axes.lines if line.get_marker() not in ("None", "|", "_")]
    adjust_text(
        names,
        ax=axes,
        objects=markers,
        expand=(1.2, 1.8),
        iter_lim=120,  # not a time limit: the same records give the same picture
        prevent_crossings=False,  # takes minutes for 20 names
        arrowprops={"arrowstyle": "-", "color": "#888888", "lw": 0.6},
    )


def _look(families: Sequence[str], family: str) -> tuple[str, str]:
    index = families.index(family)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _legend(families: Sequence[str]) -> list[Line2D]:
    looks = [(family, *_look(families, family)) for family in families]
    known = [
        Line2D([], [], color=colour, marker=marker, ls="", label=plain(family)) for family, colour, marker in looks
    ]
    hollow = Line2D([], [], color="#666666", marker="o", mfc="white", ls="", label="hollow: not realised")
    return [*known, hollow, Line2D([], [], color="#999999", lw=1, label="Pareto front")]


def _caption(shown: Sequence[pd.DataFrame], boards_left_out: int) -> str:
    failed = sum(int((board["status"] != Status.OK).sum()) for board in shown)
    parts = [
        "Bars: 95 % intervals of the change against the baseline.",
        f"In boards of at most {MOST_ROWS} rows, before a name: its ranks, as far as tests tell. Behind, against the "
        "baseline in perplexity or accuracy (left) and speed (right): ▲ better, ▼ worse, "
        "= equal within the margin, ~ undecided, ? failed.",
        "Hollow: left, not small on disk in fact; right, no arithmetic of low bits or less of it.",
        "↑ ↓ beyond the axis, drawn on its edge.",
        f"Failed and not drawn: {failed}.",
    ]
    if any(summary.classified(board) for board in shown):
        parts.append(f"{DISTILBERT.name}: another model, its shares of its teacher ({DISTILBERT.source}).")
    if any(len(board) > MOST_ROWS for board in shown):
        parts.append(f"Of each board, the best {MOST_ROWS} rows.")
    if boards_left_out:
        parts.append(f"Boards left out: {boards_left_out}.")
    return textwrap.fill(" ".join(parts), 210)


def front(costs: npt.ArrayLike, losses: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Tell which rows are on the front when both costs and losses (rows,) shall be small; of equal rows, all are.

    A row is off the front when another one is as good on both counts and better on one. A row with a missing (NaN)
    count is never on it. For a count that shall be large, give its negative.
    """
    points = np.column_stack([np.asarray(costs, dtype=np.float64), np.asarray(losses, dtype=np.float64)])
    result = np.zeros(len(points), dtype=bool)
    known = np.flatnonzero(np.isfinite(points).all(axis=1))
    best = np.inf
    order = known[np.lexsort(points[known].T[::-1])]  # by cost, then by loss
    for index in order:
        cost, loss = points[index]
        if loss < best:
            best, cost_of_best = loss, cost
            result[index] = True
        elif loss == best and cost == cost_of_best:
            result[index] = True
    return result
