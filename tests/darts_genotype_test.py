import copy
import json
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sivdnas_tf import darts_genotype
from sivdnas_tf.errors import GenotypeError
from sivdnas_tf.genotype import MAX_EDGES, Cell, Edge
from sivdnas_tf.profiling.costs import network_cost
from sivdnas_tf.search_space import DARTS_OPERATIONS
from sivdnas_tf.zoo import registry

PAIRS = {
    "normal": [["sep_conv_3x3", 0], ["skip_connect", 1], ["none", 2], ["max_pool_3x3", 0]],
    "normal_concat": [3, 2],
    "reduce": [["dil_conv_5x5", 1], ["avg_pool_3x3", 1]],
    "reduce_concat": [2],
}
TRIPLES = {
    "normal": [["sep_conv_3x3", 2, 0], ["sep_conv_5x5", 2, 0], ["max_pool_3x3", 4, 2]],
    "normal_concat": [2, 3, 4, 5],
    "reduce": [["dil_conv_5x5", 3, 1], ["avg_pool_3x3", 2, 1], ["skip_connect", 5, 4], ["sep_conv_3x3", 5, 3]],
}
# As fairdarts/genotypes.py and a DARTS log print them.
FAIR_DARTS_A = """# FLOPS: 373M Params: 2.83
FairDARTS_a = Genotype(normal=[('sep_conv_3x3', 2, 0), ('sep_conv_5x5', 2, 1), ('max_pool_3x3', 4, 0), ('sep_conv_3x3', 5, 0)],
         normal_concat=range(2, 6),  # node 3 has no entry
         reduce=[('max_pool_3x3', 2, 0), ('avg_pool_3x3', 2, 1), ('avg_pool_3x3', 3, 0), ('dil_conv_5x5', 3, 1),
                 ('avg_pool_3x3', 4, 0), ('sep_conv_5x5', 4, 1), ('skip_connect', 5, 0), ('skip_connect', 5, 1)],
         reduce_concat=range(2, 6))
"""
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], normal_concat=[2, 3, 4, 5], reduce=[('max_pool_3x3', 0), "
    "('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), "
    "('max_pool_3x3', 1)], reduce_concat=list(range(2, 6)))"
)


def changed(data, *path, value):
    """A copy of `data` with the entry at `path` replaced."""
    data = copy.deepcopy(data)
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return data


def without(data, *keys):
    return {key: value for key, value in data.items() if key not in keys}


def load(tmp_path, content, name="mine.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return darts_genotype.load(path)


def refusal(tmp_path, content):
    """The one line that refuses a file, without the file's name."""
    with pytest.raises(GenotypeError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/mine.json: ") and "Received: " in message
    assert "\n" not in message and len(message) < 1000
    return message.removeprefix(f"{tmp_path}/mine.json: ")


def as_pairs(genotype):
    """The genotype in DARTS' form, or None where a node has other than two edges."""
    data = {"name": genotype.name}
    for cell_type, key in (("normal", "normal"), ("reduction", "reduce")):
        cell = genotype.cell(cell_type)
        edges = [edge for node in cell.nodes for edge in cell.edges_into(node)]
        if cell.nodes != tuple(range(2, 2 + len(cell.nodes))) or any(len(cell.edges_into(node)) != 2 for node in cell.nodes):
            return None
        data |= {key: [[edge.operation, edge.predecessor] for edge in edges], f"{key}_concat": list(cell.concat)}
    return data


def as_triples(genotype):
    """The genotype in FairDARTS' form, or None where a node does not leave the cell."""
    data = {"name": genotype.name}
    for cell_type, key in (("normal", "normal"), ("reduction", "reduce")):
        cell = genotype.cell(cell_type)
        if cell.nodes != cell.concat:
            return None
        data |= {key: [[edge.operation, edge.node, edge.predecessor] for edge in cell.edges]}
    return data


def as_python(data):
    """The text of the Python expression that DARTS would print."""
    pairs = {key: [tuple(entry) for entry in value] if "concat" not in key else value for key, value in without(data, "name").items()}
    return f"Genotype({', '.join(f'{key}={value!r}' for key, value in pairs.items())})"


@pytest.mark.parametrize("name", registry.names())
def test_the_zoo_comes_back_from_the_forms_that_can_express_it(name, tmp_path):
    genotype, forms = registry.load(name), [as_pairs(registry.load(name)), as_triples(registry.load(name))]
    assert any(forms)
    for data in filter(None, forms):
        for content in (data, as_python(data)):
            read, said = load(tmp_path, content, f"{name}.json")
            assert read == genotype and read.canonical() == genotype.canonical() and read.sha256 == genotype.sha256
            assert said.startswith(f"converted the {'DARTS' if data is forms[0] else 'FairDARTS'} genotype {tmp_path}/{name}.json: normal ")
            sizes = {"network": "cifar", "channels": 36, "cells": 20, "classes": 10, "resolution": 32}
            assert network_cost(read, **sizes).params == registry.entry(name)["counts"]["cifar"]["params"]


def test_both_forms_express_much_of_the_published_zoo():
    genotypes = [registry.load(name) for name in registry.names() if "searched" not in registry.entry(name)]
    assert sum(as_pairs(genotype) is not None for genotype in genotypes) == 13
    assert sum(as_triples(genotype) is not None for genotype in genotypes) == 17


def test_published_text_is_the_published_genotype(tmp_path):
    read, said = load(tmp_path, DARTS_V2, "v2.txt")
    assert read.sha256 == registry.load("DARTS_V2").sha256
    assert (read.name, said) == (
        "v2",
        f"converted the DARTS genotype {tmp_path}/v2.txt: normal 8 edges into nodes 2,3,4,5, concat 2,3,4,5; "
        "reduction 8 edges into nodes 2,3,4,5, concat 2,3,4,5",
    )
    read, said = load(tmp_path, FAIR_DARTS_A)
    assert read.sha256 == registry.load("FairDARTS_a").sha256
    assert "normal 4 edges into nodes 2,4,5, concat 2,4,5 (normal_concat 2,3,4,5 is ignored, as in FairDARTS: " in said
    assert "\n" not in said


def test_pairs():
    genotype, form, said = darts_genotype.from_dict(PAIRS, "mine")
    assert genotype.normal == Cell(
        (Edge(2, 0, "sep_conv_3x3"), Edge(2, 1, "skip_connect"), Edge(3, 2, "none"), Edge(3, 0, "max_pool_3x3")), (3, 2)
    )
    assert genotype.reduction == Cell((Edge(2, 1, "dil_conv_5x5"), Edge(2, 1, "avg_pool_3x3")), (2,))
    assert (genotype.name, form) == ("mine", "DARTS")
    assert said == "normal 4 edges into nodes 2,3, concat 3,2; reduction 2 edges into nodes 2, concat 2"


def test_triples_are_the_cell_that_fair_darts_builds():
    genotype, form, said = darts_genotype.from_dict(TRIPLES, "mine")
    assert genotype.normal == Cell((Edge(2, 0, "sep_conv_3x3"), Edge(2, 0, "sep_conv_5x5"), Edge(4, 2, "max_pool_3x3")), (2, 4))
    # Nothing feeds node 4; nodes leave the cell in the order in which they first appear.
    assert genotype.reduction == Cell((Edge(3, 1, "dil_conv_5x5"), Edge(2, 1, "avg_pool_3x3"), Edge(5, 3, "sep_conv_3x3")), (3, 2, 5))
    assert form == "FairDARTS"
    assert said.endswith("reduction 3 edges into nodes 2,3,5, concat 3,2,5 (left out skip_connect from node 4, which nothing feeds)")


def test_what_may_be_left_out():
    genotype, _, _ = darts_genotype.from_dict(without(PAIRS, "normal_concat", "reduce_concat"), "mine")
    assert genotype.normal.concat == (2, 3) and genotype.reduction.concat == (2,)
    assert darts_genotype.from_dict({**PAIRS, "name": "theirs"}, "mine")[0].name == "theirs"


def test_a_name_that_cannot_be_printed_is_shortened(tmp_path):
    read, _ = load(tmp_path, PAIRS, "a\tb" + "c" * 240 + ".json")
    assert read.name == "ab" + "c" * 198


def test_schema_1_is_read_as_it_is(tmp_path):
    assert load(tmp_path, registry.load("PDARTS").to_json()) == (registry.load("PDARTS"), None)
    for data in ({}, [], {"schema_version": 2}, {**PAIRS, "schema_version": 1}, {"edges": []}):
        assert not darts_genotype.is_darts(data)
    assert all(map(darts_genotype.is_darts, (PAIRS, TRIPLES, {"normal": []}, {"reduce_concat": 1})))


REFUSED = {
    "odd number of pairs": (
        changed(PAIRS, "normal", value=PAIRS["normal"][:3]),
        "normal must have two entries a node, an even number of [operation, predecessor]. Received: 3",
    ),
    "pairs and triples": (changed(PAIRS, "reduce", 1, value=["none", 2, 0]), "reduce[1] must have 2 items, as normal[0] has: "),
    "triples and pairs": (changed(TRIPLES, "normal", 2, value=["none", 0]), "normal[2] must have 3 items, as normal[0] has: "),
    "four items": (changed(PAIRS, "normal", 0, value=["none", 0, 0, 0]), "normal[0] must be [operation, predecessor] (DARTS) or "),
    "an entry that is no list": (changed(PAIRS, "normal", 3, value="none"), "normal[3] must be [operation, predecessor] (DARTS) or "),
    "a node's own list": (changed(PAIRS, "normal", 0, value=[["none", 0], ["none", 1]]), "normal[0].predecessor must be an integer"),
    "no list": (changed(PAIRS, "reduce", value={"edges": []}), "reduce must be a list of [operation, predecessor] (DARTS) or "),
    "no entries": (changed(PAIRS, "reduce", value=[]), "reduce must have 1 to 1024 entries. Received: 0"),
    "many entries": (changed(PAIRS, "normal", value=PAIRS["normal"] * MAX_EDGES), "normal must have 1 to 1024 entries. Received: 4096"),
    "many nodes": (changed(PAIRS, "normal", value=[["none", 0]] * 128), "normal[126].node must be an integer from 0 to 64. Received: 65"),
    "the same node": (changed(PAIRS, "normal", 2, 1, value=3), "normal[2] must come from an earlier node than it ends in. Received: "),
    "a later node": (changed(TRIPLES, "normal", 2, 2, value=5), "normal[2] must come from an earlier node than it ends in. Received: "),
    "into an input": (changed(TRIPLES, "reduce", 0, value=["none", 1, 0]), "reduce[0] ends in an input of the cell"),
    "a boolean": (changed(PAIRS, "reduce", 1, 1, value=True), "reduce[1].predecessor must be an integer from 0 to 64. Received: True"),
    "a float": (changed(TRIPLES, "normal", 0, 1, value=2.0), "normal[0].node must be an integer from 0 to 64. Received: 2.0"),
    "a negative node": (changed(PAIRS, "normal", 0, 1, value=-1), "normal[0].predecessor must be an integer"),
    "text for a node": (changed(PAIRS, "normal", 0, 1, value="0"), "normal[0].predecessor must be an integer"),
    "an operation": (
        changed(PAIRS, "normal", 0, 0, value="sep_conv_3"),
        "normal[0] has an unknown operation. Did you mean 'sep_conv_3x3'? Expected one of none, max_pool_3x3,",
    ),
    "turned round": (changed(PAIRS, "normal", 0, value=[0, "sep_conv_3x3"]), "normal[0].predecessor must be an integer"),
    "unknown key": ({**PAIRS, "reduction": []}, "the DARTS genotype has an unknown key. Did you mean 'reduce'? Expected normal, reduce,"),
    "no reduction cell": (without(PAIRS, "reduce"), "the DARTS genotype lacks 'reduce'. Expected normal, reduce."),
    "empty concat": ({**PAIRS, "reduce_concat": []}, "reduce_concat must name at least one node. Received: []"),
    "concat of an input": ({**PAIRS, "normal_concat": [1, 2]}, "normal_concat holds intermediate nodes, from 2 up. Received: 1"),
    "repeated concat": ({**TRIPLES, "normal_concat": [2, 4, 2]}, "normal_concat must not repeat a node. Received: [2, 4, 2]"),
    "dangling concat": ({**PAIRS, "normal_concat": [2, 5]}, "normal_concat uses node 5, which no edge feeds. Received: concat=[2, 5]"),
    "concat of booleans": ({**PAIRS, "normal_concat": [2, True]}, "normal_concat holds intermediate nodes"),
    "concat of lists": ({**TRIPLES, "normal_concat": [[2]]}, "normal_concat holds intermediate nodes, from 2 up. Received: [2]"),
    "concat that is a number": ({**PAIRS, "normal_concat": 2}, "normal_concat must be a list of at most 64 nodes. Received: 2"),
    "only from isolated nodes": (
        changed(TRIPLES, "normal", 2, 2, value=3),
        "normal feeds node 4 only from nodes that nothing feeds. Received: [Edge(node=4, predecessor=3, operation='max_pool_3x3')]",
    ),
    "name": ({**PAIRS, "name": "two\nlines"}, "a genotype's name must be a string of at most 200 printable characters."),
    "no form": (
        {"cells": []},
        "the genotype has an unknown key. Expected schema_version, name, normal, reduction, search_space. Received: 'cells'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_entry(name, tmp_path):
    content, expected = REFUSED[name]
    assert refusal(tmp_path, content).startswith(expected)


FORM = "a genotype as Python text must be Genotype(normal=[('sep_conv_3x3', 0), …], normal_concat=range(2, 6), reduce=[…]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Genotype(", "'(' was never closed"),
        ("Genotype(normal=[)", FORM),
        ("Genotype(normal='\\d')", "invalid escape sequence"),
        ("Genotype(normal='\0')", FORM),
        ("Genotype(normal=" + "9" * 5000 + ")", FORM),
        ("Genotype(" + "[" * 60_000, "too many nested parentheses"),
        ("Genotype(normal=" + "-" * 60_000 + "1)", "nested too deeply"),
        ("Genotype" + "()" * 32_000, "nested too deeply"),
        ("Genotype(normal=" + "1+" * 32_000 + "1)", "nested too deeply"),
        ("Genotype(" + "a" * (1 << 16) + ")", "at most 65536 characters. Received: 65546"),
        ("Genotype([], [2])", "and nothing else"),
        ("Genotype(normal=[]).__class__", "and nothing else"),
        ("Genotype(normal=[]); import os", "and nothing else"),
        ("Genotype(normal=[])\nGenotype(normal=[])", "and nothing else"),
        ("x = Genotype(normal=[]) or 1", "and nothing else"),
        ("Genotype(**{})", "each key once. Received: '**'"),
        ("Genotype(normal=1, normal=2)", "each key once. Received: 'normal'"),
        ("Genotype(normal=open('x').read())", "strings, integers, lists, tuples and range(a, b) only. Received: Call in line 1"),
        ("Genotype(\nnormal=__import__('os').abort())", "Received: Call in line 2"),
        ("Genotype(normal=[*x])", "Received: Starred in line 1"),
        ("Genotype(normal=[x for x in y])", "Received: ListComp in line 1"),
        ("Genotype(normal=-1)", "Received: UnaryOp in line 1"),
        ("Genotype(normal_concat=range(2, 6, 2))", "Received: Call in line 1"),
        ("Genotype(normal_concat=range('x'))", "Received: Call in line 1"),
        ("Genotype(normal_concat=list(5))", "Received: Call in line 1"),
        ("Genotype(normal_concat=range(10**9))", "Received: BinOp in line 1"),
        (DARTS_V2.replace("[2, 3, 4, 5]", "range(999999999999999999999)"), "normal_concat must be a list of at most 64 nodes"),
        (DARTS_V2.replace("[2, 3, 4, 5]", "range(6, 2)"), "normal_concat must name at least one node"),
        (DARTS_V2.replace("('sep_conv_3x3', 0)", "('sep_conv_3x3', True)", 1), "normal[0].predecessor must be an integer"),
        (DARTS_V2.replace("('sep_conv_3x3', 0)", "(b'sep', 0)", 1), "normal[0] has an unknown operation"),
        ("Genotypes(normal=[])", "a genotype must be JSON of schema 1"),
        ("from os import abort; Genotype(normal=[])", "a genotype must be JSON of schema 1"),
    ],
)
def test_text_is_read_and_never_run(tmp_path, text, expected):
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "Genotype(normal = (('none', 0), ['none', 1]), reduce=tuple([('none', 0), ('none', 1)]), normal_concat=range(3)[2:])",
        "  \n# a comment\n\ng=Genotype (normal=[('none',0),('none',1)],reduce=[('none',0),('none',1)],name='mine',)  # and one\n",
    ],
)
def test_text_is_read_as_python_reads_it(tmp_path, text):
    text = text.replace("range(3)[2:]", "range(2, 3)")
    assert load(tmp_path, text)[0].normal == Cell((Edge(2, 0, "none"), Edge(2, 1, "none")), (2,))


LEAF = st.none() | st.booleans() | st.integers(-2, 70) | st.floats() | st.text(max_size=3) | st.sampled_from(DARTS_OPERATIONS)
PATHS = [(), ("normal",), ("normal", 1), ("normal", 1, 0), ("reduce", 0, 1), ("reduce", 0, -1), ("normal_concat",), ("normal_concat", 0)]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from([PAIRS, TRIPLES]),
    st.sampled_from(PATHS),
    st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*PAIRS, "name", "x"]), inner)),
)
def test_anything_is_converted_or_refused_by_one_line(data, path, value):
    data = changed(data, *path, value=value) if path else value
    if not darts_genotype.is_darts(data):
        return
    try:
        _, _, said = darts_genotype.from_dict(data, "mine")
    except GenotypeError as error:
        said = str(error)
    assert "\n" not in said


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([FAIR_DARTS_A, DARTS_V2]), st.integers(0, 400), st.integers(0, 3), st.text("()[]{},='\"\\\n#*:x0 ", max_size=3))
def test_damaged_text_is_converted_or_refused_by_one_line(tmp_path_factory, text, start, length, inserted):
    text = text[:start] + inserted + text[start + length :]
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_text(text, encoding="utf-8")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, said = darts_genotype.load(path)
    except GenotypeError as error:
        said = str(error)
    assert "\n" not in said
