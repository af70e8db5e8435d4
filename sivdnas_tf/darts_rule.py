"""DARTS' rule of derivation: two edges a node, one operation an edge (Liu et al. 2019, Section 2.4). Imports no TensorFlow.

The rule that the paper does without: it stays for the methods that it is compared with (METHOD.md section 5).
"""

import numpy as np

from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.search_space import CELL_TYPES, get_search_space

EDGES_A_NODE = 2


def ranking(posterior, cell_type):
    """What the rule ranks the operations of one cell type by: float64 [E, P], larger is better.

    The softmax of w over an edge's operations for a method that ranks by weight; otherwise the keep probability of the operation times
    that of its edge, which is 1 where edges have none.
    """
    cell = posterior.cell(cell_type)
    if get_method(posterior.method).ranked_by == "weight":
        weights = np.asarray(cell.operation_weights, np.float64)
        exponentials = np.exp(weights - weights.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)
    return cell.operation_keep_probability * cell.edge_keep_probability[:, None]


def darts_gates(posterior):
    """`{cell type: (edges [E], operations [E, P])}`, bool: each edge's best operation, each node's two edges whose best is best.

    A node with fewer edges than two keeps them all; ties break by index.
    """
    space, gates = get_search_space(posterior.search_space), {}
    for cell_type in CELL_TYPES:
        ranks = ranking(posterior, cell_type)
        edges, operations = np.zeros(len(ranks), bool), np.zeros(ranks.shape, bool)
        operations[np.arange(len(ranks)), ranks.argmax(axis=1)] = True
        for node in space.nodes:
            entering = np.array(space.edges_into(node))
            best_first = np.argsort(-ranks[entering].max(axis=1), kind="stable")
            edges[entering[best_first[:EDGES_A_NODE]]] = True
        gates[cell_type] = (edges, operations)
    return gates
