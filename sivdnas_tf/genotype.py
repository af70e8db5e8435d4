"""A found architecture as data: two cells, each a list of operations on edges. JSON schema 1. Imports no TensorFlow.

    {"schema_version": 1, "name": "mine",
     "normal": {"edges": [{"node": 2, "predecessor": 0, "operation": "sep_conv_3x3"}, ...], "concat": [2, 3, 4, 5]},
     "reduction": {...}}

Nodes 0 and 1 are the outputs of cells k-2 and k-1, intermediate nodes count from 2. Several operations on one edge are several
entries, and are summed; so is an operation that an edge names twice (NASNet). A cell's output concatenates the nodes in `concat`.
A file from a stranger is read as JSON and checked here; it can at worst be refused.
"""

import dataclasses
import hashlib
import json
import pathlib

from sivdnas_tf.errors import GenotypeError, nearest
from sivdnas_tf.search_space import CELL_TYPES, EVALUATION_OPERATIONS, N_CELL_INPUTS

SCHEMA_VERSION = 1
# Far above any published cell (5 nodes); keeps a hostile file from asking for a network that fills the memory.
MAX_NODE = 64
MAX_EDGES = 1024
MAX_NAME_LENGTH = 200
_MAX_FILE_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Edge:
    """One operation from `predecessor` into `node`."""

    node: int
    predecessor: int
    operation: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """Operations on edges, and the nodes whose concatenation leaves the cell.

    Attributes:
      edges: tuple of `Edge`, in the order of the file.
      concat: tuple of intermediate nodes, in the order of concatenation.
    """

    edges: tuple
    concat: tuple

    @property
    def nodes(self):
        """Intermediate nodes that an edge feeds, in order of computation."""
        return tuple(sorted({edge.node for edge in self.edges}))

    def edges_into(self, node):
        """The edges that end in `node`, in the order of the file."""
        return tuple(edge for edge in self.edges if edge.node == node)


@dataclasses.dataclass(frozen=True)
class Genotype:
    """A pair of cells with a name. Build one with `from_dict`, `from_json` or `load`: they validate.

    Attributes:
      name: for tables and reports; says nothing about the architecture.
      normal, reduction: `Cell`s.
    """

    name: str
    normal: Cell
    reduction: Cell

    def __post_init__(self):
        for cell_type in CELL_TYPES:
            _check_cell(getattr(self, cell_type), cell_type)

    def cell(self, cell_type):
        """The cell of type "normal" or "reduction"."""
        return {"normal": self.normal, "reduction": self.reduction}[cell_type]

    @property
    def multipliers(self):
        """Number of concatenated nodes of the normal and of the reduction cell: what `plan_network` needs."""
        return len(self.normal.concat), len(self.reduction.concat)

    def canonical(self):
        """The same architecture with edges and concatenation in sorted order.

        Two genotypes whose canonical cells are equal build the same function, up to the order of channels.
        """
        cells = [
            Cell(
                edges=tuple(
                    sorted(cell.edges, key=lambda edge: (edge.node, edge.predecessor, EVALUATION_OPERATIONS.index(edge.operation)))
                ),
                concat=tuple(sorted(cell.concat)),
            )
            for cell in (self.normal, self.reduction)
        ]
        return Genotype(self.name, *cells)

    @property
    def sha256(self):
        """Hex digest of the architecture as it is built (its name excluded), by which stages recognise their input."""
        cells = {cell_type: value for cell_type, value in self.to_dict().items() if cell_type in CELL_TYPES}
        return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()

    def to_dict(self):
        """The genotype as JSON types, schema 1."""
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            **{
                cell_type: {
                    "edges": [dataclasses.asdict(edge) for edge in self.cell(cell_type).edges],
                    "concat": list(self.cell(cell_type).concat),
                }
                for cell_type in CELL_TYPES
            },
        }

    def to_json(self):
        """The genotype as JSON text that ends in a newline."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_dict(cls, data):
        """Reads JSON types; raises `GenotypeError` naming the entry that is wrong."""
        check_keys(data, ("schema_version", "name", *CELL_TYPES), "the genotype")
        version = data["schema_version"]
        if not _is_int(version) or version != SCHEMA_VERSION:
            raise GenotypeError(f"unknown genotype schema. Expected schema_version={SCHEMA_VERSION}. Received: {shown(version)}")
        return cls(check_name(data["name"]), *(_read_cell(data[cell_type], cell_type) for cell_type in CELL_TYPES))

    @classmethod
    def from_json(cls, text):
        """Reads JSON text; raises `GenotypeError` where it is not JSON, repeats a key, holds NaN, or is not schema 1."""
        return cls.from_dict(parse_json(text))

    @classmethod
    def load(cls, path):
        """Reads a file; raises `GenotypeError`, naming the file, where it cannot be read or is refused."""
        text = read_text(path)
        try:
            return cls.from_json(text)
        except GenotypeError as error:
            raise GenotypeError(f"{path}: {error}") from None


def read_text(path):
    """The text of a genotype file; raises `GenotypeError`, naming the file, where it cannot be read, is too long, or is not text."""
    try:
        with pathlib.Path(path).open("rb") as stream:
            data = stream.read(_MAX_FILE_BYTES + 1)  # bounded: a pipe or a device tells no size
        if len(data) > _MAX_FILE_BYTES:
            raise GenotypeError(f"{path}: a genotype file is at most {_MAX_FILE_BYTES} bytes. Received: a longer file")
        return data.decode("utf-8")
    except OSError as error:
        raise GenotypeError(f"cannot read the genotype file: {error.strerror}. Received: {path}") from None
    except UnicodeDecodeError:
        raise GenotypeError(f"{path}: a genotype must be JSON of schema 1. Received: bytes that are not UTF-8 text") from None


def parse_json(text):
    """JSON types of JSON text; raises `GenotypeError` where it is not JSON, repeats a key, or holds NaN or a huge integer."""
    try:
        return json.loads(text, object_pairs_hook=_without_duplicates, parse_constant=_refuse_constant, parse_int=_parse_int)
    except GenotypeError:
        raise
    except RecursionError:
        raise GenotypeError("a genotype must be JSON of schema 1. Received: JSON nested too deeply") from None
    except ValueError as error:
        raise GenotypeError(f"a genotype must be JSON of schema 1. Received: {shown(text)} ({error})") from None


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value):
    """A value as an error shows it: its `repr`, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _without_duplicates(pairs):
    values = {}
    for key, value in pairs:
        if key in values:
            raise GenotypeError(f"a genotype must not repeat a key. Received: {shown(key)} twice in one object")
        values[key] = value
    return values


def _refuse_constant(name):
    raise GenotypeError(f"a genotype holds only strings and integers. Received: {name}")


def _parse_int(text):
    if len(text) > 9:  # no schema field is that large, and Python refuses to print integers of many thousand digits
        raise GenotypeError(f"a genotype's integers are small. Received: an integer of {len(text)} digits")
    return int(text)


def check_name(name):
    """`name`, which goes to terminals, tables and one-line errors; raises `GenotypeError` unless it is short and printable."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME_LENGTH:
        raise GenotypeError(
            f"a genotype's name must be a string of at most {MAX_NAME_LENGTH} printable characters. Received: name={shown(name)}"
        )
    return name


def check_keys(data, expected, where, optional=()):
    """Raises `GenotypeError` unless `data` is a dict that has every key of `expected`, and no other but those of `optional`."""
    if not isinstance(data, dict):
        raise GenotypeError(f"{where} must be an object with {', '.join(expected)}. Received: {shown(data)}")
    for key in data:
        if key not in expected and key not in optional:
            known = (*expected, *optional)
            raise GenotypeError(f"{where} has an unknown key.{nearest(key, known)} Expected {', '.join(known)}. Received: {shown(key)}")
    for key in expected:
        if key not in data:
            raise GenotypeError(f"{where} lacks {key!r}. Expected {', '.join(expected)}. Received: {', '.join(map(shown, data))}")


def _read_cell(data, cell_type):
    check_keys(data, ("edges", "concat"), f"the {cell_type} cell")
    for key in ("edges", "concat"):
        if not isinstance(data[key], list):
            raise GenotypeError(f"{cell_type}.{key} must be a list. Received: {shown(data[key])}")
    if len(data["edges"]) > MAX_EDGES:
        raise GenotypeError(f"{cell_type}.edges may have at most {MAX_EDGES} entries. Received: {len(data['edges'])}")
    edges = []
    for index, entry in enumerate(data["edges"]):
        where = f"{cell_type}.edges[{index}]"
        check_keys(entry, ("node", "predecessor", "operation"), where)
        edges.append(Edge(entry["node"], entry["predecessor"], entry["operation"]))
    return Cell(tuple(edges), tuple(data["concat"]))


def check_edge(edge, where):
    """Raises `GenotypeError`, calling the edge `where`, unless its nodes are small integers, in order, and evaluation has its operation."""
    for field in ("node", "predecessor"):
        value = getattr(edge, field)
        if not _is_int(value) or not 0 <= value <= MAX_NODE:
            raise GenotypeError(f"{where}.{field} must be an integer from 0 to {MAX_NODE}. Received: {shown(value)}")
    if edge.node < N_CELL_INPUTS:
        raise GenotypeError(f"{where} ends in an input of the cell. Expected a node from {N_CELL_INPUTS} up. Received: node={edge.node}")
    if edge.predecessor >= edge.node:
        raise GenotypeError(
            f"{where} must come from an earlier node than it ends in. Received: predecessor={edge.predecessor}, node={edge.node}"
        )
    if not isinstance(edge.operation, str) or edge.operation not in EVALUATION_OPERATIONS:
        raise GenotypeError(
            f"{where} has an unknown operation.{nearest(edge.operation, EVALUATION_OPERATIONS)} "
            f"Expected one of {', '.join(EVALUATION_OPERATIONS)}. Received: {shown(edge.operation)}"
        )


def check_concat(concat, fed, where):
    """Raises `GenotypeError`, calling the concatenation `where`, unless it names nodes of the set `fed`, at least one, each once."""
    if not concat:
        raise GenotypeError(f"{where} must name at least one node. Received: []")
    for node in concat:
        if not _is_int(node) or node < N_CELL_INPUTS:
            raise GenotypeError(f"{where} holds intermediate nodes, from {N_CELL_INPUTS} up. Received: {shown(node)}")
        if concat.count(node) > 1:
            raise GenotypeError(f"{where} must not repeat a node. Received: {shown(list(concat))}")
        if node not in fed:
            raise GenotypeError(f"{where} uses node {node}, which no edge feeds. Received: concat={shown(list(concat))}")


def _check_cell(cell, cell_type):
    for index, edge in enumerate(cell.edges):
        check_edge(edge, f"{cell_type}.edges[{index}]")
    fed = {edge.node for edge in cell.edges}
    check_concat(cell.concat, fed, f"{cell_type}.concat")
    for index, edge in enumerate(cell.edges):
        if edge.predecessor >= N_CELL_INPUTS and edge.predecessor not in fed:
            raise GenotypeError(f"{cell_type}.edges[{index}] comes from node {edge.predecessor}, which no edge feeds. Received: {edge}")
