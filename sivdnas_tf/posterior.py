"""The architecture parameters of a search as plain arrays: what `search` hands to `derive`. Imports no TensorFlow."""

import dataclasses

import numpy as np

from sivdnas_tf.errors import RunDirError
from sivdnas_tf.methods.registry import METHODS
from sivdnas_tf.search_space import get_search_space

# How architecture parameters become mixing weights: `layers.mixing_weights`.
MIXINGS = ("identity", "average", "sigmoid", "softmax")
_FIELDS = ("operation_weights", "log_operation_dropout_rate", "edge_weights", "log_edge_dropout_rate")
# What stands for the log dropout rate of what a method gives none: finite, and a keep_probability of exactly 1.
ALWAYS_KEPT = -100.0
_UNNAMED_METHOD, _UNNAMED_MIXING = "si_vdnas", "identity"


def keep_probability(log_dropout_rate):
    """P(gate = 1) = 1 / (1 + delta) = sigmoid(-log delta) (METHOD.md section 1); any shape, float64."""
    return np.exp(-np.logaddexp(0.0, np.asarray(log_dropout_rate, np.float64)))


def named_method(method, as_type=str):
    """`{"method": name}` for a file of the search, empty for si_vdnas: what has no name is that, as files were before there were others."""
    return {} if method == _UNNAMED_METHOD else {"method": as_type(method)}


@dataclasses.dataclass(frozen=True)
class CellPosterior:
    """Architecture parameters of one cell type; E edges (node-major), P primitives.

    What a method does not have stands there as what changes nothing: edge weights of 1, log dropout rates of `ALWAYS_KEPT`.

    Attributes:
      operation_weights: w, [E, P].
      log_operation_dropout_rate: log delta, [E, P].
      edge_weights: phi, [E].
      log_edge_dropout_rate: log sigma, [E].
    """

    operation_weights: np.ndarray
    log_operation_dropout_rate: np.ndarray
    edge_weights: np.ndarray
    log_edge_dropout_rate: np.ndarray

    @property
    def operation_keep_probability(self):
        """[E, P], float64."""
        return keep_probability(self.log_operation_dropout_rate)

    @property
    def edge_keep_probability(self):
        """[E], float64."""
        return keep_probability(self.log_edge_dropout_rate)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """The parameters of all cell types, and where they come from.

    Attributes:
      search_space: name of the `SearchSpace` whose edges and primitives the axes count.
      epoch: number of finished epochs.
      normal, reduction: `CellPosterior`s; None for the type that the search space does not have.
      method: name of the search method (`methods.registry`).
      mixing: how w and phi become mixing weights (`config.SearchConfig`).
    """

    search_space: str
    epoch: int
    normal: CellPosterior
    reduction: CellPosterior | None = None
    method: str = _UNNAMED_METHOD
    mixing: str = _UNNAMED_MIXING

    @property
    def cell_types(self):
        """Types of cells that have parameters, in order."""
        return get_search_space(self.search_space).cell_types

    def cell(self, cell_type):
        """The parameters of cell type "normal" or "reduction"."""
        return {"normal": self.normal, "reduction": self.reduction}[cell_type]

    def to_arrays(self):
        """The content of posterior.npz.

        `{cell type}_{parameter}`, the names of the axes, and, unless they are si_vdnas and identity, those of the method and the mixing.
        """
        space = get_search_space(self.search_space)
        arrays = {
            f"{cell_type}_{field}": np.asarray(getattr(self.cell(cell_type), field), np.float32)
            for cell_type in space.cell_types
            for field in _FIELDS
        }
        return {
            **arrays,
            "search_space": np.array(self.search_space),
            "edges": np.array(space.edge_names),
            "primitives": np.array(space.primitives),
            "epoch": np.array(self.epoch, np.int64),
            **named_method(self.method, np.array),
            **({} if self.mixing == _UNNAMED_MIXING else {"mixing": np.array(self.mixing)}),
        }

    @classmethod
    def from_arrays(cls, arrays):
        """Reads the content of posterior.npz; raises `RunDirError` where a key is missing or the axes are another space's."""
        _check_keys(arrays, ("search_space", "edges", "primitives", "epoch"))
        space = get_search_space(str(arrays["search_space"]))
        names = [f"{cell_type}_{field}" for cell_type in space.cell_types for field in _FIELDS]
        _check_keys(arrays, names)
        for key, expected in (("edges", space.edge_names), ("primitives", space.primitives)):
            if arrays[key].tolist() != list(expected):
                raise RunDirError(
                    f"posterior.npz: {key} must be those of the search space {space.name!r}. Received: {arrays[key].tolist()}"
                )
        if arrays["epoch"].shape != () or arrays["epoch"].dtype.kind not in "iu":
            raise RunDirError(f"posterior.npz: epoch must be an integer. Received: {arrays['epoch'].tolist()}")
        n_edges, n_primitives = len(space.edges), len(space.primitives)
        for key in names:
            expected = (n_edges, n_primitives) if "operation" in key else (n_edges,)
            value = arrays[key]
            if value.shape != expected or value.dtype.kind != "f" or not np.all(np.isfinite(value)):
                raise RunDirError(
                    f"posterior.npz: {key} must be finite, of shape {expected}. Received: shape={value.shape}, dtype={value.dtype}"
                )
        method = str(arrays.get("method", _UNNAMED_METHOD))
        if method not in METHODS:
            raise RunDirError(f"posterior.npz: method must be one of {', '.join(METHODS)}. Received: {method!r}")
        mixing = str(arrays.get("mixing", METHODS[method].mixing or _UNNAMED_MIXING))  # DARTS' named none before there were rankings by it
        if mixing not in MIXINGS:
            raise RunDirError(f"posterior.npz: mixing must be one of {', '.join(MIXINGS)}. Received: {mixing!r}")
        cells = {cell_type: CellPosterior(*(arrays[f"{cell_type}_{field}"] for field in _FIELDS)) for cell_type in space.cell_types}
        return cls(space.name, int(arrays["epoch"]), **cells, method=method, mixing=mixing)


def _check_keys(arrays, names):
    missing = [key for key in names if key not in arrays]
    if missing:
        raise RunDirError(f"posterior.npz lacks {missing[0]!r}. Received: {', '.join(sorted(arrays)) or 'no array'}")
