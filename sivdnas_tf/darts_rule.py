"""DARTS' rule of derivation, and what it ranks operations by (Liu et al. 2019, Section 2.4). Imports no TensorFlow.

Two edges a node, one operation an edge; in a space where every edge has one operation (NAS-Bench-201), all edges.

The rule that the paper does without: it stays for the methods that it is compared with (METHOD.md section 5).
"""

import numpy as np

from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.search_space import get_search_space

EDGES_A_NODE = 2


def ranking(posterior, cell_type, rank_by="method"):
    """What the operations of one cell type are ranked by: float64 [E, P], larger is better, at least 0.

    Args:
      posterior: a `Posterior`.
      cell_type: "normal" or "reduction".
      rank_by: "keep_probability": that of the operation times that of its edge (1 where edges have none). "contribution": the same times
        the size of both mixing weights, what multiplies the operation's output in the mean. "weight": the softmax of w over an edge's
        operations, DARTS'. "method": what the posterior's method ranks by.
    """
    cell = posterior.cell(cell_type)
    rank_by = get_method(posterior.method).ranked_by if rank_by == "method" else rank_by
    if rank_by == "weight":
        return _softmax(cell.operation_weights)
    kept = cell.operation_keep_probability * cell.edge_keep_probability[:, None]
    if rank_by == "keep_probability":
        return kept
    operations = np.abs(_mixed(cell.operation_weights, posterior.mixing))
    return kept * operations * np.abs(_mixed_edges(cell.edge_weights, posterior))[:, None]


def _softmax(weights):
    """Over the last axis, float64."""
    weights = np.asarray(weights, np.float64)
    exponentials = np.exp(weights - weights.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _mixed(weights, mixing):
    """Mixing weights of parameters that share the last axis, float64 ("average" is left at its sum: it scales all alike)."""
    weights = np.asarray(weights, np.float64)
    if mixing == "softmax":
        return _softmax(weights)
    return 1.0 / (1.0 + np.exp(-weights)) if mixing == "sigmoid" else weights


def _mixed_edges(weights, posterior):
    """Mixing weights of edges [E], which share with those that enter the same node."""
    space, mixed = get_search_space(posterior.search_space), np.empty(len(weights))
    for node in space.nodes:
        entering = np.array(space.edges_into(node))
        mixed[entering] = _mixed(weights[entering], posterior.mixing)
    return mixed


def darts_gates(posterior, rank_by="method"):
    """`{cell type: (edges [E], operations [E, P])}`, bool: each edge's best operation, each node's two edges whose best is best.

    A node with fewer edges than two keeps them all, and so does every node where the space has one operation an edge; ties break by
    index. `rank_by` as of `ranking`.
    """
    space, gates = get_search_space(posterior.search_space), {}
    for cell_type in space.cell_types:
        ranks = ranking(posterior, cell_type, rank_by)
        edges, operations = np.zeros(len(ranks), bool), np.zeros(ranks.shape, bool)
        operations[np.arange(len(ranks)), ranks.argmax(axis=1)] = True
        for node in space.nodes:
            entering = np.array(space.edges_into(node))
            best_first = np.argsort(-ranks[entering].max(axis=1), kind="stable")
            edges[entering[best_first if space.one_operation_an_edge else best_first[:EDGES_A_NODE]]] = True
        gates[cell_type] = (edges, operations)
    return gates
