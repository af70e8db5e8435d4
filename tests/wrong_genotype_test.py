"""Genotype files that are wrong, given to `profile` and `train`: one line that names the file and what is wrong, and nothing written."""

import json

import pytest

from sivdnas_tf.search_space import DARTS_OPERATIONS
from sivdnas_tf.zoo import registry

EDGES = (
    {"node": 2, "predecessor": 0, "operation": "sep_conv_3x3"},
    {"node": 2, "predecessor": 1, "operation": "skip_connect"},
    {"node": 3, "predecessor": 2, "operation": "max_pool_3x3"},
)
OPERATIONS = ", ".join(DARTS_OPERATIONS)


def genotype(*, version=1, concat=(2, 3), added=(), **third):
    """JSON text of a genotype: the third edge with other fields, other edges behind it, another concat, another version."""
    edges = [*EDGES[:2], {**EDGES[2], **third}, *added]
    cell = {"edges": edges, "concat": list(concat)}
    return json.dumps({"schema_version": version, "name": "wrong", "normal": cell, "reduction": {"edges": list(EDGES), "concat": [2, 3]}})


WRONG = {
    "empty": ("", "a genotype must be JSON of schema 1. Received: '' (Expecting value: line 1 column 1 (char 0))"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "a genotype must be JSON of schema 1. Received: bytes that are not UTF-8 text"),
    "binary that is text": (b"\x00" * 64, "a genotype must be JSON of schema 1. Received: '\\x00\\x00"),
    "not JSON": ("normal: sep_conv_3x3", "a genotype must be JSON of schema 1. Received: 'normal: sep_conv_3x3' (Expecting value"),
    "half of one": (genotype()[:200], "a genotype must be JSON of schema 1. Received: "),
    "a list": ("[]", "the genotype must be an object with schema_version, name, normal, reduction. Received: []"),
    "100,000 brackets": ("[" * 100_000, "a genotype must be JSON of schema 1. Received: JSON nested too deeply"),
    "100,000 objects": ('{"normal":' * 100_000, "a genotype must be JSON of schema 1. Received: JSON nested too deeply"),
    "too long": (b" " * ((1 << 20) + 1), "a genotype file is at most 1048576 bytes. Received: a longer file"),
    "another version": (genotype(version=2), "unknown genotype schema. Expected schema_version=1. Received: 2"),
    "no version": (genotype().replace('"schema_version": 1, ', ""), "the genotype lacks 'schema_version'. Expected "),
    "a key twice": (genotype().replace("{", '{"name": "a", ', 1), "a genotype must not repeat a key. Received: 'name' twice in one object"),
    "a key twice in an edge": (genotype().replace('"node": 3', '"node": 3, "node": 4', 1), "Received: 'node' twice in one object"),
    "an unknown key": (genotype(operations="none"), "normal.edges[2] has an unknown key. Did you mean 'operation'? Expected "),
    "NaN": (genotype(node=float("nan")), "a genotype holds only strings and integers. Received: NaN"),
    "infinity": (genotype(predecessor=-float("inf")), "a genotype holds only strings and integers. Received: -Infinity"),
    "a boolean": (genotype(node=True), "normal.edges[2].node must be an integer from 0 to 64. Received: True"),
    "a float": (genotype(predecessor=1.0), "normal.edges[2].predecessor must be an integer from 0 to 64. Received: 1.0"),
    "null": (genotype(node=None), "normal.edges[2].node must be an integer from 0 to 64. Received: None"),
    "a huge integer": (
        genotype().replace('"node": 2', '"node": ' + "2" * 5000, 1),
        "a genotype's integers are small. Received: an integer of 5000 digits",
    ),
    "a large integer": (genotype(node=999_999_999), "normal.edges[2].node must be an integer from 0 to 64. Received: 999999999"),
    "a negative node": (genotype(predecessor=-1), "normal.edges[2].predecessor must be an integer from 0 to 64. Received: -1"),
    "the same node": (
        genotype(predecessor=3),
        "normal.edges[2] must come from an earlier node than it ends in. Received: predecessor=3, ",
    ),
    "a later node": (
        genotype(predecessor=4),
        "normal.edges[2] must come from an earlier node than it ends in. Received: predecessor=4, ",
    ),
    "into an input": (
        genotype(node=1, predecessor=0),
        "normal.edges[2] ends in an input of the cell. Expected a node from 2 up. ",
    ),
    "an operation": (
        genotype(operation="sep_conv_3"),
        f"normal.edges[2] has an unknown operation. Did you mean 'sep_conv_3x3'? Expected one of {OPERATIONS}. Received: 'sep_conv_3'",
    ),
    "an operation of elsewhere": (genotype(operation="mbconv_6"), f"Expected one of {OPERATIONS}. Received: 'mbconv_6'"),
    "a used node that nothing feeds": (
        genotype(added=[{"node": 5, "predecessor": 4, "operation": "none"}], concat=[2, 3, 5]),
        "normal.edges[3] comes from node 4, which no edge feeds. Received: Edge(node=5, predecessor=4, operation='none')",
    ),
    "an empty concat": (genotype(concat=[]), "normal.concat must name at least one node. Received: []"),
    "a repeated concat": (genotype(concat=[2, 3, 2]), "normal.concat must not repeat a node. Received: [2, 3, 2]"),
    "a dangling concat": (genotype(concat=[2, 4]), "normal.concat uses node 4, which no edge feeds. Received: concat=[2, 4]"),
    "a concat of an input": (genotype(concat=[0, 2]), "normal.concat holds intermediate nodes, from 2 up. Received: 0"),
    "a concat of booleans": (genotype(concat=[True]), "normal.concat holds intermediate nodes, from 2 up. Received: True"),
    "a DARTS cell with an odd number of edges": (
        '{"normal": [["none", 0]], "reduce": [["none", 0], ["none", 1]]}',
        "normal must have two entries a node, an even number of [operation, predecessor]. Received: 1",
    ),
    "Python that is no genotype": ("Genotype(normal=open('x'))", "strings, integers, lists, tuples and range(a, b) only. Received: Call"),
}


@pytest.fixture(name="path", params=WRONG)
def fixture_path(request, tmp_path):
    """A wrong file, with what must be said of it; the file is as it was afterwards."""
    content, expected = WRONG[request.param]
    content = content if isinstance(content, bytes) else content.encode()
    path = tmp_path / "wrong.json"
    path.write_bytes(content)
    yield path, expected
    assert path.read_bytes() == content and [item.name for item in tmp_path.iterdir()] == ["wrong.json"]


def test_what_is_wrong_here_is_right_without_it(call, tmp_path):
    (tmp_path / "right.json").write_text(genotype(), encoding="utf-8")
    code, out, err = call("profile", f"--genotype={tmp_path}/right.json", "--network=cifar", "--json")
    assert (code, err, json.loads(out)["name"]) == (0, "", "wrong")


def test_a_wrong_file_is_refused_by_both_commands(refusal, path, tiny_config, tmp_path):
    file, expected = path
    train = ["train", f"--config={tiny_config}", f"--workdir={tmp_path}/run", f"--genotype={file}"]
    # A right genotype before the wrong one is not priced: nothing is printed.
    for arguments in (["profile", f"--genotype=PDARTS,{file}", "--network=cifar", "--json"], train):
        message = refusal(*arguments)
        assert message.startswith(f"sivdnas_tf: {file}: ") and expected in message


def test_files_that_are_none(refusal, workdir, tiny_config, tmp_path):
    train = ["train", f"--config={tiny_config}", f"--workdir={workdir}"]
    for start in (["profile", "--network=cifar"], train):
        assert "Did you mean 'DARTS_V2'?" in refusal(*start, "--genotype=DARTS_V22")
        assert "no file of this name exists" in refusal(*start, f"--genotype={tmp_path}/none.json")
        assert f"cannot read the genotype file: Is a directory. Received: {tmp_path}\n" in refusal(*start, f"--genotype={tmp_path}")


def test_a_file_with_a_strange_name_is_refused_in_one_line(refusal, tmp_path):
    path = tmp_path / "two\nlines.json"
    path.write_text("{")
    refusal("profile", "--network=cifar", f"--genotype={path}")


def test_the_zoo_is_accepted_whole(call, tmp_path):
    for name in registry.names():
        (tmp_path / f"{name}.json").write_text(registry.load(name).to_json(), encoding="utf-8")
    files = ",".join(f"{tmp_path}/{name}.json" for name in registry.names())
    code, out, err = call("profile", f"--genotype={files}", "--network=cifar", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["name"] for line in out.splitlines()] == list(registry.names())


def test_profile_says_what_it_converted_beside_its_json_lines(call, tmp_path):
    """The zoo's cells of two edges a node, as DARTS writes them, cost what the published ones cost."""
    names = ["DARTS_V2", "NASNet", "SNAS_aggressive"]
    for name in names:
        cells = {key: registry.load(name).cell(cell_type) for cell_type, key in (("normal", "normal"), ("reduction", "reduce"))}
        data = {key: [[edge.operation, edge.predecessor] for edge in cell.edges] for key, cell in cells.items()}
        data |= {f"{key}_concat": list(cell.concat) for key, cell in cells.items()}
        (tmp_path / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")
    files = ",".join(f"{tmp_path}/{name}.json" for name in names)
    code, out, err = call("profile", f"--genotype={files},PDARTS", "--network=imagenet", "--json")
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["name"] for row in rows] == [*names, "PDARTS"]
    for row in rows:
        assert {key: row[key] for key in ("params", "macs")} == {
            key: registry.entry(row["name"])["counts"]["imagenet"][key] for key in ("params", "macs")
        }
    lines = err.splitlines()
    assert [line.partition(": normal")[0] for line in lines] == [
        f"sivdnas_tf: converted the DARTS genotype {tmp_path}/{name}.json" for name in names
    ]
    assert lines[1].endswith(
        "normal 10 edges into nodes 2,3,4,5,6, concat 2,3,4,5,6; reduction 10 edges into nodes 2,3,4,5,6, concat 4,5,6"
    )
