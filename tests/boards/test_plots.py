import itertools
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex

from squeeze.boards import plots
from squeeze.boards.table import table
from squeeze.records.record import Estimate
from tests.fabricated import cell, record, smoke_records, too_good


@pytest.fixture(scope="module")
def figure():
    return plots.draw(table(smoke_records()))


def markers(axes):
    return [line for line in axes.lines if line.get_marker() in plots.MARKERS]


def test_each_ok_row_is_drawn_in_both_panels_and_the_failed_one_is_counted(figure):
    assert [len(markers(axes)) for axes in figure.axes] == [11, 11]
    assert [len(axes.texts) - len(arrows(axes)) for axes in figure.axes] == [11, 11]
    assert "Failed and not drawn: 1." in figure.get_supxlabel()


def arrows(axes):
    return [text for text in axes.texts if not text.get_text()]


def test_a_row_that_is_not_believed_is_not_drawn():
    records = smoke_records()
    figure = plots.draw(table([records[0], too_good(records[6])]))
    assert [len(markers(axes)) for axes in figure.axes] == [1, 1]


def test_names_do_not_overlap_and_stay_inside_the_panel(figure):
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        frame = axes.get_window_extent(renderer)
        boxes = [text.get_window_extent(renderer) for text in axes.texts if text.get_text()]
        overlaps = [one.overlaps(other) for one, other in itertools.combinations(boxes, 2)]
        assert not any(overlaps)
        assert all(frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes)


def test_long_names_take_no_room_from_the_panels_and_break_where_settings_begin(figure):
    frame = table(smoke_records())
    long = plots.draw(frame.assign(label=frame["label"] + "-and_so_on" * 4 + "@training_steps=64"))
    for axes, short in zip(long.axes, figure.axes, strict=True):
        assert axes.get_position().width == pytest.approx(short.get_position().width, rel=0.02)
        assert all("\n@training_steps=64" in text.get_text() for text in axes.texts if text.get_text())


def test_families_differ_in_colour_and_marker(figure):
    looks = {(to_hex(line.get_color()), line.get_marker()) for line in markers(figure.axes[0])}
    assert len(looks) == len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 3


def test_what_is_not_realised_is_hollow(figure):
    size, speed = figure.axes
    assert "white" not in {line.get_markerfacecolor() for line in markers(size)}
    assert [line.get_xdata()[0] for line in markers(speed) if line.get_markerfacecolor() == "white"] == [17.0]


def test_a_collapsed_model_is_drawn_on_the_edge_with_its_figure(figure):
    size, _ = figure.axes
    [name] = [text for text in size.texts if text.get_text().startswith("11 rtn-2")]
    assert name.get_text() == "11 rtn-2-g64 ▼ ↑ 4e5"
    assert max(line.get_ydata()[0] for line in markers(size)) == pytest.approx(13.46 * plots.HEADROOM)


def test_where_many_would_lie_on_the_edge_the_axis_goes_on_to_all_but_a_few(monkeypatch):
    records = smoke_records()
    monkeypatch.setattr(plots, "MOST_BEYOND", 1)
    size, _ = plots.draw(table(records)).axes
    assert sorted(line.get_ydata()[0] for line in markers(size))[-3:] == [80.0, 110.0, 110.0]
    assert [text.get_text() for text in size.texts if "↑" in text.get_text()] == ["11 rtn-2-g64 ▼ ↑ 4e5"]
    monkeypatch.setattr(plots, "MOST_BEYOND", 0)
    size, _ = plots.draw(table(records)).axes
    assert max(line.get_ydata()[0] for line in markers(size)) == pytest.approx(13.46 * plots.MOST_HEADROOM)


def test_rows_on_one_place_of_the_edge_share_a_name_of_a_line_each():
    records = smoke_records()
    size = Estimate(86.02e6)  # not told apart from rtn-2's 86 in the picture
    moved = [replace(one, estimates={**one.estimates, "bytes": size}) for one in records[7:8]]
    axes, _ = plots.draw(table([*records[:7], *moved, *records[8:]])).axes
    [name] = [text.get_text() for text in axes.texts if "rtn-2" in text.get_text()]
    assert sorted(name.splitlines()) == ["10 rtn-3-g64 ▼ ↑ 110", "11 rtn-2-g64 ▼ ↑ 4e5"]


def test_where_there_is_no_room_for_all_names_those_on_the_edge_have_theirs(monkeypatch):
    monkeypatch.setattr(plots, "MOST_NAMES", 8)  # five lie on the front
    size, _ = plots.draw(table(smoke_records())).axes
    assert len(names := [text.get_text() for text in size.texts if text.get_text()]) == 8
    assert {name for name in names if "↑" in name} == {
        "11 rtn-2-g64 ▼ ↑ 4e5",
        "10 rtn-3-g64 ▼ ↑ 110",
        "9 magnitude-s0.5 ▼ ↑ 80",
    }


def test_the_front_joins_the_rows_that_no_other_beats(figure):
    fronts = [next(line for line in axes.lines if line.get_drawstyle().startswith("steps")) for axes in figure.axes]
    assert [line.get_drawstyle() for line in fronts] == ["steps-post", "steps-pre"]  # smaller, larger is better
    assert fronts[0].get_xdata().tolist() == [109, 112, 116, 163, 269]
    assert fronts[1].get_xdata().tolist() == [18, 22, 46]


def test_bars_are_the_paired_intervals(figure):
    _, speed = figure.axes
    rtn4 = next(group for group in speed.containers if group.lines[0].get_xdata()[0] == 30.0)
    [horizontal] = rtn4.lines[2][:1]
    (left, _), (right, _) = horizontal.get_segments()[0]
    assert (left, right) == (pytest.approx(30 * 0.97), pytest.approx(30 * 1.03))


def test_the_same_table_gives_the_same_picture():
    frame = table(smoke_records()[:4])
    assert plots.pareto(frame) == plots.pareto(frame)


def test_boards_are_drawn_below_each_other_and_the_rest_counted():
    records = [
        replace(each, fingerprint=str(number), key=f"{number}{each.key}")
        for number in range(plots.MOST_BOARDS + 2)
        for each in smoke_records()[:2]
    ]
    figure = plots.draw(table(records))
    assert len(figure.axes) == 2 * plots.MOST_BOARDS
    assert "Boards left out: 2." in figure.get_supxlabel()


def test_rows_without_figures_leave_an_empty_panel():
    encoder = record(cell("none", "baseline", {}), {"bytes": Estimate(1e6)})
    figure = plots.draw(table([encoder]))
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["no row has both figures"] * 2


def test_a_name_is_no_formula():
    estimates = {"perplexity": Estimate(13.0), "bytes": Estimate(1e6), "decode_tokens_per_s": Estimate(3.0)}
    odd = record(cell(r"$\frac{", "$family", {}), estimates)
    assert plots.pareto(table([odd])).startswith(b"\x89PNG")


@pytest.mark.parametrize("figure", [0, -1, 1e308, 5e-324])
def test_figures_that_no_axis_can_hold_are_not_drawn_and_break_nothing(figure):
    smoke = smoke_records()
    wild = {name: Estimate(figure, figure, figure, n=5) for name in smoke[6].estimates if not name.endswith("bytes")}
    hostile = record(cell("rtn", "quantization", {"bits": 5}), {**smoke[6].estimates, **wild})
    assert [len(markers(axes)) for axes in plots.draw(table([*smoke, hostile])).axes] == [11, 11]
    aside = {"perplexity": Estimate(20.0), "perplexity_delta": Estimate(0.0, -1.0, 1.0), "decode_speedup": wild["mbu"]}
    drawn = record(cell("rtn", "quantization", {"bits": 5}), {**smoke[6].estimates, **aside})
    assert [len(markers(axes)) for axes in plots.draw(table([*smoke, drawn])).axes] == [12, 12]


def test_rows_of_nearly_one_size_stand_at_figures_that_can_be_read():
    sizes = (163_647_000.0, 163_693_000.0)
    rows = [
        record(
            cell("rtn", "quantization", {"bits": bits}), {"perplexity": Estimate(20.0 + bits), "bytes": Estimate(size)}
        )
        for bits, size in enumerate(sizes, 4)
    ]
    figure = plots.draw(table(rows))
    figure.canvas.draw()
    assert figure.axes[0].xaxis.get_offset_text().get_text() == ""
    assert all(label.get_text().startswith("163.") for label in figure.axes[0].get_xticklabels())
