import collections
import xml.etree.ElementTree as ET

import pytest

from sivdnas_tf.report.drawing import draw_cell
from sivdnas_tf.report.markup import KINDS, SVG_NAMESPACE, operation_kind, text_width
from sivdnas_tf.search_space import CELL_TYPES, DARTS_PRIMITIVES, EVALUATION_OPERATIONS
from sivdnas_tf.zoo import registry

SVG = f"{{{SVG_NAMESPACE}}}"


def draw(cell, title="a cell"):
    return ET.fromstring(draw_cell(cell, title))


def all_texts(svg):
    return ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize("name", registry.names())
def test_every_operation_of_a_published_cell_has_a_label_and_a_line(name, texts):
    for cell_type in CELL_TYPES:
        cell = registry.load(name).cell(cell_type)
        svg = draw(cell)
        assert collections.Counter(texts(svg, "operation")) == collections.Counter(edge.operation for edge in cell.edges)
        edges = [group for group in svg.iter(f"{SVG}g") if group.get("class") == "edge"]
        pairs = {(edge.predecessor, edge.node) for edge in cell.edges}
        assert len(edges) == len(pairs) + len(cell.concat)
        assert sum(len(group.findall(f"{SVG}path")) for group in edges) == len(cell.edges) + len(cell.concat)
        nodes = {"c_{k-2}", "c_{k-1}", "c_{k}", *map(str, cell.nodes)}
        assert sorted(texts(svg, "node")) == sorted(nodes)
        for text in svg.iter(f"{SVG}text"):  # nothing is cut off at the sides or below
            content, x, size = "".join(text.itertext()), float(text.get("x")), float(text.get("font-size", 11))
            half = text_width(content, size) / 2
            left, right = (x - half, x + half) if text.get("text-anchor") == "middle" else (x, x + 2 * half)
            assert left >= 0 and right <= float(svg.get("width")) and 0 < float(text.get("y")) < float(svg.get("height"))


def test_each_label_belongs_to_its_edge(make_genotype):
    edges = [(0, 2, "skip_connect"), (0, 2, "sep_conv_3x3"), (1, 2, "max_pool_3x3"), (2, 3, "dil_conv_5x5")]
    genotype = make_genotype((edges, [3]), (edges, [2, 3]))
    hints = [title.text for title in draw(genotype.normal).iter(f"{SVG}title")]
    assert hints[1:] == [
        "c_{k-2} to 2: skip_connect + sep_conv_3x3",
        "c_{k-1} to 2: max_pool_3x3",
        "2 to 3: dil_conv_5x5",
        "3 to c_{k}: concatenation",
    ]


def test_operations_are_coloured_by_kind_with_a_legend_of_the_kinds_present(make_genotype, texts):
    edges = [(0, 2, "sep_conv_3x3"), (0, 2, "sep_conv_5x5"), (1, 2, "max_pool_3x3"), (1, 2, "none")]
    svg = draw(make_genotype((edges, [2]), (edges, [2])).normal)
    assert texts(svg, "legend") == [KINDS[kind][0] for kind in ("separable", "pooling", "none")]
    groups = [group for group in svg.iter(f"{SVG}g") if group.get("class") == "operation"]
    strokes = {"".join(group.itertext()): group.find(f"{SVG}rect").get("stroke") for group in groups}
    assert strokes["sep_conv_3x3"] == strokes["sep_conv_5x5"] == KINDS["separable"][1]
    assert len(set(strokes.values())) == 3
    lines = [path for group in svg.iter(f"{SVG}g") if group.get("class") == "edge" for path in group.iter(f"{SVG}path")]
    dashed = [path.get("stroke") for path in lines if path.get("stroke-dasharray")]
    assert dashed == [KINDS["none"][1]]


def test_every_operation_has_a_kind_of_its_own_sort():
    kinds = {operation: operation_kind(operation) for operation in EVALUATION_OPERATIONS}
    assert kinds == {
        "none": "none",
        "max_pool_3x3": "pooling",
        "avg_pool_3x3": "pooling",
        "skip_connect": "skip",
        "sep_conv_3x3": "separable",
        "sep_conv_5x5": "separable",
        "sep_conv_7x7": "separable",
        "nor_conv_1x1": "full",
        "nor_conv_3x3": "full",
        "dil_conv_3x3": "dilated",
        "dil_conv_5x5": "dilated",
        "conv_7x1_1x7": "factorized",
    }
    assert set(DARTS_PRIMITIVES) <= set(kinds)
    assert len({colour for _, colour in KINDS.values()}) == len(KINDS)


def test_what_is_not_in_the_picture_is_said_below_it(make_genotype):
    normal = [(0, 2, "skip_connect"), (2, 4, "skip_connect"), (0, 5, "skip_connect"), (0, 6, "sep_conv_3x3")]
    reduction = [(0, 2, "skip_connect"), (1, 2, "skip_connect")]
    genotype = make_genotype((normal, [4, 6]), (reduction, [2]))
    texts = all_texts(draw(genotype.normal))
    assert "Not drawn, as nothing feeds and nothing uses it: node 3." in texts
    assert "Does not reach the output: node 5." in texts
    assert "Used inside the cell only, not concatenated: node 2." in texts
    assert "The output does not depend on c_{k-1}." in texts
    assert not any(text.endswith(".") for text in all_texts(draw(genotype.reduction)))


def test_a_hostile_title_stays_a_text(make_genotype):
    edges = [(0, 2, "skip_connect")]
    title = "<script>alert('1')</script> & \x00\ud800 \"quoted\""
    svg = draw(make_genotype((edges, [2]), (edges, [2])).normal, title)
    assert svg.find(f"{SVG}title").text == svg.get("aria-label") == "<script>alert('1')</script> & \ufffd\ufffd \"quoted\""
    assert {element.tag.removeprefix(SVG) for element in svg.iter()} <= {"svg", "title", "g", "path", "rect", "text"}
