import copy
import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sivdnas_tf.errors import GenotypeError
from sivdnas_tf.genotype import MAX_EDGES, MAX_NAME_LENGTH, MAX_NODE, Cell, Edge, Genotype
from sivdnas_tf.zoo import registry

SMALL = {
    "schema_version": 1,
    "name": "small",
    "normal": {
        "edges": [
            {"node": 2, "predecessor": 0, "operation": "sep_conv_3x3"},
            {"node": 2, "predecessor": 1, "operation": "skip_connect"},
            {"node": 3, "predecessor": 2, "operation": "max_pool_3x3"},
        ],
        "concat": [2, 3],
    },
    "reduction": {"edges": [{"node": 2, "predecessor": 1, "operation": "none"}], "concat": [2]},
}


def changed(*path, value):
    """SMALL with the entry at `path` replaced."""
    data = copy.deepcopy(SMALL)
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return data


def refusal(data):
    """The one line that refuses `data`, JSON types or JSON text."""
    with pytest.raises(GenotypeError) as caught:
        Genotype.from_json(data) if isinstance(data, str) else Genotype.from_dict(data)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    assert "Received: " in message
    assert caught.value.exit_code == 2
    return message


@pytest.mark.parametrize("name", registry.names())
def test_the_zoo_survives_a_round_trip(name, tmp_path):
    genotype = registry.load(name)
    assert Genotype.from_dict(genotype.to_dict()) == Genotype.from_json(genotype.to_json()) == genotype
    path = tmp_path / "genotype.json"
    path.write_text(genotype.to_json(), encoding="utf-8")
    assert Genotype.load(path) == genotype
    assert genotype.to_json().endswith("}\n")


def test_attributes():
    genotype = Genotype.from_dict(SMALL)
    assert genotype.cell("normal") is genotype.normal and genotype.cell("reduction") is genotype.reduction
    assert genotype.multipliers == (2, 1)
    assert genotype.normal.nodes == (2, 3)
    assert [edge.predecessor for edge in genotype.normal.edges_into(2)] == [0, 1]
    assert genotype.to_dict() == SMALL


def test_canonical_sorts_edges_and_concatenation():
    shuffled = copy.deepcopy(SMALL)
    shuffled["normal"]["edges"].reverse()
    shuffled["normal"]["edges"].append({"node": 2, "predecessor": 0, "operation": "none"})
    shuffled["normal"]["concat"] = [3, 2]
    canonical = Genotype.from_dict(shuffled).canonical()
    assert [(e.node, e.predecessor, e.operation) for e in canonical.normal.edges] == [
        (2, 0, "none"),
        (2, 0, "sep_conv_3x3"),
        (2, 1, "skip_connect"),
        (3, 2, "max_pool_3x3"),
    ]
    assert canonical.normal.concat == (2, 3)
    assert canonical.canonical() == canonical
    assert Genotype.from_dict(SMALL).canonical() == Genotype.from_dict(SMALL)


def test_canonical_keeps_an_operation_that_an_edge_names_twice():
    nasnet = registry.load("NASNet").canonical()
    assert nasnet.normal.edges.count(Edge(5, 0, "avg_pool_3x3")) == 2


def test_sha256_is_of_the_architecture_alone():
    genotype = Genotype.from_dict(SMALL)
    renamed = dataclasses.replace(genotype, name="other")
    assert renamed.sha256 == genotype.sha256 == Genotype.from_json(genotype.to_json()).sha256
    # Pinned: a run directory recognises its input by this digest, so that it must not change between versions.
    assert genotype.sha256 == "277c1dfe4e8795d9f60e5d536f42af08802e279ca509a28128617e3e1145f03d"
    others = [
        changed("normal", "edges", 0, "operation", value="sep_conv_5x5"),
        changed("normal", "concat", value=[3, 2]),
        changed("reduction", "edges", 0, "predecessor", value=0),
        {**SMALL, "normal": SMALL["reduction"], "reduction": SMALL["normal"]},
    ]
    assert len({genotype.sha256, *(Genotype.from_dict(other).sha256 for other in others)}) == 5


def test_a_node_that_nothing_feeds_is_legal_while_nothing_uses_it():
    skipped = changed("normal", "edges", 2, value={"node": 4, "predecessor": 2, "operation": "max_pool_3x3"})
    skipped["normal"]["concat"] = [2, 4]
    assert Genotype.from_dict(skipped).normal.nodes == (2, 4)
    unread = changed("normal", "concat", value=[2])  # and so is a node that feeds nothing
    assert Genotype.from_dict(unread).multipliers == (1, 1)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", "must be JSON of schema 1. Received: ''"),
        ("{", "must be JSON of schema 1"),
        ("Genotype(normal=[])", "must be JSON of schema 1"),
        ("\ufeff{}", "must be JSON of schema 1"),
        ("{\n}\n\nx" * 50, "must be JSON of schema 1"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[" * 400 + "]" * 400, "must be an object with schema_version"),
        ("null", "must be an object with schema_version, name, normal, reduction. Received: None"),
        ('{"schema_version": NaN}', "holds only strings and integers. Received: NaN"),
        ('{"schema_version": -Infinity}', "holds only strings and integers. Received: -Infinity"),
        ('{"schema_version": 1, "schema_version": 1}', "must not repeat a key. Received: 'schema_version' twice"),
        ('{"normal": {"edges": [], "concat": [2], "edges": []}}', "must not repeat a key. Received: 'edges' twice"),
        ('{"schema_version": ' + "9" * 5000 + "}", "integers are small. Received: an integer of 5000 digits"),
        ('{"schema_version": -' + "9" * 5000 + "}", "integers are small"),
    ],
)
def test_text_that_is_not_a_genotype(text, expected):
    assert expected in refusal(text)


def test_many_keys_are_refused_at_once():
    # Quadratic in the number of keys, this took minutes for a file within the size limit.
    assert "unknown key" in refusal("{" + ",".join(f'"a{i}":1' for i in range(90_000)) + "}")


@pytest.mark.parametrize(
    "data, expected",
    [
        (changed("schema_version", value=2), "unknown genotype schema. Expected schema_version=1. Received: 2"),
        (changed("schema_version", value=True), "Received: True"),
        (changed("schema_version", value=1.0), "Received: 1.0"),
        (changed("schema_version", value="1"), "Received: '1'"),
        (changed("name", value=None), "name must be a string"),
        (changed("name", value="two\nlines"), "printable"),
        (changed("name", value="\ud800"), "printable"),
        (changed("name", value="\x1b[2J"), "printable"),
        (changed("name", value="x" * (MAX_NAME_LENGTH + 1)), "at most 200"),
        (changed("extra", value=1), "the genotype has an unknown key"),
        (changed("normal", "concats", value=[2]), "the normal cell has an unknown key. Did you mean 'concat'?"),
        (changed("normal", "edges", 0, "op", value="none"), "normal.edges[0] has an unknown key"),
        ({key: value for key, value in SMALL.items() if key != "reduction"}, "the genotype lacks 'reduction'"),
        (changed("normal", value={"edges": []}), "the normal cell lacks 'concat'"),
        (changed("normal", value=[]), "the normal cell must be an object"),
        (changed("normal", "edges", value={}), "normal.edges must be a list. Received: {}"),
        (changed("normal", "concat", value="23"), "normal.concat must be a list. Received: '23'"),
        (changed("normal", "edges", 1, value=[2, 0, "none"]), "normal.edges[1] must be an object"),
        (changed("normal", "edges", 1, value={"node": 2, "predecessor": 0}), "normal.edges[1] lacks 'operation'"),
        (changed("normal", "edges", value=SMALL["normal"]["edges"] * MAX_EDGES), f"at most {MAX_EDGES} entries. Received: 3072"),
        (changed("normal", "edges", 0, "node", value=True), "normal.edges[0].node must be an integer from 0 to 64. Received: True"),
        (changed("normal", "edges", 0, "node", value=2.0), "normal.edges[0].node must be an integer"),
        (changed("normal", "edges", 0, "node", value=MAX_NODE + 1), "from 0 to 64. Received: 65"),
        (changed("normal", "edges", 0, "predecessor", value=-1), "normal.edges[0].predecessor must be an integer"),
        (changed("normal", "edges", 0, "predecessor", value="0"), "predecessor must be an integer from 0 to 64. Received: '0'"),
        (changed("normal", "edges", 0, "node", value=1), "normal.edges[0] ends in an input of the cell"),
        (changed("normal", "edges", 2, "predecessor", value=3), "normal.edges[2] must come from an earlier node"),
        (changed("normal", "edges", 0, "predecessor", value=3), "Received: predecessor=3, node=2"),
        (changed("normal", "edges", 0, "operation", value="sep_conv_3"), "Did you mean 'sep_conv_3x3'? Expected one of none, max_pool"),
        (changed("normal", "edges", 0, "operation", value="x" * 5000), "has an unknown operation. Expected one of"),
        (changed("normal", "edges", 0, "operation", value=["sep_conv_3x3"]), "unknown operation"),
        (changed("normal", "edges", 0, "operation", value=None), "unknown operation"),
        (changed("normal", "edges", value=[]), "normal.concat uses node 2, which no edge feeds"),
        (changed("normal", "concat", value=[]), "normal.concat must name at least one node"),
        (changed("normal", "concat", value=[2, 3, 2]), "normal.concat must not repeat a node. Received: [2, 3, 2]"),
        (changed("normal", "concat", value=[2, 4]), "normal.concat uses node 4, which no edge feeds"),
        (changed("normal", "concat", value=[1, 2]), "normal.concat holds intermediate nodes, from 2 up. Received: 1"),
        (changed("normal", "concat", value=[2, True]), "normal.concat holds intermediate nodes"),
        (changed("normal", "concat", value=[2.0]), "normal.concat holds intermediate nodes"),
        (changed("normal", "concat", value=[[2]]), "normal.concat holds intermediate nodes"),
        (changed("reduction", "concat", value=[3]), "reduction.concat uses node 3"),
        (
            changed("normal", "edges", 2, value={"node": 5, "predecessor": 3, "operation": "none"}) | {"name": "unfed"},
            "normal.concat uses node 3",
        ),
    ],
)
def test_data_that_is_not_a_genotype(data, expected):
    assert expected in refusal(data)


def test_an_edge_from_a_node_that_nothing_feeds_is_refused():
    data = changed("normal", "edges", 2, value={"node": 5, "predecessor": 4, "operation": "none"})
    data["normal"]["concat"] = [2]
    assert "normal.edges[2] comes from node 4, which no edge feeds" in refusal(data)


def test_the_constructor_validates_too():
    with pytest.raises(GenotypeError, match=r"reduction\.concat"):
        Genotype("x", Cell((Edge(2, 0, "none"),), (2,)), Cell((Edge(2, 0, "none"),), (3,)))


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"", "must be JSON of schema 1. Received: ''"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\xff", "bytes that are not UTF-8 text"),
        (b"\x00" * 100, "must be JSON of schema 1"),
        (b'{"schema_version": 2, "name": "", "normal": 1, "reduction": 1}', "Expected schema_version=1. Received: 2"),
        (b" " * ((1 << 20) + 1), "at most 1048576 bytes"),
    ],
)
def test_a_refused_file_is_named(content, expected, tmp_path):
    path = tmp_path / "stranger.json"
    path.write_bytes(content)
    with pytest.raises(GenotypeError) as caught:
        Genotype.load(path)
    assert str(path) in str(caught.value) and expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "missing.json", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(GenotypeError, match="cannot read the genotype file"):
            Genotype.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["none", 1, 2, "normal"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*SMALL, "edges", "concat", "node", "x"]), inner),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(JSON, st.sampled_from([(), ("normal",), ("normal", "edges"), ("normal", "edges", 1), ("reduction", "concat")]))
def test_any_json_is_accepted_or_refused_by_one_line(value, path):
    data = changed(*path, value=value) if path else value
    try:
        Genotype.from_json(json.dumps(data))
    except GenotypeError as error:
        assert "\n" not in str(error)
