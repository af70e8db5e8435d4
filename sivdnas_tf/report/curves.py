"""Line charts and heat maps as SVG drawings."""

import dataclasses
import math

from sivdnas_tf.report.markup import element, escape, finite, svg, text, text_width

_INK = "#1c2733"
_AXIS = "#5b6774"
_GRID = "#e3e7eb"
_PLOT_WIDTH, _PLOT_HEIGHT = 370.0, 190.0
_LEFT, _TOP, _BOTTOM = 58.0, 44.0, 40.0
_LEGEND_ROW = 18.0
_MAX_TICKS = 6
_MAX_COLUMNS = 60  # of a heat map over epochs: more would be narrower than what can be told apart
_CELL_HEIGHT = 18.0
_KEPT, _DROPPED = (8, 81, 156), (240, 150, 70)  # red, green, blue of a keep probability of 1 and of 0
_LARGEST = 1e100  # what is beyond cannot be told from infinity in a drawing, and overflows on the way to it


@dataclasses.dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
      name: for the legend.
      x: numbers, e.g. epochs.
      y: as many numbers; what is no finite number (None, NaN) breaks the line.
      colour: CSS colour.
      dash: SVG dash pattern, "" for a whole line.
    """

    name: str
    x: tuple
    y: tuple
    colour: str
    dash: str = ""

    @property
    def points(self):
        """`(x, y)` of the finite values, and None where the line breaks."""
        pairs = [(finite(x), finite(y)) for x, y in zip(self.x, self.y, strict=True)]
        return [None if None in pair or max(map(abs, pair)) > _LARGEST else pair for pair in pairs]


def line_chart(series, *, title, x_label="epoch", shaded=None):
    """A line chart with a legend that gives each line's last value.

    Args:
      series: iterable of `Series`.
      title: shown above.
      x_label: shown below.
      shaded: None, or `(x0, x1, label)`: a span of x to set off, such as the warm-up.

    Returns:
      One `<svg>` element as text; a chart without a finite value says so.
    """
    series = list(series)
    points = [point for one in series for point in one.points if point]
    if not points:
        return svg(_LEFT + _PLOT_WIDTH, 60, title, _title(title), text(_LEFT, 40, "no finite value", fill=_AXIS))
    x_ticks, y_ticks = _ticks([x for x, _ in points], whole=True), _ticks([y for _, y in points])
    x_scale = _scale(_padded(min(x for x, _ in points), max(x for x, _ in points)), _LEFT, _LEFT + _PLOT_WIDTH)
    y_values = [*y_ticks, *(y for _, y in points)]
    y_scale = _scale((min(y_values), max(y_values)), _TOP + _PLOT_HEIGHT, _TOP)
    parts = [_title(title)]
    if shaded:
        parts.append(_shade(shaded, x_scale))
    parts += [_y_tick(y, y_scale(y), _step(y_ticks)) for y in y_ticks] + [_x_tick(x, x_scale(x)) for x in x_ticks]
    parts.append(text(_LEFT + _PLOT_WIDTH / 2, _TOP + _PLOT_HEIGHT + 30, x_label, text_anchor="middle", fill=_AXIS))
    parts += [_draw_series(one, x_scale, y_scale) for one in series]
    legend, legend_width = _legend(series)
    height = max(_TOP + _PLOT_HEIGHT + _BOTTOM, _TOP + _LEGEND_ROW * len(series) + 10)
    return svg(_LEFT + _PLOT_WIDTH + 20 + legend_width, height, title, *parts, legend)


def scatter_chart(series, labels, *, title, x_label):
    """Points, the first series' with a label each, and lines: points of any x against y.

    Args:
      series: two `Series`, finite: the points, and those of them that a stepped line joins in the order of x (a Pareto front).
      labels: one a point of the first.
      title: shown above.
      x_label: shown below.

    Returns:
      One `<svg>` element as text.
    """
    points, front = series
    x_ticks, y_ticks = _ticks(points.x), _ticks(points.y)
    x_scale = _scale(_padded(min(*x_ticks, *points.x), max(*x_ticks, *points.x)), _LEFT, _LEFT + _PLOT_WIDTH)
    y_scale = _scale(_padded(min(*y_ticks, *points.y), max(*y_ticks, *points.y)), _TOP + _PLOT_HEIGHT, _TOP)
    parts = [_title(title), *(_y_tick(y, y_scale(y), _step(y_ticks)) for y in y_ticks), *(_x_tick(x, x_scale(x)) for x in x_ticks)]
    parts.append(text(_LEFT + _PLOT_WIDTH / 2, _TOP + _PLOT_HEIGHT + 30, x_label, text_anchor="middle", fill=_AXIS))
    corners = [f"{x_scale(front.x[0]):.1f} {y_scale(front.y[0]):.1f}"]
    corners += [f"H{x_scale(x):.1f}V{y_scale(y):.1f}" for x, y in zip(front.x[1:], front.y[1:], strict=True)]
    parts.append(element("path", d="M" + "".join(corners), fill="none", stroke=front.colour, stroke_dasharray=front.dash or None))
    on_front = set(zip(front.x, front.y, strict=True))
    for x, y, label in zip(points.x, points.y, labels, strict=True):
        colour = front.colour if (x, y) in on_front else points.colour
        dot = element("circle", cx=x_scale(x), cy=y_scale(y), r=3.5, fill=colour)
        parts.append(element("g", element("title", escape(f"{label}: {x:g}, {y:g}")), dot, class_="point"))
        parts.append(text(x_scale(x) + 6, y_scale(y) - 7, label, font_size=10, fill=_INK))
    legend_x, widest = _LEFT + _PLOT_WIDTH + 28, max(text_width(one.name) for one in series)
    for index, one in enumerate(series):
        y = _TOP + 6 + _LEGEND_ROW * index
        parts.append(element("circle", cx=legend_x, cy=y, r=3.5, fill=one.colour) + text(legend_x + 12, y, one.name, fill=_INK))
    return svg(legend_x + 20 + widest, _TOP + _PLOT_HEIGHT + _BOTTOM, title, *parts)


def _title(title):
    return text(10, 14, title, font_size=13, font_weight="bold", fill=_INK)


def _ticks(values, whole=False):
    """Round numbers that span the values, at most `_MAX_TICKS` or so; for `whole`, integers inside them."""
    low, high = min(values), max(values)
    if whole and low == high:
        return [low]
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    raw = max((high - low) / (_MAX_TICKS - 1), 1e-100)
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
        first, last = math.ceil(low / step), math.floor(high / step)
    else:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _step(ticks):
    return ticks[1] - ticks[0] if len(ticks) > 1 else 1.0


def _padded(low, high):
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _scale(domain, start, end):
    low, high = domain
    return lambda value: start + (end - start) * (value - low) / (high - low)


def _y_tick(value, y, step):
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    label = f"{value:.{digits}f}" if digits <= 6 and abs(value) < 1e6 else f"{value:.2e}"
    grid = element("path", d=f"M{_LEFT:.1f} {y:.1f}h{_PLOT_WIDTH:.1f}", stroke=_GRID)
    return grid + text(_LEFT - 8, y, label, text_anchor="end", fill=_AXIS)


def _x_tick(value, x):
    mark = element("path", d=f"M{x:.1f} {_TOP + _PLOT_HEIGHT:.1f}v4", stroke=_AXIS)
    return mark + text(x, _TOP + _PLOT_HEIGHT + 13, f"{value:g}", text_anchor="middle", fill=_AXIS)


def _shade(shaded, x_scale):
    """The span, cut to the plot, and a line at its end."""
    x0, x1, label = shaded
    left, right = (min(max(x_scale(x), _LEFT), _LEFT + _PLOT_WIDTH) for x in (x0, x1))
    area = element("rect", x=left, y=_TOP, width=right - left, height=_PLOT_HEIGHT, fill="#eef1f4")
    end = element("path", d=f"M{right:.1f} {_TOP:.1f}v{_PLOT_HEIGHT:.1f}", stroke=_AXIS, stroke_dasharray="3 3")
    anchor = "start" if right + text_width(label, 10) + 4 < _LEFT + _PLOT_WIDTH else "end"
    note = text(right + (4 if anchor == "start" else -4), _TOP - 6, label, text_anchor=anchor, font_size=10, fill=_AXIS)
    return area + end + note


def _draw_series(series, x_scale, y_scale):
    """A path for each unbroken run of values; a value without neighbours is a dot."""
    runs = [[]]
    for point in series.points:
        if point:
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    drawn = []
    for run in filter(None, runs):
        places = [f"{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in run]
        if len(run) == 1:
            drawn.append(element("circle", cx=x_scale(run[0][0]), cy=y_scale(run[0][1]), r=3.0, fill=series.colour))
        else:
            path = "M" + "L".join(places)
            drawn.append(element("path", d=path, fill="none", stroke=series.colour, stroke_width=1.8, stroke_dasharray=series.dash or None))
    return element("g", element("title", escape(series.name)), *drawn, class_="series")


def _legend(series):
    """A row a line, with its last finite value; returns the markup and its width."""
    x = _LEFT + _PLOT_WIDTH + 16
    rows, widest = [text(x + 28, _TOP - 12, "last value", font_size=10, fill=_AXIS)], 0.0
    for index, one in enumerate(series):
        y = _TOP + 6 + _LEGEND_ROW * index
        values = [point[1] for point in one.points if point]
        label = f"{one.name} {values[-1]:.4g}" if values else f"{one.name} (no value)"
        stroke = element("path", d=f"M{x:.1f} {y:.1f}h22", stroke=one.colour, stroke_width=2.5, stroke_dasharray=one.dash or None)
        rows.append(stroke + text(x + 28, y, label, fill=_INK))
        widest = max(widest, 28 + text_width(label))
    return element("g", *rows, class_="legend"), widest


def heat_map(values, rows, columns, *, title, marked=frozenset(), column_label=None):
    """A table of probabilities as shaded cells, each with its number: blue is rather kept, orange rather dropped.

    Args:
      values: [len(rows), len(columns)] numbers from 0 to 1; what is no finite number is grey.
      rows, columns: names.
      title: shown above.
      marked: set of `(row, column)` indices that get a frame.
      column_label: shown below, None for nothing.

    Returns:
      One `<svg>` element as text.
    """
    width = max([44.0, *(text_width(str(name)) + 10 for name in columns)])
    left = 20 + max(text_width(str(name)) for name in rows)
    parts = [_title(title)]
    parts += [text(left + width * (index + 0.5), _TOP - 8, name, text_anchor="middle", fill=_INK) for index, name in enumerate(columns)]
    top = _TOP + 4
    for row, name in enumerate(rows):
        parts.append(text(left - 8, top + _CELL_HEIGHT * (row + 0.5), name, text_anchor="end", fill=_INK))
        for column in range(len(columns)):
            parts.append(_heat_cell(values[row][column], left + width * column, top + _CELL_HEIGHT * row, width, True))
    frames = [(left + width * column, top + _CELL_HEIGHT * row) for row, column in sorted(marked)]
    for x, y in frames:  # above all cells, so that no neighbour covers a side
        parts.append(
            element("rect", x=x + 1, y=y + 1, width=width - 2, height=_CELL_HEIGHT - 2, fill="none", stroke="#d55e00", stroke_width=2)
        )
    height = top + _CELL_HEIGHT * len(rows) + (26 if column_label else 8)
    if column_label:
        parts.append(text(left, height - 12, column_label, fill=_AXIS))
    return svg(left + width * len(columns) + 10, height, title, *parts)


def heat_map_over_time(values, epochs, rows, *, title):
    """Probabilities over the epochs: a row a name, a column an epoch (at most `_MAX_COLUMNS`, evenly chosen), the last as a number.

    Args:
      values: [len(epochs), len(rows)] numbers from 0 to 1.
      epochs: numbers.
      rows: names.
      title: shown above.

    Returns:
      One `<svg>` element as text.
    """
    count = min(len(epochs), _MAX_COLUMNS)
    chosen = [round(index * (len(epochs) - 1) / max(1, count - 1)) for index in range(count)]
    chosen[-1] = len(epochs) - 1
    left, top = 20 + max(text_width(str(name)) for name in rows), _TOP - 16
    width = _PLOT_WIDTH / count
    parts = [_title(title)]
    for row, name in enumerate(rows):
        y = top + _CELL_HEIGHT * row
        parts.append(text(left - 8, y + _CELL_HEIGHT / 2, name, text_anchor="end", fill=_INK))
        parts += [_heat_cell(values[epoch][row], left + width * place, y, width, False) for place, epoch in enumerate(chosen)]
        parts.append(_heat_cell(values[-1][row], left + _PLOT_WIDTH + 8, y, 44.0, True))
    bottom = top + _CELL_HEIGHT * len(rows)
    parts.append(text(left, bottom + 12, f"epoch {epochs[0]:g}", fill=_AXIS))
    parts.append(text(left + _PLOT_WIDTH, bottom + 12, f"epoch {epochs[-1]:g}", text_anchor="end", fill=_AXIS))
    return svg(left + _PLOT_WIDTH + 62, bottom + 26, title, *parts)


def _heat_cell(value, x, y, width, with_number):
    """A cell from orange (0) over white (0.5) to blue (1), grey where there is no number."""
    value = finite(value)
    lean = 0.0 if value is None else min(max(2 * value - 1, -1.0), 1.0)
    red, green, blue = (round(255 + (full - 255) * abs(lean)) for full in (_KEPT if lean > 0 else _DROPPED))
    fill = _GRID if value is None else f"rgb({red},{green},{blue})"
    overlap = -1.0 if with_number else 0.5  # cells without numbers run on, and would show seams where pixels are shared
    parts = [element("rect", x=x, y=y, width=width + overlap, height=_CELL_HEIGHT - 1, fill=fill)]
    if with_number:
        number = "-" if value is None else f"{value:.3f}"
        ink = "#ffffff" if lean > 0.6 else _INK
        parts.append(text(x + width / 2, y + _CELL_HEIGHT / 2 - 0.5, number, text_anchor="middle", fill=ink))
    return "".join(parts)
