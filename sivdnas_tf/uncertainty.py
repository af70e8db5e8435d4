"""What a posterior does not know: entropy, and the moments and an interval of what a draw of its gates keeps. Imports no TensorFlow.

Gates are independent: a draw keeps an edge with its keep probability k, and an operation of it with its own, K. An operation counts where
both gates are open, an edge where it has an operation left:

    expected operations  sum_e k_e sum_p K_ep
    expected edges       sum_e k_e (1 - prod_p (1 - K_ep))
    expected cost        fixed + sum_e k_e m_e                        m_e = sum_p K_ep t_ep, with the terms t of `expected_cost_terms`
    variance of it       sum_e k_e v_e + k_e (1 - k_e) m_e^2          v_e = sum_p K_ep (1 - K_ep) t_ep^2

(the law of total variance, given the edge's gate), summed over the cell types; of the gates, also where a space derives one operation an
edge. These are exact for the gates, and leave out what
`expected_cost_terms` leaves out: that every node keeps one edge whatever the draw, and that an unused input costs nothing. The interval has
both: it is of the deployed networks of seeded draws.
"""

import dataclasses

import numpy as np

from sivdnas_tf.darts_rule import ranking
from sivdnas_tf.derive import drawn_costs
from sivdnas_tf.methods.registry import get_method
from sivdnas_tf.posterior import keep_probability
from sivdnas_tf.profiling.costs import expected_cost_terms
from sivdnas_tf.search_space import get_search_space

# Ten draws lie beyond each end of the interval. Once an epoch, at the mobile size, all take 0.1 s, or 0.6 s where everything is kept.
DRAWS = 200
INTERVAL = 0.9


@dataclasses.dataclass(frozen=True)
class Moments:
    """Of what a draw keeps, both cell types together, each counted once.

    Attributes:
      operations, edges: expected numbers.
      macs, macs_std: expected multiply-adds of the deployed network, in its budget's convention, and their standard deviation.
    """

    operations: float
    edges: float
    macs: float
    macs_std: float


def gate_entropy(log_dropout_rate):
    """Entropy in nats of a gate that is open with probability 1 / (1 + delta); any shape, float64, at most log 2."""
    rate = np.asarray(log_dropout_rate, np.float64)
    # -log P(1) = log(1 + delta), -log P(0) = log(1 + 1 / delta)
    return keep_probability(rate) * np.logaddexp(0.0, rate) + keep_probability(-rate) * np.logaddexp(0.0, -rate)


def edge_entropy(posterior, cell_type):
    """Entropy of each edge of a cell type in nats, float64 [E].

    Of the edge's gate and its operations' gates together, which are independent: the sum of theirs. For a method that ranks by weight, of
    the softmax over the edge's operations. Where a method has gates that are always open, they add nothing.
    """
    if get_method(posterior.method).ranked_by == "weight":
        shares = ranking(posterior, cell_type)
        logarithms = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        return -(shares * logarithms).sum(axis=1)
    cell = posterior.cell(cell_type)
    return gate_entropy(cell.log_edge_dropout_rate) + gate_entropy(cell.log_operation_dropout_rate).sum(axis=1)


def largest_entropy(space, method):
    """The largest entropy that an edge can have, in nats: every gate at 1/2, or a uniform softmax.

    Args:
      space: a `SearchSpace`.
      method: a `methods.method.Method`.
    """
    primitives = len(space.primitives)
    if method.ranked_by == "weight":
        return float(np.log(primitives))
    edges_have_rates = method.edges != "none" or not method.trains_supernet
    return float((primitives + edges_have_rates) * np.log(2.0))


def mean_entropy(posterior):
    """`edge_entropy`, the mean over the edges of all cell types: nats an edge."""
    space = get_search_space(posterior.search_space)
    return float(np.mean([edge_entropy(posterior, cell_type) for cell_type in space.cell_types]))


def moments(posterior, fixed, terms):
    """The exact `Moments` of a `Posterior` whose gates are drawn; `fixed` and `terms` as of `costs.expected_cost_terms`."""
    operations, edges, macs, variance = 0.0, 0.0, float(fixed), 0.0
    for cell_type in get_search_space(posterior.search_space).cell_types:
        cell, term = posterior.cell(cell_type), np.asarray(terms[cell_type], np.float64)
        of_operations, of_edges = cell.operation_keep_probability, cell.edge_keep_probability
        operations += float((of_edges[:, None] * of_operations).sum())
        edges += float((of_edges * (1.0 - np.prod(1.0 - of_operations, axis=1))).sum())
        mean, within = (of_operations * term).sum(axis=1), (of_operations * (1.0 - of_operations) * term**2).sum(axis=1)
        macs += float((of_edges * mean).sum())
        variance += float((of_edges * within + of_edges * (1.0 - of_edges) * mean**2).sum())
    return Moments(operations, edges, macs, float(np.sqrt(variance)))


def macs_interval(posterior, budget, draws=DRAWS, seed=0, rank_by="method"):
    """The central interval that holds `INTERVAL` of the deployed networks of so many draws: two floats, multiply-adds.

    None for a method from which nothing can be drawn.
    """
    if not get_method(posterior.method).draws:
        return None
    costs = drawn_costs(posterior, budget, draws=draws, seed=seed, rank_by=rank_by)
    low, high = np.quantile(costs, [(1.0 - INTERVAL) / 2, (1.0 + INTERVAL) / 2])
    return float(low), float(high)


def describe(posterior, budget, rank_by="method"):
    """What derive.json says of the posterior's uncertainty, JSON types.

    Args:
      posterior: `posterior.Posterior`.
      budget: `config.BudgetConfig` of the deployed network.
      rank_by: as of `derive.derive`; of the draws where an edge has one operation.

    Returns:
      A dict: for each cell type its edges' entropies in nats, their mean over all, the largest possible; the expected operations, edges
      and macs with their standard deviation, None for a method without keep probabilities; and the interval of macs with its probability
      and the number of draws, None for a method from which nothing can be drawn.
    """
    space, method = get_search_space(posterior.search_space), get_method(posterior.method)
    by_gates = None if method.ranked_by == "weight" else moments(posterior, *expected_cost_terms(space, budget))
    interval = macs_interval(posterior, budget, rank_by=rank_by)
    return {
        "edge_entropy": {cell_type: edge_entropy(posterior, cell_type).tolist() for cell_type in space.cell_types},
        "mean_entropy": mean_entropy(posterior),
        "largest_entropy": largest_entropy(space, method),
        "expected_operations": by_gates and by_gates.operations,
        "expected_edges": by_gates and by_gates.edges,
        "expected_macs": by_gates and by_gates.macs,
        "macs_std": by_gates and by_gates.macs_std,
        "macs_interval": interval and {"low": interval[0], "high": interval[1], "probability": INTERVAL, "draws": DRAWS},
    }
