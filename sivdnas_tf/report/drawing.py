"""A cell of a genotype as an SVG drawing."""

import itertools

from sivdnas_tf.profiling.costs import used_nodes
from sivdnas_tf.report import layout
from sivdnas_tf.report.markup import KINDS, element, escape, operation_kind, svg, text, text_width
from sivdnas_tf.search_space import N_CELL_INPUTS

_INK = "#1c2733"
_WIRE = "#5b6774"
_ROW = 20.0


def draw_cell(cell, title, n_inputs=N_CELL_INPUTS):
    """Draws a cell.

    A box is a node: it adds everything that enters it. Each edge has a grey tag that names where it comes from, and one coloured
    label and line an operation, all of which the node adds. The output concatenates.

    Args:
      cell: `genotype.Cell`.
      title: text for screen readers and the pointer.
      n_inputs: number of its first nodes that are inputs.

    Returns:
      One `<svg>` element as text.
    """
    placed = layout.layout_cell(cell, n_inputs)
    legend, legend_width = _legend(cell, placed.height + 12)
    notes = _notes(cell, n_inputs)
    notes_top = placed.height + 12 + _ROW
    lines = [text(10, notes_top + _ROW * (index + 0.5), note, fill=_WIRE) for index, note in enumerate(notes)]
    # Lines lie below everything else: where one passes a corner, the box stays whole.
    parts = [_draw_lines(edge, placed.nodes) for edge in placed.edges] + [
        _draw_labels(edge, placed.nodes[edge.node]) for edge in placed.edges
    ]
    ends = (*range(n_inputs), layout.OUTPUT)
    parts += [_draw_node(box, node in ends) for node, box in placed.nodes.items()]
    width = max(placed.width, legend_width, *(text_width(note) + 20 for note in notes), 0)
    return svg(width, notes_top + _ROW * len(notes) + 4, title, *parts, legend, *lines)


def _colour(operations, index):
    return KINDS[operation_kind(operations[index])][1] if operations else _WIRE


def _draw_lines(edge, nodes):
    drawn = []
    for index, points in enumerate(edge.lines):
        dash = "4 3" if edge.operations and edge.operations[index] == "none" else None
        drawn.append(
            element("path", d=_path(points), fill="none", stroke=_colour(edge.operations, index), stroke_width=1.6, stroke_dasharray=dash)
        )
    tip = element("title", escape(text_of_edge(edge, nodes)))
    return element("g", tip, *drawn, class_="edge")


def text_of_edge(edge, nodes):
    """What the pointer shows over an edge: `c_{k-2} to 3: sep_conv_3x3 + skip_connect`."""
    operations = " + ".join(edge.operations) or "concatenation"
    return f"{nodes[edge.predecessor].text} to {nodes[edge.node].text}: {operations}"


def _path(points):
    """An SVG path: level at every point, so that neighbouring lines stay parallel."""
    steps = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (x0 + x1) / 2
        steps.append(f"H{x1:.1f}" if y0 == y1 else f"C{middle:.1f} {y0:.1f} {middle:.1f} {y1:.1f} {x1:.1f} {y1:.1f}")
    return " ".join(steps)


def _draw_labels(edge, node):
    parts = [_box(edge.tag, "tag", fill="#e6e9ed", stroke="none", text_fill=_INK)]
    for index, label in enumerate(edge.labels):
        colour = _colour(edge.operations, index)
        parts.append(_box(label, "operation", fill="#ffffff", stroke=colour, text_fill=_INK, tint=colour))
        parts.append(_arrow(label.right, node.x, label.middle, colour))
    if not edge.labels:
        parts.append(_arrow(edge.tag.right, node.x, edge.tag.middle, _WIRE))
    return element("g", *parts)


def _box(box, class_, fill, stroke, text_fill, tint=None):
    frame = {"x": box.x, "y": box.y, "width": box.width, "height": box.height, "rx": 4}
    parts = [element("rect", **frame, fill=fill, stroke=stroke)]
    if tint:
        parts.append(element("rect", **frame, fill=tint, fill_opacity=0.13))
    parts.append(text(box.x + box.width / 2, box.middle, box.text, text_anchor="middle", fill=text_fill))
    return element("g", *parts, class_=class_)


def _arrow(x0, x1, y, colour):
    line = element("path", d=f"M{x0:.1f} {y:.1f}H{x1 - 6:.1f}", stroke=colour, stroke_width=1.6)
    head = element("path", d=f"M{x1:.1f} {y:.1f}l-7 -3.5v7z", fill=colour)
    return line + head


def _draw_node(box, is_end):
    fill, ink = (_INK, "#ffffff") if is_end else ("#ffffff", _INK)
    frame = element("rect", x=box.x, y=box.y, width=box.width, height=box.height, rx=6, fill=fill, stroke=_INK, stroke_width=1.5)
    label = text(box.x + box.width / 2, box.middle, box.text, text_anchor="middle", font_size=13, font_weight="bold", fill=ink)
    return element("g", frame, label, class_="node")


def _legend(cell, y):
    """The kinds of operation that the cell has, in a row; returns the markup and its width."""
    kinds = [kind for kind in KINDS if any(operation_kind(edge.operation) == kind for edge in cell.edges)]
    parts, x = [], 10.0
    for kind in kinds:
        label, colour = KINDS[kind]
        parts.append(element("rect", x=x, y=y + 4, width=12, height=12, rx=3, fill=colour))
        parts.append(text(x + 18, y + 10, label, fill=_INK))
        x += 18 + text_width(label) + 18
    return element("g", *parts, class_="legend"), x


def _notes(cell, n_inputs):
    """What a reader would wonder about: nodes that are not drawn, not used, or not part of the output."""
    fed, used = set(cell.nodes), used_nodes(cell)
    unfed = [node for node in range(n_inputs, max(fed)) if node not in fed]
    dead = sorted(fed - used)
    inner = sorted(fed & used - set(cell.concat))
    notes = []
    if unfed:
        notes.append(f"Not drawn, as nothing feeds and nothing uses it: node {_numbers(unfed)}.")
    if dead:
        notes.append(f"Does not reach the output: node {_numbers(dead)}.")
    if inner:
        notes.append(f"Used inside the cell only, not concatenated: node {_numbers(inner)}.")
    idle = [layout.node_name(index, n_inputs) for index in range(n_inputs) if index not in used]
    if idle:
        notes.append(f"The output does not depend on {' or '.join(idle)}.")
    return notes


def _numbers(nodes):
    return ", ".join(map(str, nodes))
