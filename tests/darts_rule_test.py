import numpy as np
import pytest

from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.darts_rule import darts_gates, ranking
from sivdnas_tf.derive import derive
from sivdnas_tf.errors import BudgetError, ConfigError
from sivdnas_tf.methods.registry import METHODS
from sivdnas_tf.posterior import ALWAYS_KEPT, CellPosterior, Posterior
from sivdnas_tf.search_space import CELL_TYPES, DARTS_PRIMITIVES, get_search_space

SPACE = get_search_space("darts")
E, P = len(SPACE.edges), len(SPACE.primitives)
WIDE = BudgetConfig(network="cifar", channels=4, cells=3, classes=2, resolution=4, image_channels=1, macs=1e12)


def posterior_of(method, weights=None, log_rates=None, log_edge_rates=None):
    """Both cell types alike; what is not given is what stands for a method's having none."""
    cell = CellPosterior(
        np.ones((E, P), np.float32) if weights is None else np.asarray(weights, np.float32),
        np.full((E, P), ALWAYS_KEPT, np.float32) if log_rates is None else np.asarray(log_rates, np.float32),
        np.ones(E, np.float32),
        np.full(E, ALWAYS_KEPT, np.float32) if log_edge_rates is None else np.asarray(log_edge_rates, np.float32),
    )
    return Posterior("darts", 3, cell, cell, method)


def run(posterior, rule=None, budget=WIDE, seed=0):
    return derive(posterior, rule=rule, seed=seed, budget=budget)


def entries(found, cell_type="normal"):
    return [(edge.predecessor, edge.node, edge.operation) for edge in found.genotype.cell(cell_type).edges]


def hand_made():
    """[E, P] scores: the best operation of edge i->j, and how good it is; all else is worse by far."""
    best = {
        (0, 2): ("max_pool_3x3", 0.1),
        (1, 2): ("skip_connect", 0.2),
        (0, 3): ("sep_conv_3x3", 3.0),
        (1, 3): ("sep_conv_5x5", 1.0),
        (2, 3): ("dil_conv_3x3", 2.0),
        (0, 4): ("avg_pool_3x3", 0.4),
        (1, 4): ("dil_conv_5x5", 0.3),
        (2, 4): ("skip_connect", 0.5),
        (3, 4): ("sep_conv_3x3", 0.6),
        (0, 5): ("sep_conv_3x3", 1.0),
        (1, 5): ("max_pool_3x3", 1.0),
        (2, 5): ("skip_connect", 1.0),
        (3, 5): ("skip_connect", 0.9),
        (4, 5): ("skip_connect", 0.8),
    }
    scores = np.full((E, P), -5.0)
    for edge, (primitive, score) in best.items():
        scores[SPACE.edges.index(edge), DARTS_PRIMITIVES.index(primitive)] = score
    return scores


KEPT = [
    (0, 2, "max_pool_3x3"),
    (1, 2, "skip_connect"),
    (0, 3, "sep_conv_3x3"),
    (2, 3, "dil_conv_3x3"),
    (2, 4, "skip_connect"),
    (3, 4, "sep_conv_3x3"),
    (0, 5, "sep_conv_3x3"),  # a tie of three breaks by index
    (1, 5, "max_pool_3x3"),
]


@pytest.mark.parametrize("method", ["darts_first", "darts_second"])
def test_darts_keeps_two_edges_a_node_and_one_operation_an_edge_by_weight(method):
    found = run(posterior_of(method, weights=hand_made()))
    assert entries(found) == entries(found, "reduction") == KEPT
    assert (found.details["method"], found.details["rule"]) == (method, "darts")
    assert found.details["rule_reason"] == f"the rule of method {method}"
    assert (found.details["threshold"], found.details["raised"], found.details["mode_cost"]) == (None, False, None)


def test_v_vdnas_does_so_by_keep_probability():
    # Weights that say something else have no say.
    found = run(posterior_of("v_vdnas", weights=-hand_made(), log_rates=-hand_made()))
    assert entries(found) == entries(found, "reduction") == KEPT
    assert found.details["rule_reason"] == "the rule of method v_vdnas"


def test_darts_ranks_edges_by_the_softmax_of_their_best_operation_not_by_its_weight():
    weights = np.zeros((E, P))
    edges = [SPACE.edges.index((predecessor, 3)) for predecessor in (0, 1, 2)]
    weights[edges[0]] = 9.0  # the largest weights, but all alike: 1/7 each
    weights[edges[1], 2] = weights[edges[2], 3] = 1.0
    kept = entries(run(posterior_of("darts_first", weights=weights)))
    assert [entry for entry in kept if entry[1] == 3] == [(1, 3, DARTS_PRIMITIVES[2]), (2, 3, DARTS_PRIMITIVES[3])]
    ranks = ranking(posterior_of("darts_first", weights=weights), "normal")
    np.testing.assert_allclose(ranks.sum(axis=1), 1.0)
    np.testing.assert_allclose(ranks[edges[1], 2], np.e / (np.e + P - 1))
    assert np.isfinite(ranking(posterior_of("darts_first", weights=weights * 1e4), "normal")).all()


def test_an_edge_parameter_counts_where_there_is_one():
    log_edge_rates = np.zeros(E)
    log_edge_rates[SPACE.edges.index((0, 3))] = 20.0  # the best operations, on an edge that is almost surely off
    found = run(posterior_of("si_vdnas", log_rates=-hand_made(), log_edge_rates=log_edge_rates), "darts")
    assert [entry for entry in entries(found) if entry[1] == 3] == [(1, 3, "sep_conv_5x5"), (2, 3, "dil_conv_3x3")]
    assert found.details["rule_reason"] == "asked for"


def test_every_node_has_two_edges_whatever_the_posterior():
    generator = np.random.default_rng(0)
    for _ in range(20):
        for edges, operations in darts_gates(posterior_of("darts_first", weights=generator.normal(size=(E, P)))).values():
            assert [int(edges[list(SPACE.edges_into(node))].sum()) for node in SPACE.nodes] == [2] * 4
            np.testing.assert_array_equal(operations.sum(axis=1), 1)


def test_derive_json_has_what_was_ranked_and_why_the_rest_was_dropped():
    details = run(posterior_of("darts_first", weights=hand_made())).details
    for cell_type in CELL_TYPES:
        cell = details["cells"][cell_type]
        np.testing.assert_allclose(np.sum(cell["ranking"], axis=1), 1.0)
        assert cell["restored"] == [] and (cell["n_edges"], cell["n_operations"]) == (8, 8)
        reasons = {(entry["edge"], entry["operation"]): entry["reason"] for entry in cell["dropped"]}
        assert reasons["1->3", None] == "outranked" and reasons["1->3", "sep_conv_5x5"] == "edge dropped"
        assert reasons["0->3", "sep_conv_5x5"] == "outranked" and ("0->3", None) not in reasons
        assert len(reasons) == 6 + E * P - 8
    assert "ranking" not in run(posterior_of("si_vdnas")).details["cells"]["normal"]


def test_over_the_budget_darts_rule_refuses_since_it_has_nothing_to_raise():
    tight = BudgetConfig(network="cifar", channels=4, cells=3, classes=2, resolution=4, image_channels=1, macs=1.0)
    with pytest.raises(BudgetError, match="the network that rule darts derives costs more than the budget allows"):
        run(posterior_of("darts_first", weights=hand_made()), budget=tight)


def test_h_vdnas_holds_keep_probabilities_against_a_threshold():
    log_edge_rates = np.where(np.arange(E) % 2, 1.0, -1.0)
    posterior = posterior_of("h_vdnas", log_rates=-hand_made(), log_edge_rates=log_edge_rates)
    found = run(posterior)
    same = run(posterior_of("si_vdnas", log_rates=-hand_made(), log_edge_rates=log_edge_rates), "budget")
    assert found.genotype == same.genotype
    assert (found.details["rule"], found.details["threshold"]) == ("budget", 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_rule_that_does_not_fit_a_method_is_refused_in_one_line(method):
    posterior = posterior_of(method)
    for rule in {"budget", "mode", "sample", "darts", "redraw"} - set(METHODS[method].rules):
        with pytest.raises(ConfigError, match=f"rule {rule} does not fit .* Received: rule='{rule}', method='{method}'") as caught:
            run(posterior, rule)
        assert "\n" not in str(caught.value)
    for rule in {"budget", "mode", "sample", "darts", "redraw"} & set(METHODS[method].rules):
        assert run(posterior, rule).details["rule"] == rule
