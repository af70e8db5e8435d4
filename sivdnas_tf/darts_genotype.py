"""Other people's genotypes as they write them, converted to schema 1. Imports no TensorFlow, evaluates nothing.

DARTS and its many descendants list two edges a node, in the order of the nodes:

    {"normal": [["sep_conv_3x3", 0], ["sep_conv_3x3", 1], …], "normal_concat": [2, 3, 4, 5], "reduce": […], "reduce_concat": […]}

FairDARTS lists any number of edges a node, each with its node: `["sep_conv_3x3", 2, 0]` is operation, node, predecessor. Both are read
as JSON, and as the Python text that their repositories and logs print: `Genotype(normal=[('sep_conv_3x3', 0), …], normal_concat=
range(2, 6), …)`, perhaps after `NAME =`. A concat that is left out names every node; a "name" is optional, the file's stem without it.

Reference for the two meanings: quark0/darts cnn/model.py (Cell) and xiaomi-automl/FairDARTS fairdarts/model.py (DCOCell).
"""

import ast
import pathlib
import re
import warnings

from sivdnas_tf.errors import GenotypeError
from sivdnas_tf.genotype import (
    MAX_EDGES,
    MAX_NAME_LENGTH,
    MAX_NODE,
    Cell,
    Edge,
    Genotype,
    check_concat,
    check_edge,
    check_keys,
    check_name,
    parse_json,
    read_text,
    shown,
)
from sivdnas_tf.search_space import N_CELL_INPUTS

_CELL_KEYS = {"normal": "normal", "reduction": "reduce"}
_OPTIONAL_KEYS = ("normal_concat", "reduce_concat", "name")
_ENTRY = "[operation, predecessor] (DARTS) or [operation, node, predecessor] (FairDARTS)"
_PYTHON = re.compile(r"\s*+(?:#[^\n]*+\s*+)*+(?:[A-Za-z_]\w*+\s*+=\s*+)?Genotype\s*+\(")
_PYTHON_FORM = "Genotype(normal=[('sep_conv_3x3', 0), …], normal_concat=range(2, 6), reduce=[…], reduce_concat=range(2, 6))"
_MAX_PYTHON_CHARACTERS = 1 << 16


def load(path):
    """Reads a genotype file of any form.

    Args:
      path: a file of schema 1, or of DARTS' or FairDARTS' form, as JSON or as Python text.

    Returns:
      The `Genotype`, and one line that says what was converted, or None where the file is of schema 1.

    Raises:
      GenotypeError: naming the file, where it cannot be read or is refused.
    """
    text = read_text(path)
    try:
        data = _parse_python(text) if _PYTHON.match(text) else parse_json(text)
        if not is_darts(data):
            return Genotype.from_dict(data), None
        stem = "".join(character for character in pathlib.Path(path).stem if character.isprintable())
        genotype, form, said = from_dict(data, stem[:MAX_NAME_LENGTH])
    except GenotypeError as error:
        raise GenotypeError(f"{path}: {error}") from None
    return genotype, f"converted the {form} genotype {path}: {said}"


def is_darts(data):
    """Whether JSON types are meant to be a genotype of DARTS or FairDARTS: no schema version, but keys of theirs."""
    if not isinstance(data, dict) or "schema_version" in data:
        return False
    return isinstance(data.get("normal"), list) or not {"reduce", "normal_concat", "reduce_concat"}.isdisjoint(data)


def from_dict(data, name):
    """Converts JSON types.

    Args:
      data: a dict as in the module's docstring.
      name: of the genotype, unless `data` has one.

    Returns:
      `(genotype, form, said)`: a `Genotype`, "DARTS" or "FairDARTS", and what became of the two cells, in one line.

    Raises:
      GenotypeError: naming the entry that is wrong.
    """
    check_keys(data, tuple(_CELL_KEYS.values()), "the DARTS genotype", _OPTIONAL_KEYS)
    entries = {key: _entries(data[key], key) for key in _CELL_KEYS.values()}
    triples = _are_triples(entries)
    cells, said = [], []
    for cell_type, key in _CELL_KEYS.items():
        edges = _edges(entries[key], key, triples)
        concat = data.get(f"{key}_concat")
        cell, remarks = _fair_darts_cell(edges, concat, key) if triples else (_darts_cell(edges, concat, key), [])
        cells.append(cell)
        nodes, count = ",".join(map(str, cell.nodes)), len(cell.edges)
        concatenated = ",".join(map(str, cell.concat))
        line = f"{cell_type} {count} {'edge' if count == 1 else 'edges'} into nodes {nodes}, concat {concatenated}"
        said.append(f"{line} ({'; '.join(remarks)})" if remarks else line)
    return Genotype(check_name(data.get("name", name)), *cells), "FairDARTS" if triples else "DARTS", "; ".join(said)


def _entries(entries, key):
    if not isinstance(entries, list):
        raise GenotypeError(f"{key} must be a list of {_ENTRY}. Received: {shown(entries)}")
    if not 1 <= len(entries) <= MAX_EDGES:
        raise GenotypeError(f"{key} must have 1 to {MAX_EDGES} entries. Received: {len(entries)}")
    for index, entry in enumerate(entries):
        if not isinstance(entry, list) or len(entry) not in (2, 3):
            raise GenotypeError(f"{key}[{index}] must be {_ENTRY}. Received: {shown(entry)}")
    return entries


def _are_triples(entries):
    """Whether all entries of both cells have three items; raises `GenotypeError` where some have two and some three."""
    expected = len(entries["normal"][0])
    for key, listed in entries.items():
        for index, entry in enumerate(listed):
            if len(entry) != expected:
                raise GenotypeError(
                    f"{key}[{index}] must have {expected} items, as normal[0] has: {_ENTRY}, not both. Received: {shown(entry)}"
                )
    return expected == 3


def _edges(entries, key, triples):
    if not triples and len(entries) % 2:
        raise GenotypeError(f"{key} must have two entries a node, an even number of [operation, predecessor]. Received: {len(entries)}")
    edges = []
    for index, entry in enumerate(entries):
        operation, node, predecessor = entry if triples else (entry[0], N_CELL_INPUTS + index // 2, entry[1])
        edges.append(Edge(node, predecessor, operation))
        check_edge(edges[-1], f"{key}[{index}]")
    return edges


def _darts_cell(edges, concat, key):
    """DARTS concatenates what the concat names; it names every node where it is left out."""
    fed = {edge.node for edge in edges}
    concat = sorted(fed) if concat is None else _listed(concat, key)
    check_concat(concat, fed, f"{key}_concat")
    return Cell(tuple(edges), tuple(concat))


def _fair_darts_cell(edges, concat, key):
    """The cell that FairDARTS' own code builds, and remarks on what it does without a word.

    It concatenates every node that has an entry, in order of first appearance, whatever the concat says; and it skips an edge from a
    node that has none.
    """
    fed = tuple(dict.fromkeys(edge.node for edge in edges))
    isolated = [edge for edge in edges if edge.predecessor >= N_CELL_INPUTS and edge.predecessor not in fed]
    kept = tuple(edge for edge in edges if edge not in isolated)
    starved = sorted(set(fed) - {edge.node for edge in kept})
    if starved:
        raise GenotypeError(f"{key} feeds node {starved[0]} only from nodes that nothing feeds. Received: {shown(isolated)}")
    remarks = [f"left out {edge.operation} from node {edge.predecessor}, which nothing feeds" for edge in isolated]
    if concat is not None:
        concat = _listed(concat, key)
        check_concat(concat, range(N_CELL_INPUTS, MAX_NODE + 1), f"{key}_concat")
        if tuple(concat) != fed:
            named = ",".join(map(str, concat))
            remarks.append(f"{key}_concat {named} is ignored, as in FairDARTS: every node with an entry leaves the cell")
    return Cell(kept, fed), remarks


def _listed(concat, key):
    if not isinstance(concat, list) or len(concat) > MAX_NODE:
        raise GenotypeError(f"{key}_concat must be a list of at most {MAX_NODE} nodes. Received: {shown(concat)}")
    return concat


def _parse_python(text):
    """JSON types of the text `Genotype(key=value, …)`, read by Python's parser and never run."""
    if len(text) > _MAX_PYTHON_CHARACTERS:
        raise GenotypeError(f"a genotype as Python text has at most {_MAX_PYTHON_CHARACTERS} characters. Received: {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of an odd escape, which becomes a SyntaxError then
            body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = "nested too deeply" if isinstance(error, (RecursionError, MemoryError)) else error
        raise GenotypeError(f"a genotype as Python text must be {_PYTHON_FORM}. Received: {shown(text)} ({reason})") from None
    call = body[0].value
    if len(body) > 1 or not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise GenotypeError(f"a genotype as Python text must be {_PYTHON_FORM} and nothing else. Received: {shown(text)}")
    data = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in data:
            raise GenotypeError(f"a genotype as Python text must be {_PYTHON_FORM}, each key once. Received: {shown(keyword.arg or '**')}")
        data[keyword.arg] = _literal(keyword.value)
    return data


def _literal(node):
    """The value of a constant, list, tuple, `range(…)`, or `list(…)` of one of these; tuples and ranges become lists."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
        arguments = [_literal(argument) for argument in node.args]
        if node.func.id == "range" and 1 <= len(arguments) <= 2 and all(type(argument) is int for argument in arguments):
            return list(range(*arguments)[: MAX_NODE + 1])  # one more than any concat may have, so that it is refused
        if node.func.id in ("list", "tuple") and len(arguments) == 1 and isinstance(arguments[0], list):
            return arguments[0]
    raise GenotypeError(
        "a genotype as Python text holds strings, integers, lists, tuples and range(a, b) only. "
        f"Received: {type(node).__name__} in line {node.lineno}"
    )
