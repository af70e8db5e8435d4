import dataclasses
import itertools
import math

import numpy as np
import pytest

from sivdnas_tf import search_space
from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.derive import derive, drawn_costs, mode_genotype
from sivdnas_tf.methods.registry import METHODS, get_method
from sivdnas_tf.posterior import ALWAYS_KEPT, CellPosterior, Posterior, keep_probability
from sivdnas_tf.profiling.costs import Cost, cost_in, expected_cost_terms
from sivdnas_tf.random_search import uniform_posterior
from sivdnas_tf.search_space import SearchSpace, get_search_space
from sivdnas_tf.uncertainty import INTERVAL, describe, edge_entropy, gate_entropy, largest_entropy, macs_interval, mean_entropy, moments

BUDGET = BudgetConfig(network="cifar", channels=4, cells=3, classes=2, resolution=8, image_channels=1, macs=1e12)
# Two edges of two operations: six gates a cell type, 64 states of each.
SMALL = SearchSpace("small", ("skip_connect", "sep_conv_3x3"), n_nodes=1)


@pytest.fixture(autouse=True)
def fixture_small_space(monkeypatch):
    monkeypatch.setitem(search_space.SEARCH_SPACES, "small", SMALL)


def random_posterior(space="darts", method="si_vdnas", seed=0):
    space, generator = get_search_space(space), np.random.default_rng(seed)
    edges, primitives = len(space.edges), len(space.primitives)
    cells = [
        CellPosterior(*(generator.normal(0.0, 2.0, shape) for shape in ((edges, primitives),) * 2 + ((edges,),) * 2))
        for _ in space.cell_types
    ]
    return Posterior(space.name, 3, *cells, method)


def every_state(posterior, cell_type):
    """`(probability, edges [E], operations [E, P])` of every state of the gates of one cell type."""
    cell = posterior.cell(cell_type)
    probabilities = np.concatenate([cell.edge_keep_probability, cell.operation_keep_probability.ravel()])
    n_edges = len(cell.edge_keep_probability)
    for gates in itertools.product((0, 1), repeat=len(probabilities)):
        gates = np.array(gates)
        probability = np.prod(np.where(gates == 1, probabilities, 1 - probabilities))
        yield probability, gates[:n_edges], gates[n_edges:].reshape(n_edges, -1)


@pytest.mark.parametrize("seed", range(3))
def test_the_moments_are_those_of_all_states_of_the_gates(seed):
    posterior = random_posterior("small", seed=seed)
    fixed, terms = expected_cost_terms(SMALL, BUDGET)
    operations = edges = variance = 0.0
    macs = float(fixed)
    for cell_type in SMALL.cell_types:
        states, term = list(every_state(posterior, cell_type)), np.array(terms[cell_type])
        assert len(states) == 64 and sum(probability for probability, _, _ in states) == pytest.approx(1.0)
        kept = [(probability, gate[:, None] * operation) for probability, gate, operation in states]
        operations += sum(probability * each.sum() for probability, each in kept)
        edges += sum(probability * each.any(axis=1).sum() for probability, each in kept)
        mean = sum(probability * (each * term).sum() for probability, each in kept)
        macs += mean
        variance += sum(probability * ((each * term).sum() - mean) ** 2 for probability, each in kept)
    found = moments(posterior, fixed, terms)
    assert (found.operations, found.edges, found.macs) == pytest.approx((operations, edges, macs))
    assert found.macs_std == pytest.approx(math.sqrt(variance)) and variance > 0


@pytest.mark.parametrize("cell_type", SMALL.cell_types)
def test_an_edges_entropy_is_that_of_all_its_gates(cell_type):
    posterior = random_posterior("small")
    entropies = edge_entropy(posterior, cell_type)
    assert entropies.shape == (2,)
    joint = -sum(probability * math.log(probability) for probability, _, _ in every_state(posterior, cell_type))
    assert entropies.sum() == pytest.approx(joint)


def test_a_gates_entropy_is_largest_at_one_half_and_0_where_it_is_sure():
    rates = np.array([0.0, 1.0, -1.0, 5.0, 800.0, -800.0, ALWAYS_KEPT])
    k = keep_probability(rates[:4])
    np.testing.assert_allclose(gate_entropy(rates[:4]), -k * np.log(k) - (1 - k) * np.log1p(-k), rtol=1e-12)
    np.testing.assert_allclose(gate_entropy(rates[4:]), 0.0, atol=1e-40)
    assert gate_entropy(0.0) == pytest.approx(math.log(2)) == gate_entropy(rates).max()


def test_a_method_that_ranks_by_weight_has_the_entropy_of_its_softmax():
    posterior = random_posterior(method="darts_first")
    weights = posterior.normal.operation_weights
    shares = np.exp(weights) / np.exp(weights).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(edge_entropy(posterior, "normal"), -(shares * np.log(shares)).sum(axis=1))
    even = dataclasses.replace(posterior.normal, operation_weights=np.ones_like(weights))
    sure = dataclasses.replace(posterior.normal, operation_weights=np.where(np.arange(7) == 3, 1000.0, 0.0) * np.ones_like(weights))
    np.testing.assert_allclose(edge_entropy(dataclasses.replace(posterior, normal=even), "normal"), math.log(7))
    np.testing.assert_array_equal(edge_entropy(dataclasses.replace(posterior, normal=sure), "normal"), 0.0)


@pytest.mark.parametrize("name", METHODS)
def test_the_largest_entropy_is_reached_and_not_passed(name):
    method, space = get_method(name), get_search_space("darts")
    posterior = random_posterior(method=name)
    rates = {"log_operation_dropout_rate": np.zeros((14, 7)), "operation_weights": np.zeros((14, 7))}
    edges = np.zeros(14) if method.edges != "none" or name == "random" else np.full(14, ALWAYS_KEPT)
    even = dataclasses.replace(posterior.normal, log_edge_dropout_rate=edges, **rates)
    largest = largest_entropy(space, method)
    np.testing.assert_allclose(edge_entropy(dataclasses.replace(posterior, normal=even, reduction=even), "normal"), largest, rtol=1e-12)
    assert mean_entropy(posterior) < largest or name == "v_vdnas"  # whose edges have no rates, though random_posterior's have


def test_draws_are_those_of_rule_sample_and_the_interval_holds_nine_tenths_of_others():
    posterior = random_posterior()
    first = derive(posterior, rule="sample", seed=5, budget=BUDGET).details["cost"]["macs"]
    assert drawn_costs(posterior, BUDGET, draws=1, seed=5)[0] == first
    low, high = macs_interval(posterior, BUDGET)
    others = drawn_costs(posterior, BUDGET, draws=600, seed=99)
    # Each end is a quantile of 200 draws: two standard errors of 0.015 each, and those of the 600.
    assert np.mean((low <= others) & (others <= high)) == pytest.approx(INTERVAL, abs=0.06)
    assert macs_interval(posterior, BUDGET) == (low, high) != macs_interval(posterior, BUDGET, seed=1)


def test_the_interval_has_the_guarantee_that_the_moments_leave_out():
    space = get_search_space("darts")
    closed = CellPosterior(np.ones((14, 7)), np.full((14, 7), 30.0), np.ones(14), np.full(14, 30.0))
    posterior = Posterior("darts", 1, closed, closed)
    fixed, terms = expected_cost_terms(space, BUDGET)
    assert moments(posterior, fixed, terms).macs == pytest.approx(fixed)
    # A pool a node from input 0, ties breaking by index: input 1 has no preprocessing then, nor has the network a cell 1.
    derived = derive(posterior, rule="mode", seed=0, budget=BUDGET).details["cost"]["macs"]
    assert macs_interval(posterior, BUDGET) == (derived, derived)
    assert derived < fixed


@pytest.mark.parametrize("convention", ["macs", "macs_ptflops"])
def test_every_figure_is_in_the_budgets_convention(convention):
    budget = dataclasses.replace(BUDGET, convention=convention)
    everything = CellPosterior(np.ones((14, 7)), np.full((14, 7), ALWAYS_KEPT), np.ones(14), np.full(14, ALWAYS_KEPT))
    posterior = Posterior("darts", 1, everything, everything)
    derivation = derive(posterior, rule="mode", seed=0, budget=budget)
    cost = cost_in(Cost(**derivation.details["cost"]), convention)
    details = describe(posterior, budget)
    assert (details["expected_macs"], details["macs_std"]) == (cost, 0.0)
    assert details["macs_interval"] == {"low": cost, "high": cost, "probability": INTERVAL, "draws": 200}
    assert (details["expected_operations"], details["expected_edges"], details["mean_entropy"]) == pytest.approx((196, 28, 0), abs=1e-30)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_method_has_is_described_and_the_rest_is_none(name):
    posterior = uniform_posterior(get_search_space("darts")) if name == "random" else random_posterior(method=name)
    details = describe(posterior, BUDGET)
    assert (details["expected_macs"] is None) == name.startswith("darts")
    assert (details["macs_interval"] is None) == (name not in ("si_vdnas", "random"))
    assert {len(values) for values in details["edge_entropy"].values()} == {14}
    if details["macs_interval"]:
        assert details["macs_interval"]["low"] < details["expected_macs"] < details["macs_interval"]["high"]


@pytest.mark.parametrize("name", [name for name in METHODS if name != "random"])
def test_the_mode_genotype_is_what_the_methods_own_rule_derives_without_a_budget(name):
    posterior = random_posterior(method=name)
    rule = "darts" if get_method(name).rule == "darts" else "mode"
    assert mode_genotype(posterior).sha256 == derive(posterior, rule=rule, seed=0, budget=BUDGET).genotype.sha256
