"""Draw the loss curve of what a build has trained, as PNG: ``squeeze show --curve``."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from squeeze.boards.plots import STYLE
from squeeze.records.sanitize import line

WIDTH, HEIGHT = 6.0, 3.6  # inches of one panel


@matplotlib.rc_context(STYLE)
def curve(trainings: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the picture of the trainings of a build.json, a panel for each step of the recipe that trained.

    Of each, the loss of every step and, where text was held out, that of the held-out text.
    """
    figure = Figure(figsize=(WIDTH * len(trainings), HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, training in zip(figure.subplots(1, len(trainings), squeeze=False)[0], trainings, strict=True):
        _panel(axes, training)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120, metadata={"Software": None})
    return image.getvalue()


def _panel(axes: Axes, training: Mapping[str, Any]) -> None:
    for place, (label, style) in enumerate((("of each step", "-"), ("of held-out text", "o-")), 1):
        points = [(point[0], point[place]) for point in training["curve"] if point[place] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, ms=4, lw=1.2, label=label)
    axes.set_title(line(str(training["step"])).replace("$", r"\$"))
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
