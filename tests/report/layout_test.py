import collections
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.report.layered import STRIPE
from sivdnas_tf.report.layout import OUTPUT, Box, layout_cell
from sivdnas_tf.report.markup import text_width
from sivdnas_tf.search_space import CELL_TYPES, DARTS_OPERATIONS, get_search_space
from sivdnas_tf.zoo import registry

# Roundings of a drawing to a hundredth of a pixel are not overlaps.
SLACK = 0.01


def boxes_of(layout):
    return [*layout.nodes.values(), *itertools.chain.from_iterable((edge.tag, *edge.labels) for edge in layout.edges)]


def overlaps(boxes):
    return [(one, other) for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]


def samples(line, count=24):
    """Points along a line as it is drawn: straight where level, otherwise the Bezier curve with level ends."""
    for (x0, y0), (x1, y1) in itertools.pairwise(line):
        for index in range(count + 1):
            t = index / count
            middle = (x0 + x1) / 2
            x = (1 - t) ** 3 * x0 + 3 * (1 - t) ** 2 * t * middle + 3 * (1 - t) * t**2 * middle + t**3 * x1
            y = y0 + (y1 - y0) * (3 * t**2 - 2 * t**3)
            yield x, y


def inside(point, box):
    return box.x + SLACK < point[0] < box.right - SLACK and box.y + SLACK < point[1] < box.bottom - SLACK


def level_pieces(layout):
    """(x0, x1, y) of every straight piece that a line runs through a column."""
    lines = [line for edge in layout.edges for line in edge.lines]
    # Points alternate: out of a node, into a column, out of it, …: the pieces within a column are every second.
    return [(line[index][0], line[index + 1][0], line[index][1]) for line in lines for index in range(1, len(line) - 1, 2)]


def check(cell):
    layout = layout_cell(cell)
    wanted = collections.defaultdict(list)
    for edge in cell.edges:
        wanted[edge.predecessor, edge.node].append(edge.operation)
    wanted.update({(node, OUTPUT): [] for node in cell.concat})
    placed = {(edge.predecessor, edge.node): [label.text for label in edge.labels] for edge in layout.edges}
    assert len(layout.edges) == len(wanted) and placed == wanted
    assert set(layout.nodes) == {0, 1, *cell.nodes, OUTPUT}
    boxes = boxes_of(layout)
    assert overlaps(boxes) == []
    for box in boxes:
        assert text_width(box.text) <= box.width
        assert min(box.x, box.y) >= 0 and box.right <= layout.width and box.bottom <= layout.height
    for edge in layout.edges:
        source, target = layout.nodes[edge.predecessor], layout.nodes[edge.node]
        assert source.right < edge.tag.x and edge.tag.right < target.x  # to the right of what feeds it
        assert len(edge.lines) == max(1, len(edge.labels))
        for index, line in enumerate(edge.lines):
            assert line[0][0] == source.right and source.y < line[0][1] < source.bottom
            end = edge.labels[index] if edge.labels else edge.tag
            assert line[-1] == (edge.tag.x, pytest.approx(end.middle)) and target.y <= line[-1][1] <= target.bottom
            for point in samples(line):
                assert not any(inside(point, box) for box in boxes)
                assert 0 <= point[1] <= layout.height
    starts = sorted(line[0] for edge in layout.edges for line in edge.lines)
    for (x0, y0), (x1, y1) in itertools.pairwise(starts):
        assert x0 != x1 or y1 - y0 > STRIPE - SLACK
    # Lines that run through the same column keep apart.
    for column, pieces in itertools.groupby(sorted(level_pieces(layout)), key=lambda piece: piece[0]):
        heights = sorted(y for _, _, y in pieces)
        assert all(below - above > STRIPE - SLACK for above, below in itertools.pairwise(heights)), column
    return layout


@pytest.mark.parametrize("name", registry.names())
def test_a_published_cell_is_drawn_whole_and_without_overlap(name):
    genotype = registry.load(name)
    for cell_type in CELL_TYPES:
        check(genotype.cell(cell_type))


@st.composite
def cells(draw):
    count = draw(st.integers(1, 6))
    edges, fed = [], []
    for node in range(2, 2 + count):
        if node > 2 and fed and draw(st.integers(0, 5)) == 0:
            continue  # a node that nothing feeds
        choices = [0, 1, *fed]
        for _ in range(draw(st.integers(1, 6))):
            edges.append(Edge(node, draw(st.sampled_from(choices)), draw(st.sampled_from(DARTS_OPERATIONS))))
        fed.append(node)
    concat = draw(st.lists(st.sampled_from(fed), min_size=1, unique=True))
    return Cell(tuple(draw(st.permutations(edges))), tuple(concat))


@settings(max_examples=40, deadline=None)
@given(cells())
def test_any_cell_is_drawn_whole_and_without_overlap(cell):
    Genotype("any", cell, cell)  # it is one that the genotype module accepts
    check(cell)


def test_a_search_that_dropped_nothing_is_drawn_whole_and_without_overlap():
    space = get_search_space("darts")
    check(Cell(tuple(Edge(node, predecessor, name) for predecessor, node in space.edges for name in space.primitives), space.nodes))


def test_nodes_stand_by_the_longest_path():
    edges = [Edge(2, 0, "skip_connect"), Edge(3, 2, "skip_connect"), Edge(3, 0, "skip_connect"), Edge(4, 1, "skip_connect")]
    nodes = check(Cell((*edges, Edge(5, 3, "skip_connect"), Edge(5, 4, "skip_connect")), (5,))).nodes
    assert nodes[2].x == nodes[4].x and nodes[0].x == nodes[1].x
    assert nodes[0].x < nodes[2].x < nodes[3].x < nodes[5].x < nodes[OUTPUT].x


def test_the_largest_genotype_is_laid_out():
    chain = [Edge(node, node - 1, "sep_conv_3x3") for node in range(2, 65)]
    far = [Edge(node, 0, "skip_connect") for node in range(2, 65)] + [Edge(64, 1, "none")]
    layout = layout_cell(Cell((*chain, *far), tuple(range(2, 65))))
    assert len(layout.nodes) == 66 and overlaps(list(layout.nodes.values())) == []


def test_crossings_that_can_be_avoided_are():
    # Straight pairs: 0 feeds 5 and 1 feeds 2, so that the order of the file would cross.
    edges = (Edge(2, 1, "skip_connect"), Edge(3, 1, "skip_connect"), Edge(4, 0, "skip_connect"), Edge(5, 0, "skip_connect"))
    layout = check(Cell(edges, (2, 3, 4, 5)))
    assert max(layout.nodes[node].bottom for node in (4, 5)) < min(layout.nodes[node].y for node in (2, 3))


def test_boxes_that_touch_do_not_overlap():
    box = Box(0.0, 0.0, 10.0, 10.0, "a")
    assert not box.overlaps(Box(10.0, 0.0, 5.0, 5.0, "b")) and not box.overlaps(Box(0.0, 10.0, 5.0, 5.0, "b"))
    assert box.overlaps(Box(9.0, 9.0, 5.0, 5.0, "b")) and Box(9.0, 9.0, 5.0, 5.0, "b").overlaps(box)
    assert overlaps([box, Box(2.0, 2.0, 1.0, 1.0, "inside")])
