import math
import re
import xml.etree.ElementTree as ET

import pytest

from sivdnas_tf.report.curves import Series, heat_map, heat_map_over_time, line_chart
from sivdnas_tf.report.markup import SVG_NAMESPACE, text_width

SVG = f"{{{SVG_NAMESPACE}}}"


def texts(svg):
    return ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]


def drawn_runs(svg, index=0):
    """Points of the unbroken runs of the chart's series `index`."""
    group = [group for group in svg.iter(f"{SVG}g") if group.get("class") == "series"][index]
    runs = [re.findall(r"([-\d.]+) ([-\d.]+)", path.get("d")) for path in group.findall(f"{SVG}path")]
    dots = [[(dot.get("cx"), dot.get("cy"))] for dot in group.findall(f"{SVG}circle")]
    return [[(float(x), float(y)) for x, y in run] for run in (*runs, *dots)]


def labelled_ticks(svg, anchor):
    """Position -> value of the labels of an axis; those of y end at the axis, those of x stand in the middle below it."""
    key = {"end": "y", "middle": "x"}[anchor]
    labels = [text for text in svg.iter(f"{SVG}text") if text.get("text-anchor") == anchor and text.text != "epoch"]
    return {float(text.get(key)): float(text.text) for text in labels}


def chart(*ys, xs=(1, 2, 3, 4), **arguments):
    series = [Series(f"line {index}", xs, y, "#123456") for index, y in enumerate(ys)]
    return ET.fromstring(line_chart(series, title="a title", **arguments))


def interpolate(ticks, position):
    (p0, v0), *_, (p1, v1) = ticks.items()
    return v0 + (v1 - v0) * (position - p0) / (p1 - p0)


@pytest.mark.parametrize(
    "values", [(0.5, 0.25, 0.75, 0.625), (310.0, 20.5, 400.0, 2.0), (-3.0, 4e5, 0.0, 1.0), (0.001, 0.0012, 0.0015, 0.0011)]
)
def test_points_stand_where_the_axes_say(values):
    svg = chart(values)
    y_ticks, x_ticks = labelled_ticks(svg, "end"), labelled_ticks(svg, "middle")
    (run,) = drawn_runs(svg)
    tolerance = (max(values) - min(values)) / 200
    for (x, y), expected_x, expected_y in zip(run, (1, 2, 3, 4), values, strict=True):
        assert interpolate(x_ticks, x) == pytest.approx(expected_x, abs=0.01)
        assert interpolate(y_ticks, y) == pytest.approx(expected_y, abs=tolerance)
    assert 3 <= len(y_ticks) <= 9 and min(y_ticks.values()) <= min(values) and max(y_ticks.values()) >= max(values)


def test_the_legend_gives_the_last_finite_value():
    assert {"line 0 0.1235", "line 1 7", "line 2 (no value)"} <= set(texts(chart((1, 1, 1, 0.12345), (3, 7, None, math.nan), (None,) * 4)))


def test_what_is_no_number_breaks_the_line():
    runs = drawn_runs(chart((1.0, 2.0, None, 1.5)))
    assert [len(run) for run in runs] == [2, 1]
    assert drawn_runs(chart((1.0, math.nan, "3", True))) == [drawn_runs(chart((1.0, None, None, None)))[0]]


@pytest.mark.parametrize(
    "values",
    [(0.5,) * 4, (0.0,) * 4, (1e300, 1.0, 2.0, 10**400), (5e-324, 0.0, 0.0, 0.0), (1.0, 1.0 + 2e-16, 1.0, 1.0), (1e-9, 2e-9, 0, 1e99)],
)
def test_extreme_values_are_drawn_within_the_picture(values):
    svg = chart(values)
    width, height = float(svg.get("width")), float(svg.get("height"))
    points = [point for run in drawn_runs(svg) for point in run]
    assert points and all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert len(texts(svg)) < 40


def test_a_chart_without_values_says_so():
    assert texts(chart((None,) * 4)) == texts(chart()) == ["a title", "no finite value"]


def test_one_epoch_is_a_dot():
    svg = ET.fromstring(line_chart([Series("only", (1,), (0.5,), "#123456")], title="t"))
    assert len(list(svg.iter(f"{SVG}circle"))) == 1 and "only 0.5" in texts(svg)


def test_the_warm_up_ends_where_it_ended():
    svg = chart((1.0, 2.0, 3.0, 4.0), shaded=(0.0, 2, "warm-up ends"))
    (area,) = svg.iter(f"{SVG}rect")
    (run,) = drawn_runs(svg)
    assert float(area.get("x")) + float(area.get("width")) == pytest.approx(run[1][0], abs=0.1)
    assert float(area.get("x")) == pytest.approx(run[0][0], abs=0.1)  # cut to the plot, which starts at epoch 1
    assert "warm-up ends" in texts(svg)


def test_names_are_escaped_and_fit():
    series = Series("<script>&", (1, 2), (0.0, 1.0), "#123456")
    svg = ET.fromstring(line_chart([series, Series("long " * 12, (1, 2), (0.0, 1.0), "#123456")], title="<b>"))
    assert "<script>& 1" in texts(svg) and "<b>" in texts(svg)
    assert text_width("long " * 12 + " 1") < float(svg.get("width")) - 444
    svg = ET.fromstring(heat_map([[0.5]], ["<i>"], ["<u>"], title="<b>"))
    assert texts(svg) == ["<b>", "<u>", "<i>", "0.500"]


def test_a_heat_map_shows_each_number_in_its_place():
    values = [[0.0, 0.5, 1.0], [0.25, None, 0.9996]]
    svg = ET.fromstring(heat_map(values, ["0->2", "1->2"], ["a", "b", "c"], title="t", marked={(1, 2), (0, 0)}))
    place = {"".join(text.itertext()): (float(text.get("x")), float(text.get("y"))) for text in svg.iter(f"{SVG}text")}
    assert [place[name][0] for name in "abc"] == [place[number][0] for number in ("0.000", "0.500", "1.000")]
    assert texts(svg).count("1.000") == 2 and "-" in place  # 0.9996 rounds
    assert place["0.250"][0] == place["a"][0] and place["-"][0] == place["b"][0]
    assert place["0.250"][1] == place["-"][1] > place["0.500"][1]
    frames = [rect for rect in svg.iter(f"{SVG}rect") if rect.get("fill") == "none"]
    assert len(frames) == 2
    for frame, (column, row) in zip(frames, (("a", "0->2"), ("c", "1->2")), strict=True):
        x, y, width, height = (float(frame.get(key)) for key in ("x", "y", "width", "height"))
        assert x < place[column][0] < x + width and y < place[row][1] < y + height


def test_colours_lean_from_dropped_over_undecided_to_kept():
    svg = ET.fromstring(heat_map([[0.0, 0.25, 0.5, 0.75, 1.0, None, 3.0]], ["row"], list("abcdefg"), title="t"))
    fills = [rect.get("fill") for rect in svg.iter(f"{SVG}rect")]
    channels = [tuple(map(int, re.findall(r"\d+", fill))) for fill in fills if fill.startswith("rgb")]
    assert channels[2] == (255, 255, 255) and channels[5] == channels[4]  # beyond 1 is 1
    assert channels[0][0] > channels[0][2] and channels[4][0] < channels[4][2]
    assert channels[0][2] < channels[1][2] < 255 and channels[4][0] < channels[3][0] < 255
    assert len(channels) == len(fills) - 1


@pytest.mark.parametrize("n_epochs", [1, 2, 60, 61, 600])
def test_a_heat_map_over_time_ends_with_the_last_epoch(n_epochs):
    epochs = list(range(1, n_epochs + 1))
    values = [[epoch / n_epochs, 1 - epoch / n_epochs] for epoch in epochs]
    svg = ET.fromstring(heat_map_over_time(values, epochs, ["0->2", "1->2"], title="t"))
    rects = list(svg.iter(f"{SVG}rect"))
    assert len(rects) == 2 * (min(n_epochs, 60) + 1)
    assert {"1.000", "0.000", "epoch 1", f"epoch {n_epochs}"} <= set(texts(svg))
    n_columns = len(rects) // 2 - 1
    assert rects[n_columns - 1].get("fill") == rects[n_columns].get("fill")  # last column, number beside it
    assert all(float(rect.get("x")) + float(rect.get("width")) <= float(svg.get("width")) for rect in rects)
