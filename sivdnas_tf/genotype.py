"""A found architecture as data: two cells, each a list of operations on edges. JSON schema 1. Imports no TensorFlow.

    {"schema_version": 1, "name": "mine",
     "normal": {"edges": [{"node": 2, "predecessor": 0, "operation": "sep_conv_3x3"}, ...], "concat": [2, 3, 4, 5]},
     "reduction": {...}}

Without "search_space" it is of "darts". There, nodes 0 and 1 are the outputs of cells k-2 and k-1, intermediate nodes count from 2.
Several operations on one edge are several entries, and are summed; so is an operation that an edge names twice (NASNet). A cell's output
concatenates the nodes in `concat`.

    {"schema_version": 1, "name": "mine", "search_space": "nasbench201",
     "architecture_string": "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|",
     "normal": {"edges": [{"node": 1, "predecessor": 0, "operation": "nor_conv_3x3"}, ...], "concat": [3]}}

There, node 0 is the cell's input, each of the six edges has one entry, in order ("none" where it was dropped), and the string says the
same as the edges.

A file from a stranger is read as JSON and checked here; it can at worst be refused.
"""

import dataclasses
import hashlib
import json
import pathlib

from sivdnas_tf.architecture_string import format_architecture, parse_architecture
from sivdnas_tf.errors import GenotypeError, nearest
from sivdnas_tf.search_space import CELL_TYPES, DARTS_OPERATIONS, EVALUATION_OPERATIONS, N_CELL_INPUTS, SEARCH_SPACES

SCHEMA_VERSION = 1
_DEFAULT_SPACE = "darts"  # of a genotype that names none
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
    """The cells of an architecture, with a name. Build one with `from_dict`, `from_json` or `load`: they validate.

    Attributes:
      name: for tables and reports; says nothing about the architecture.
      normal, reduction: `Cell`s; None for the type that the search space does not have.
      search_space: name of the `SearchSpace` that its cells are of.
    """

    name: str
    normal: Cell
    reduction: Cell | None = None
    search_space: str = _DEFAULT_SPACE

    def __post_init__(self):
        for cell_type in CELL_TYPES:
            if (self.cell(cell_type) is not None) != (cell_type in self.cell_types):
                raise GenotypeError(
                    f"a genotype of {self.search_space} has the cells {', '.join(self.cell_types)}. "
                    f"Received: {cell_type}={shown(self.cell(cell_type))}"
                )
        for cell_type in self.cell_types:
            if self.search_space == _DEFAULT_SPACE:
                _check_cell(self.cell(cell_type), cell_type)
            else:
                _check_whole_cell(self.cell(cell_type), cell_type, SEARCH_SPACES[self.search_space])

    @property
    def cell_types(self):
        """Types of the cells that it has, in order."""
        return SEARCH_SPACES[self.search_space].cell_types

    def cell(self, cell_type):
        """The cell of type "normal" or "reduction"."""
        return {"normal": self.normal, "reduction": self.reduction}[cell_type]

    @property
    def multipliers(self):
        """Number of concatenated nodes of each type of cell: what `plan_network` needs."""
        return tuple(len(self.cell(cell_type).concat) for cell_type in self.cell_types)

    @property
    def architecture_string(self):
        """The cell as NAS-Bench-201 writes it, None for another search space."""
        if self.search_space != "nasbench201":
            return None
        return format_architecture((edge.operation, edge.predecessor, edge.node) for edge in self.normal.edges)

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
            for cell in map(self.cell, self.cell_types)
        ]
        return dataclasses.replace(self, **dict(zip(self.cell_types, cells, strict=True)))

    @property
    def sha256(self):
        """Hex digest of the architecture as it is built (its name excluded), by which stages recognise their input."""
        cells = {cell_type: value for cell_type, value in self.to_dict().items() if cell_type in CELL_TYPES}
        return hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()

    def to_dict(self):
        """The genotype as JSON types, schema 1."""
        space = {"search_space": self.search_space, "architecture_string": self.architecture_string}
        return {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            **({} if self.search_space == _DEFAULT_SPACE else space),
            **{
                cell_type: {
                    "edges": [dataclasses.asdict(edge) for edge in self.cell(cell_type).edges],
                    "concat": list(self.cell(cell_type).concat),
                }
                for cell_type in self.cell_types
            },
        }

    def to_json(self):
        """The genotype as JSON text that ends in a newline."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    @classmethod
    def from_dict(cls, data):
        """Reads JSON types; raises `GenotypeError` naming the entry that is wrong."""
        space = _read_search_space(data)
        named = space.name != _DEFAULT_SPACE
        required = ("search_space", "architecture_string") if named else ()
        check_keys(data, ("schema_version", "name", *required, *space.cell_types), "the genotype", optional=("search_space",))
        version = data["schema_version"]
        if not _is_int(version) or version != SCHEMA_VERSION:
            raise GenotypeError(f"unknown genotype schema. Expected schema_version={SCHEMA_VERSION}. Received: {shown(version)}")
        cells = {cell_type: _read_cell(data[cell_type], cell_type) for cell_type in space.cell_types}
        genotype = cls(check_name(data["name"]), **cells, search_space=space.name)
        if named and data["architecture_string"] != genotype.architecture_string:
            raise GenotypeError(
                f"architecture_string must say what the edges say. Expected {genotype.architecture_string}. "
                f"Received: {shown(data['architecture_string'])}"
            )
        return genotype

    @classmethod
    def from_architecture_string(cls, text):
        """Reads NAS-Bench-201's string, which becomes the name too; raises `GenotypeError` where it is no such string."""
        space = SEARCH_SPACES["nasbench201"]
        operations = parse_architecture(text, space.edges, space.operations)
        edges = tuple(Edge(node, predecessor, name) for (predecessor, node), name in zip(space.edges, operations, strict=True))
        return cls(text, Cell(edges, space.outputs), search_space=space.name)

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


def _read_search_space(data):
    name = data.get("search_space", _DEFAULT_SPACE) if isinstance(data, dict) else _DEFAULT_SPACE
    if not isinstance(name, str) or name not in SEARCH_SPACES:
        raise GenotypeError(
            f"unknown search space of a genotype.{nearest(name, SEARCH_SPACES)} Expected one of {', '.join(SEARCH_SPACES)}. "
            f"Received: search_space={shown(name)}"
        )
    return SEARCH_SPACES[name]


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
    _check_operation(edge.operation, DARTS_OPERATIONS, where)


def _check_operation(operation, known, where):
    if not isinstance(operation, str) or operation not in known:
        raise GenotypeError(
            f"{where} has an unknown operation.{nearest(operation, known)} Expected one of {', '.join(known)}. Received: {shown(operation)}"
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


def _check_whole_cell(cell, cell_type, space):
    """Raises `GenotypeError` unless the cell has every edge of its `SearchSpace` once, in order, and the space's output."""
    received = [(edge.predecessor, edge.node) for edge in cell.edges]
    if received != list(space.edges):
        raise GenotypeError(
            f"{cell_type}.edges must be the {len(space.edges)} edges of {space.name}, in order: {', '.join(space.edge_names)}. "
            f"Received: {shown(received)}"
        )
    for index, edge in enumerate(cell.edges):
        if type(edge.node) is not int or type(edge.predecessor) is not int:
            raise GenotypeError(f"{cell_type}.edges[{index}] must join nodes by integers. Received: {shown(edge)}")
        _check_operation(edge.operation, space.operations, f"{cell_type}.edges[{index}]")
    if list(cell.concat) != list(space.outputs) or any(type(node) is not int for node in cell.concat):
        raise GenotypeError(f"{cell_type}.concat must be {list(space.outputs)} in {space.name}. Received: {shown(list(cell.concat))}")


def _check_cell(cell, cell_type):
    for index, edge in enumerate(cell.edges):
        check_edge(edge, f"{cell_type}.edges[{index}]")
    fed = {edge.node for edge in cell.edges}
    check_concat(cell.concat, fed, f"{cell_type}.concat")
    for index, edge in enumerate(cell.edges):
        if edge.predecessor >= N_CELL_INPUTS and edge.predecessor not in fed:
            raise GenotypeError(f"{cell_type}.edges[{index}] comes from node {edge.predecessor}, which no edge feeds. Received: {edge}")
