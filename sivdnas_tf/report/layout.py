"""Where everything in the drawing of a cell goes: pure geometry, in pixels, so that a test can check it. Imports no TensorFlow.

A layered drawing (Sugiyama, Tagawa and Toda, 1981). Nodes stand in columns by the longest path from the inputs, left to right.
A column is, from left to right: a gutter in which lines change height, the tags (where an edge comes from), the operations, the
nodes. An operation's label stands right before the node that it feeds; a line that passes a column has a lane of its own there,
above or below the column's nodes. So no line crosses a label, and no two labels meet, whatever the cell.
"""

import dataclasses

from sivdnas_tf.report.layered import LABEL_HEIGHT, LABEL_PITCH, STRIPE, Item, Link, order, place_vertically
from sivdnas_tf.report.markup import text_width
from sivdnas_tf.search_space import N_CELL_INPUTS

OUTPUT = "c_{k}"
_MARGIN = 10.0
_NODE_WIDTH = 34.0
_ARROW_LENGTH = 20.0


@dataclasses.dataclass(frozen=True)
class Box:
    """A rectangle with a text in its middle."""

    x: float
    y: float
    width: float
    height: float
    text: str

    @property
    def right(self):
        """The largest x."""
        return self.x + self.width

    @property
    def bottom(self):
        """The largest y."""
        return self.y + self.height

    @property
    def middle(self):
        """The y of the centre."""
        return self.y + self.height / 2

    def overlaps(self, other):
        """Whether the two rectangles share an area."""
        return self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom


@dataclasses.dataclass(frozen=True)
class PlacedEdge:
    """An edge of the cell, with all its operations.

    Attributes:
      predecessor, node: what it joins; node is `OUTPUT` for the concatenation.
      operations: names, in the order of the genotype; empty for the concatenation.
      labels: a `Box` for each operation.
      tag: `Box` beside the labels that names the predecessor.
      lines: for each operation (one for the concatenation) the points from the predecessor to the tag. Two neighbours of the same
        height are joined by a straight line, others by a curve that is level at both ends.
    """

    predecessor: int
    node: object
    operations: tuple
    labels: tuple
    tag: Box
    lines: tuple


@dataclasses.dataclass(frozen=True)
class CellLayout:
    """A whole cell.

    Attributes:
      width, height: of the drawing.
      nodes: `Box` of each input, of each node that an edge feeds, and of the output, by index (the output by `OUTPUT`).
      edges: tuple of `PlacedEdge`.
    """

    width: float
    height: float
    nodes: dict
    edges: tuple


def node_name(node, n_inputs=N_CELL_INPUTS):
    """What a node of a cell with `n_inputs` inputs is called in a drawing."""
    return f"c_{{k-{n_inputs - node}}}" if node in range(n_inputs) else str(node)


def layout_cell(cell, n_inputs=N_CELL_INPUTS):
    """Lays out a `genotype.Cell` whose first `n_inputs` nodes are its inputs; returns a `CellLayout`."""
    layers, chains = _build(cell, n_inputs)
    order(layers)
    place_vertically(layers, _MARGIN)
    columns = _place_horizontally(layers)
    return _collect(layers, chains, columns)


def _build(cell, n_inputs):
    """Columns of items, and for each edge its chain of links."""
    edges = {}
    for edge in cell.edges:
        edges.setdefault((edge.predecessor, edge.node), []).append(edge.operation)
    depth = dict.fromkeys(range(n_inputs), 0)
    for node in cell.nodes:
        depth[node] = 1 + max(depth[edge.predecessor] for edge in cell.edges_into(node))
    depth[OUTPUT] = 1 + max(depth.values())
    items = {node: Item(layer, node, node_name(node, n_inputs)) for node, layer in depth.items()}
    layers = [[item for item in items.values() if item.layer == layer] for layer in range(depth[OUTPUT] + 1)]
    chains = {}
    wires = sorted(edges.items()) + [((node, OUTPUT), ()) for node in cell.concat]
    for (predecessor, node), operations in wires:
        source, chain = items[predecessor], []
        for layer in range(source.layer + 1, items[node].layer):
            lane = Item(layer)
            layers[layer].append(lane)
            chain.append(Link(source, lane, tuple(operations)))
            source = lane
        chain.append(Link(source, items[node], tuple(operations)))
        chains[predecessor, node] = chain
    return layers, chains


@dataclasses.dataclass(frozen=True)
class _Column:
    """x of the parts of a column, and the width of its labels."""

    gutter: float
    tag: float
    label: float
    node: float
    right: float


def _place_horizontally(layers):
    columns, x = [], _MARGIN
    for layer in layers:
        links = [link for item in layer for link in item.inputs]
        heights = [abs(link.source.y + link.start - link.target.y - link.end) for link in links]
        gutter = min(max(44.0, 0.55 * max(heights)), 120.0) if heights else 0.0
        into = [link for item in layer if not item.is_lane for link in item.inputs]
        tag = max((_tag_width(link) for link in into), default=0.0)
        label = max((text_width(name) + 12 for link in into for name in link.operations), default=0.0)
        tag_x = x + gutter
        label_x = tag_x + tag + (4 if label else 0)
        node_x = label_x + label + (_ARROW_LENGTH if into else 0)
        width = max(_node_width(item) for item in layer if not item.is_lane)
        columns.append(_Column(x, tag_x, label_x, node_x, node_x + width))
        x = node_x + width
    return columns


def _tag_width(link):
    return text_width(_link_name(link)) + 10


def _link_name(link):
    return link.source.name if not link.source.is_lane else _link_name(link.source.inputs[0])


def _node_width(item):
    return max(_NODE_WIDTH, text_width(item.name, 13) + 10)


def _collect(layers, chains, columns):
    nodes = {}
    for column, layer in zip(columns, layers, strict=True):
        for item in layer:
            if not item.is_lane:
                width = column.right - column.node
                nodes[item.node] = Box(column.node, item.y - item.height / 2, width, item.height, item.name)
    edges = tuple(_place_edge(edge, chain, columns) for edge, chain in chains.items())
    height = max(item.y + item.height / 2 for layer in layers for item in layer)
    return CellLayout(columns[-1].right + _MARGIN, height + _MARGIN, nodes, edges)


def _place_edge(edge, chain, columns):
    last, column = chain[-1], columns[chain[-1].target.layer]
    middle = last.target.y + last.end
    tops = [middle - last.in_height / 2 + LABEL_PITCH * index for index in range(last.n_lines)]
    labels = tuple(
        Box(column.label, top, column.node - _ARROW_LENGTH - column.label, LABEL_HEIGHT, operation)
        for top, operation in zip(tops, last.operations, strict=False)
    )
    tag_right = column.label - 4 if labels else column.node - _ARROW_LENGTH
    tag = Box(column.tag, tops[0], tag_right - column.tag, last.in_height, chain[0].source.name)
    lines = tuple(_line(chain, columns, index, tops[index] + LABEL_HEIGHT / 2) for index in range(last.n_lines))
    return PlacedEdge(*edge, last.operations, labels, tag, lines)


def _line(chain, columns, index, final_y):
    source = chain[0].source
    stripe = STRIPE * (index - (chain[0].n_lines - 1) / 2)
    points = [(columns[source.layer].right, source.y + chain[0].start + stripe)]
    for link in chain[:-1]:  # through the lane of each column on the way
        column, y = columns[link.target.layer], link.target.y + stripe
        points += [(column.tag, y), (column.right, y)]
    return (*points, (columns[chain[-1].target.layer].tag, final_y))
