"""Search spaces and network plans: the one place for edge numbering, reduction positions, widths, strides and resolutions.

Imports no TensorFlow, so that a command can price or refuse a network before TensorFlow starts.
"""

import dataclasses
import functools

from sivdnas_tf.errors import ConfigError, nearest

N_CELL_INPUTS = 2  # of a DARTS cell: outputs of cells k-2 and k-1
CELL_TYPES = ("normal", "reduction")

DARTS_PRIMITIVES = (
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

NASBENCH201_PRIMITIVES = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")

SKIP = "skip_connect"
# Operations that learn nothing of their own where the stride is 1 (a skip connection of stride 2 is a factorized reduce).
WITHOUT_WEIGHTS = frozenset({SKIP, "max_pool_3x3", "avg_pool_3x3"})

# What genotypes hold, more than a search can find: published cells use these too.
DARTS_OPERATIONS = ("none", *DARTS_PRIMITIVES, "sep_conv_7x7", "conv_7x1_1x7")
NASBENCH201_OPERATIONS = ("none", *NASBENCH201_PRIMITIVES)  # `none` is what an edge that is dropped becomes
EVALUATION_OPERATIONS = tuple(dict.fromkeys((*DARTS_OPERATIONS, *NASBENCH201_OPERATIONS)))


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A cell's candidate edges and the primitives that compete on each.

    Attributes:
      name: what configurations and genotypes call it.
      primitives: names, in the order of the last axis of every operation parameter.
      n_nodes: intermediate nodes of a cell.
      operations: names that a genotype may hold.
      networks: values of `plan_network`'s `network` that are built of its cells.
      n_inputs: inputs of a cell, its nodes 0 to n_inputs - 1.
      cell_types: kinds of cells, each with a set of architecture parameters of its own; "normal", of which most of a network consists, is
        the first.
      one_operation_an_edge: whether an edge of a derived cell has one operation, `none` where it was dropped; otherwise it has any number.
      concatenates: whether a cell's output is the concatenation of its intermediate nodes; otherwise it is its last node.
    """

    name: str
    primitives: tuple
    n_nodes: int
    operations: tuple = DARTS_OPERATIONS
    networks: tuple = ("cifar", "imagenet")
    n_inputs: int = N_CELL_INPUTS
    cell_types: tuple = CELL_TYPES
    one_operation_an_edge: bool = False
    concatenates: bool = True

    @functools.cached_property
    def nodes(self):
        """Indices of the intermediate nodes, in order of computation."""
        return tuple(range(self.n_inputs, self.n_inputs + self.n_nodes))

    @functools.cached_property
    def outputs(self):
        """Nodes whose concatenation leaves a cell."""
        return self.nodes if self.concatenates else self.nodes[-1:]

    @functools.cached_property
    def edges(self):
        """All `(predecessor, node)` pairs, node-major: the order of the first axis of every architecture parameter."""
        return tuple((predecessor, node) for node in self.nodes for predecessor in range(node))

    @functools.cached_property
    def edge_names(self):
        """`'0->2'` for each edge, in the order of `edges`."""
        return tuple(f"{predecessor}->{node}" for predecessor, node in self.edges)

    def edges_into(self, node):
        """Indices into `edges` of the edges that end in `node`."""
        return tuple(index for index, (_, target) in enumerate(self.edges) if target == node)


SEARCH_SPACES = {
    "darts": SearchSpace("darts", DARTS_PRIMITIVES, n_nodes=4),
    # Dong and Yang 2020.
    "nasbench201": SearchSpace(
        "nasbench201",
        NASBENCH201_PRIMITIVES,
        n_nodes=3,
        operations=NASBENCH201_OPERATIONS,
        networks=("nasbench201",),
        n_inputs=1,
        cell_types=("normal",),
        one_operation_an_edge=True,
        concatenates=False,
    ),
}


def get_search_space(name):
    """The `SearchSpace` called `name`; raises `ConfigError` for any other name."""
    if name not in SEARCH_SPACES:
        raise ConfigError(
            f"unknown search space.{nearest(name, SEARCH_SPACES)} Expected one of {', '.join(SEARCH_SPACES)}. Received: {name!r}"
        )
    return SEARCH_SPACES[name]


def space_of_network(network):
    """The `SearchSpace` whose cells a network is built of; raises `ConfigError` for an unknown network."""
    for space in SEARCH_SPACES.values():
        if network in space.networks:
            return space
    raise ConfigError(f"unknown network.{nearest(network, NETWORKS)} Expected one of {', '.join(NETWORKS)}. Received: {network!r}")


@dataclasses.dataclass(frozen=True)
class CellPlan:
    """Position, width and resolution of one cell. Channels are counts, resolutions are pixels a side.

    Attributes:
      index: position in the network, from 0.
      cell_type: "normal" or "reduction".
      reduction_prev: whether input 0 (cell k-2) still has twice the resolution of input 1, so that preprocessing must halve it.
      in_channels: of the inputs: (k-2, k-1), or of the one input of a cell that takes it as it is, without preprocessing.
      channels: of every node.
      out_channels: of the concatenation.
      in_resolution: of the last input, and of all inputs after preprocessing.
      out_resolution: of the nodes.
    """

    index: int
    cell_type: str
    reduction_prev: bool
    in_channels: tuple
    channels: int
    out_channels: int
    in_resolution: int
    out_resolution: int

    @property
    def n_inputs(self):
        """Number of inputs, the first nodes."""
        return len(self.in_channels)

    @property
    def preprocesses(self):
        """Whether a 1x1 convolution brings each input to the cell's width."""
        return self.n_inputs > 1

    @property
    def reduction(self):
        """Whether the cell halves the resolution."""
        return self.cell_type == "reduction"

    def stride(self, predecessor):
        """Stride of an edge that leaves `predecessor`: 2 from the inputs of a reduction cell, 1 elsewhere."""
        return 2 if self.reduction and predecessor < self.n_inputs else 1


@dataclasses.dataclass(frozen=True)
class NetworkPlan:
    """Everything about a network but what is inside its cells.

    Attributes:
      network: "cifar", "imagenet" or "nasbench201": which stem, auxiliary head and drop-path convention.
      stem_channels: channels of the tensors that the stem hands to cell 0.
      auxiliary_cell: index of the cell whose output feeds the auxiliary head; None where the network has no such head.
      residual_reductions: indices of the cells before which a residual block halves the resolution and doubles the width.
    """

    network: str
    channels: int
    classes: int
    resolution: int
    image_channels: int
    stem_channels: tuple
    cells: tuple
    auxiliary_cell: int | None
    residual_reductions: tuple = ()

    @property
    def final_channels(self):
        """Channels of the last cell's output, which the classifier reads."""
        return self.cells[-1].out_channels


NETWORKS = tuple(network for space in SEARCH_SPACES.values() for network in space.networks)
MIN_CELLS = 3  # a normal cell and two reduction cells; a cell in each of three stages
# Far above any published network; a mistyped number is refused instead of filling the memory.
MAX_CELLS = 1000
# How much the stem and the two reductions divide the resolution by; every division must be exact (factorized reduce takes even sizes).
_RESOLUTION_DIVISOR = {"cifar": 4, "imagenet": 32, "nasbench201": 4}
_STAGES = 3  # of nasbench201's network, each of as many cells


def cells_step(network):
    """By how many cells a network can grow: 1, or one in each stage."""
    return _STAGES if network == "nasbench201" else 1


def plan_network(network, *, channels, cells, classes, resolution, image_channels=3, multipliers=(4, 4)):
    """Plans a network of cells.

    Args:
      network: "cifar" (stride-1 stem) or "imagenet" (stem of stride 8), as quark0/darts builds them; "nasbench201": three stages with
        residual reduction blocks between, as D-X-Y/AutoDL-Projects builds the benchmark's (16 channels, 15 cells).
      channels: width of the first cells' nodes; doubled in each reduction cell or block. Even.
      cells: number of cells; reduction cells stand at cells // 3 and 2 * cells // 3; for "nasbench201" a multiple of three.
      classes: size of the classifier.
      resolution: pixels a side of the square input.
      image_channels: 1 or 3, or any other count.
      multipliers: number of concatenated nodes of each cell type; not read for "nasbench201".

    Returns:
      A `NetworkPlan`.

    Raises:
      ConfigError: where no such network exists.
    """
    _check_plan(network, channels, cells, classes, resolution, image_channels)
    sizes = {"network": network, "channels": channels, "classes": classes, "resolution": resolution, "image_channels": image_channels}
    if network == "nasbench201":
        return _plan_stages(cells, sizes)
    if network == "cifar":
        stem_channels, cell_resolution, reduction_prev = (3 * channels, 3 * channels), resolution, False
    else:  # stem 0 ends at a quarter of the resolution, stem 1 at an eighth
        stem_channels, cell_resolution, reduction_prev = (channels, channels), resolution // 8, True
    reductions = {cells // 3, 2 * cells // 3}
    (prev_prev, prev), width, plans = stem_channels, channels, []
    for index in range(cells):
        reduction = index in reductions
        width = 2 * width if reduction else width
        out_resolution = cell_resolution // 2 if reduction else cell_resolution
        out_channels = width * multipliers[int(reduction)]
        plans.append(
            CellPlan(
                index=index,
                cell_type=CELL_TYPES[int(reduction)],
                reduction_prev=reduction_prev,
                in_channels=(prev_prev, prev),
                channels=width,
                out_channels=out_channels,
                in_resolution=cell_resolution,
                out_resolution=out_resolution,
            )
        )
        prev_prev, prev, cell_resolution, reduction_prev = prev, out_channels, out_resolution, reduction
    return NetworkPlan(**sizes, stem_channels=stem_channels, cells=tuple(plans), auxiliary_cell=2 * cells // 3)


def _plan_stages(cells, sizes):
    """The plan of a nasbench201 network; `sizes` are the fields that the plan takes as they are."""
    in_stage, plans = cells // _STAGES, []
    for index in range(cells):
        stage = index // in_stage
        width, resolution = sizes["channels"] << stage, sizes["resolution"] >> stage
        plans.append(CellPlan(index, "normal", False, (width,), width, width, resolution, resolution))
    reductions = tuple(in_stage * stage for stage in range(1, _STAGES))
    return NetworkPlan(**sizes, stem_channels=(sizes["channels"],), cells=tuple(plans), auxiliary_cell=None, residual_reductions=reductions)


def _check_plan(network, channels, cells, classes, resolution, image_channels):
    space_of_network(network)  # refuses an unknown one
    # ImageNet's stem starts at half the width, and factorized reduce splits a width in two.
    if channels < 2 or channels % 2:
        raise ConfigError(f"channels must be even and positive (factorized reduce splits them in two). Received: channels={channels}")
    if cells < MIN_CELLS:
        raise ConfigError(
            f"a network needs at least {MIN_CELLS} cells, so that it has a normal and two reduction cells. Received: cells={cells}"
        )
    if cells % cells_step(network):
        raise ConfigError(f"a {network} network has three stages of as many cells: a multiple of {_STAGES}. Received: cells={cells}")
    if cells > MAX_CELLS:
        raise ConfigError(f"a network has at most {MAX_CELLS} cells. Received: cells={cells}")
    if classes < 2:
        raise ConfigError(f"a classifier needs at least 2 classes. Received: classes={classes}")
    if image_channels < 1:
        raise ConfigError(f"images need at least 1 channel. Received: image_channels={image_channels}")
    divisor = _RESOLUTION_DIVISOR[network]
    if resolution < divisor or resolution % divisor:
        raise ConfigError(
            f"resolution of a {network} network must be a multiple of {divisor}, since every reduction halves an even size exactly. "
            f"Received: resolution={resolution}"
        )
