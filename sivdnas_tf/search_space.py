"""Search spaces and network plans: the one place for edge numbering, reduction positions, widths, strides and resolutions.

Imports no TensorFlow, so that a command can price or refuse a network before TensorFlow starts.
"""

import dataclasses
import functools

from sivdnas_tf.errors import ConfigError, nearest

N_CELL_INPUTS = 2  # outputs of cells k-2 and k-1
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

SKIP = "skip_connect"
# Operations that learn nothing of their own where the stride is 1 (a skip connection of stride 2 is a factorized reduce).
WITHOUT_WEIGHTS = frozenset({"none", SKIP, "max_pool_3x3", "avg_pool_3x3"})

# An evaluation network builds more than a search can find: published cells use these too.
EVALUATION_OPERATIONS = ("none", *DARTS_PRIMITIVES, "sep_conv_7x7", "conv_7x1_1x7")


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """A cell's candidate edges and the primitives that compete on each.

    Attributes:
      name: what configurations call it.
      primitives: names, in the order of the last axis of every operation parameter.
      n_nodes: intermediate nodes of a cell.
    """

    name: str
    primitives: tuple
    n_nodes: int

    @property
    def cell_types(self):
        """The types of cells that are searched; "normal", of which most of a network consists, is the first."""
        return CELL_TYPES

    @functools.cached_property
    def nodes(self):
        """Indices of the intermediate nodes, in order of computation."""
        return tuple(range(N_CELL_INPUTS, N_CELL_INPUTS + self.n_nodes))

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


SEARCH_SPACES = {"darts": SearchSpace("darts", DARTS_PRIMITIVES, n_nodes=4)}


def get_search_space(name):
    """The `SearchSpace` called `name`; raises `ConfigError` for any other name."""
    if name not in SEARCH_SPACES:
        raise ConfigError(
            f"unknown search space.{nearest(name, SEARCH_SPACES)} Expected one of {', '.join(SEARCH_SPACES)}. Received: {name!r}"
        )
    return SEARCH_SPACES[name]


@dataclasses.dataclass(frozen=True)
class CellPlan:
    """Position, width and resolution of one cell. Channels are counts, resolutions are pixels a side.

    Attributes:
      index: position in the network, from 0.
      cell_type: "normal" or "reduction".
      reduction_prev: whether input 0 (cell k-2) still has twice the resolution of input 1, so that preprocessing must halve it.
      in_channels: of the two inputs, (k-2, k-1).
      channels: of every node.
      out_channels: of the concatenation.
      in_resolution: of input 1, and of both inputs after preprocessing.
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
    def reduction(self):
        """Whether the cell halves the resolution."""
        return self.cell_type == "reduction"

    def stride(self, predecessor):
        """Stride of an edge that leaves `predecessor`: 2 from the inputs of a reduction cell, 1 elsewhere."""
        return 2 if self.reduction and predecessor < N_CELL_INPUTS else 1


@dataclasses.dataclass(frozen=True)
class NetworkPlan:
    """Everything about a network but what is inside its cells.

    Attributes:
      network: "cifar" or "imagenet": which stem, auxiliary head and drop-path convention.
      stem_channels: channels of the two tensors that the stem hands to cell 0.
      auxiliary_cell: index of the cell whose output feeds the auxiliary head.
    """

    network: str
    channels: int
    classes: int
    resolution: int
    image_channels: int
    stem_channels: tuple
    cells: tuple
    auxiliary_cell: int

    @property
    def final_channels(self):
        """Channels of the last cell's output, which the classifier reads."""
        return self.cells[-1].out_channels


NETWORKS = ("cifar", "imagenet")
MIN_CELLS = 3  # a normal cell and two reduction cells
# Far above any published network; a mistyped number is refused instead of filling the memory.
MAX_CELLS = 1000
# How much the stem and the two reductions divide the resolution by; every division must be exact (factorized reduce takes even sizes).
_RESOLUTION_DIVISOR = {"cifar": 4, "imagenet": 32}


def plan_network(network, *, channels, cells, classes, resolution, image_channels=3, multipliers=(4, 4)):
    """Plans a network of cells.

    Args:
      network: "cifar" (stride-1 stem) or "imagenet" (stem of stride 8), as quark0/darts builds them.
      channels: width of the first cells' nodes; doubled in each reduction cell. Even.
      cells: number of cells; reduction cells stand at cells // 3 and 2 * cells // 3.
      classes: size of the classifier.
      resolution: pixels a side of the square input.
      image_channels: 1 or 3, or any other count.
      multipliers: number of concatenated nodes of a normal and of a reduction cell.

    Returns:
      A `NetworkPlan`.

    Raises:
      ConfigError: where no such network exists.
    """
    _check_plan(network, channels, cells, classes, resolution, image_channels)
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
    return NetworkPlan(
        network=network,
        channels=channels,
        classes=classes,
        resolution=resolution,
        image_channels=image_channels,
        stem_channels=stem_channels,
        cells=tuple(plans),
        auxiliary_cell=2 * cells // 3,
    )


def _check_plan(network, channels, cells, classes, resolution, image_channels):
    if network not in NETWORKS:
        raise ConfigError(f"unknown network.{nearest(network, NETWORKS)} Expected one of {', '.join(NETWORKS)}. Received: {network!r}")
    # ImageNet's stem starts at half the width, and factorized reduce splits a width in two.
    if channels < 2 or channels % 2:
        raise ConfigError(f"channels must be even and positive (factorized reduce splits them in two). Received: channels={channels}")
    if cells < MIN_CELLS:
        raise ConfigError(
            f"a network needs at least {MIN_CELLS} cells, so that it has a normal and two reduction cells. Received: cells={cells}"
        )
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
