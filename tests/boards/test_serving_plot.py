"""The picture of serving: its points and bars are the figures, and what cannot be drawn breaks nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from squeeze.boards.serving_plot import MOST_ROWS, Reach, curve, draw, serving_picture, trade
from squeeze.boards.table import table
from squeeze.cli import main
from squeeze.records.record import DECODES_OTHERWISE, Estimate, Record, Status
from squeeze.records.store import RecordStore
from tests.fabricated import cell, record, smoke_records

BATCHES = (1, 2, 16)


def figures(pace: float) -> dict[str, Estimate]:
    """A row that reads 2 tokens of a prompt in ``pace`` ms and decodes one in 10 of it, 11 with a second request."""
    found = {}
    for tokens in (4096, 32, 512):
        ms = pace * tokens / 2
        found[f"ttft_ms_at_{tokens}"] = Estimate(ms, 0.9 * ms, 1.25 * ms, n=8)
    for batch in BATCHES:
        ending = "" if batch == 1 else f"_b{batch}"
        ms = pace * (9 + batch)
        rate = 1000 * batch / ms
        found[f"itl_p50_ms{ending}"] = Estimate(ms, 0.8 * ms, 1.5 * ms, n=8)
        found[f"decode_tokens_per_s{ending}"] = Estimate(rate, rate / 1.5, rate / 0.8, n=8)
    return found


def row(bits: int, estimates: dict[str, Estimate], **changes: Any) -> Record:
    return record(cell("rtn", "quantization", {"bits": bits}), estimates, **changes)


def drawn(axes: Axes) -> list[ErrorbarContainer]:
    return [each for each in axes.containers if isinstance(each, ErrorbarContainer)]


def points(container: ErrorbarContainer) -> list[tuple[float, float]]:
    line = container.lines[0]
    assert line is not None
    return [(float(x), float(y)) for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]


@pytest.fixture(scope="module")
def figure() -> Figure:
    failed = replace(row(3, {}), status=Status.CRASHED, reason="dead")
    return draw(table([row(4, figures(1.0)), row(8, figures(2.0)), failed]))


def test_first_tokens_stand_at_their_lengths_with_the_spread_of_the_rounds(figure: Figure) -> None:
    left, _ = figure.axes
    first, second = drawn(left)
    assert points(first) == [(32, 16), (512, 256), (4096, 2048)]
    assert points(second) == [(32, 32), (512, 512), (4096, 4096)]
    [bars] = [bars for bars in first.lines[2] if np.ptp(bars.get_segments()[0][:, 1]) > 0]
    lows_and_highs = [[float(y) for _, y in segment] for segment in bars.get_segments()]
    assert lows_and_highs == [pytest.approx([0.9 * ms, 1.25 * ms]) for ms in (16, 256, 2048)]
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")


def test_throughput_stands_against_latency_each_point_beside_its_number_of_requests(figure: Figure) -> None:
    _, right = figure.axes
    first, _ = drawn(right)
    assert points(first) == [pytest.approx(each) for each in ((10, 100), (11, 2000 / 11), (25, 640))]
    assert [text.get_text() for text in right.texts] == ["1", "2", "16"] * 2
    across, along = first.lines[2]
    spans = [[float(x) for x, _ in segment] for segment in across.get_segments()]
    assert spans == [pytest.approx([0.8 * ms, 1.5 * ms]) for ms in (10, 11, 25)]
    assert [float(segment[0][1]) for segment in along.get_segments()] == pytest.approx(
        [100 / 1.5, 2000 / 16.5, 640 / 1.5]
    )


def test_rows_are_named_and_told_apart_and_bars_are_explained(figure: Figure) -> None:
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["rtn-4", "rtn-8"]
        lines = [container.lines[0] for container in drawn(axes)]
        assert len({(line.get_color(), line.get_marker()) for line in lines if line is not None}) == 2
    assert "least and greatest of the rounds" in figure.get_supxlabel()


def test_a_row_without_a_spread_has_a_point_without_a_bar() -> None:
    [found] = curve(table([row(4, {"ttft_ms_at_32": Estimate(5.0)})]).iloc[0])
    assert (found.x, found.y, found.name) == (Reach(32, 32, 32), Reach(5.0, 5.0, 5.0), "")
    assert trade(table([row(4, {"decode_tokens_per_s_b8": Estimate(5.0)})]).iloc[0]) == [], "it has no latency"


def test_rows_whose_speed_is_another_models_are_not_drawn() -> None:
    cheat = row(8, figures(0.1), flags=(DECODES_OTHERWISE,))
    left, right = draw(table([row(4, figures(1.0)), cheat])).axes
    assert [len(drawn(axes)) for axes in (left, right)] == [1, 1]


def test_records_of_other_protocols_have_no_curve_and_a_point_each() -> None:
    estimates = {"itl_p50_ms": Estimate(10.0), "decode_tokens_per_s": Estimate(100.0)}
    left, right = draw(table([row(4, estimates)])).axes
    assert [text.get_text() for text in left.texts] == ["no row has a curve"]
    assert points(drawn(right)[0]) == [(10, 100)]


@pytest.mark.parametrize("wild", [0, -1, 1e308, 5e-324])
def test_figures_that_no_axis_can_hold_are_not_drawn_and_break_nothing(wild: float) -> None:
    hostile = {name: Estimate(wild, wild, wild, n=8) for name in figures(1.0)}
    frame = table([row(4, figures(1.0)), row(5, hostile)])
    assert [len(drawn(axes)) for axes in draw(frame).axes] == [1, 1]
    assert serving_picture(frame).startswith(b"\x89PNG")


def test_of_many_rows_the_first_are_drawn_and_that_there_are_more_is_said() -> None:
    many = [row(bits, figures(1.0 + bits)) for bits in range(1, MOST_ROWS + 3)]
    left, right = draw(table(many)).axes
    assert len(drawn(left)) == MOST_ROWS
    assert right.get_title(loc="right") == f"the first {MOST_ROWS} of {MOST_ROWS + 2} rows"


def test_the_command_draws_it_beside_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = RecordStore(tmp_path)
    store.prepare()
    store.write(row(4, figures(1.0)))
    for number, asked in enumerate((["--serving"], ["--price", "0.4"])):
        picture = tmp_path / f"{number}.png"
        assert main(["board", *asked, "--plot", str(picture), "--results", str(tmp_path)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "rtn-4" in capsys.readouterr().out
    for asked in ([], ["--claims", "--serving"], ["--literature", "--price", "0.4"]):
        picture = tmp_path / "none.png"
        assert main(["board", *asked, "--plot", str(picture), "--results", str(tmp_path)]) == 2
        assert "expected --iso-bytes SIZE or --serving beside it" in capsys.readouterr().err
        assert not picture.exists()


def test_the_same_table_gives_the_same_picture() -> None:
    frame = table([*smoke_records()[:2], row(6, figures(1.0))])
    assert serving_picture(frame) == serving_picture(frame)
