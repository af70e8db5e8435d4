import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.derive import MODE_THRESHOLD, derive
from sivdnas_tf.errors import BudgetError, ConfigError, RunDirError
from sivdnas_tf.genotype import Genotype
from sivdnas_tf.posterior import CellPosterior, Posterior
from sivdnas_tf.profiling import costs
from sivdnas_tf.run_dir import RunDir
from sivdnas_tf.search_space import CELL_TYPES, DARTS_PRIMITIVES, get_search_space

RULES = ("budget", "mode", "sample")  # that go by the keep probabilities alone, and keep any number

SPACE = get_search_space("darts")
E, P = len(SPACE.edges), len(SPACE.primitives)
WIDE = BudgetConfig(network="cifar", channels=4, cells=3, classes=2, resolution=4, image_channels=1, macs=1e12)


def log_rate(probability):
    """The inverse of keep_probability; finite at 0 and 1, where it still gives exactly 0 and 1."""
    probability = np.asarray(probability, np.float64)
    inner = np.clip(probability, 1e-12, 1 - 1e-12)
    return np.select([probability <= 0, probability >= 1], [800.0, -800.0], np.log1p(-inner) - np.log(inner)).astype(np.float32)


def cell_posterior(edges, operations):
    return CellPosterior(np.ones((E, P), np.float32), log_rate(operations), np.ones(E, np.float32), log_rate(edges))


def make_posterior(edges, operations, reduction=None):
    normal = cell_posterior(edges, operations)
    return Posterior("darts", 7, normal, normal if reduction is None else cell_posterior(*reduction))


def random_posterior(seed, mean=0.0):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: generator.normal(mean, 1.0, shape).astype(np.float32)  # noqa: E731
    return Posterior("darts", 50, *(CellPosterior(draw(E, P), draw(E, P), draw(E), draw(E)) for _ in CELL_TYPES))


def run(posterior, rule="mode", seed=0, budget=WIDE, **budget_fields):
    return derive(posterior, rule=rule, seed=seed, budget=dataclasses.replace(budget, **budget_fields))


def entries(cell):
    return {(edge.predecessor, edge.node, edge.operation) for edge in cell.edges}


def sure_edges():
    """Keep probabilities: input 0 feeds every node by a sure skip_connect, everything else is off."""
    edges, operations = np.zeros(E), np.zeros((E, P))
    for index, (predecessor, _) in enumerate(SPACE.edges):
        if predecessor == 0:
            edges[index] = operations[index, DARTS_PRIMITIVES.index("skip_connect")] = 1.0
    return edges, operations


SURE = {(0, node, "skip_connect") for node in SPACE.nodes}


@pytest.mark.parametrize("rule", RULES)
def test_a_posterior_of_zeros_and_ones_is_its_own_genotype(rule):
    edges, operations = sure_edges()
    edges[SPACE.edges.index((2, 4))] = 1.0
    operations[SPACE.edges.index((2, 4)), [0, 5]] = 1.0
    operations[SPACE.edges.index((1, 5)), 3] = 1.0  # on an edge that is off
    found = run(make_posterior(edges, operations, reduction=sure_edges()), rule)
    assert entries(found.genotype.normal) == SURE | {(2, 4, "max_pool_3x3"), (2, 4, "dil_conv_3x3")}
    assert entries(found.genotype.reduction) == SURE
    assert found.genotype.normal.concat == found.genotype.reduction.concat == (2, 3, 4, 5)
    assert found.genotype.name == "searched"


def test_entries_are_node_major_and_in_the_order_of_primitives():
    found = run(make_posterior(np.ones(E), np.ones((E, P)))).genotype.normal
    assert [(e.predecessor, e.node, e.operation) for e in found.edges] == [(*edge, p) for edge in SPACE.edges for p in DARTS_PRIMITIVES]


def test_mode_keeps_one_half_and_drops_what_is_below():
    edges, operations = sure_edges()
    edges[1], operations[1, 3], operations[1, 4] = 0.5, 0.5, 0.499
    edges[3], operations[3, 3] = 0.499, 1.0
    found = run(make_posterior(edges, operations))
    assert entries(found.genotype.normal) == SURE | {(1, 2, "sep_conv_3x3")}
    assert found.details["threshold"] == MODE_THRESHOLD


def test_guarantee_restores_the_most_probable_edge_and_its_most_probable_operation():
    edges, operations = sure_edges()
    for index in SPACE.edges_into(5):
        edges[index], operations[index] = 0.1, 0.2
    edges[SPACE.edges.index((3, 5))] = 0.3
    operations[SPACE.edges.index((3, 5)), 6] = 0.45
    operations[SPACE.edges.index((1, 5)), 4] = 0.9  # the most probable operation, but on a less probable edge
    found = run(make_posterior(edges, operations))
    assert entries(found.genotype.normal) == {e for e in SURE if e[1] != 5} | {(3, 5, "dil_conv_5x5")}
    assert found.details["cells"]["normal"]["restored"] == [{"edge": "3->5", "operation": "dil_conv_5x5"}]


def test_guarantee_restores_one_operation_where_the_edge_was_off_and_its_operations_on():
    edges, operations = sure_edges()
    edges[0], edges[1], operations[0] = 0.4, 0.3, 0.9
    operations[0, 5] = 0.95
    found = run(make_posterior(edges, operations))
    assert [e for e in entries(found.genotype.normal) if e[1] == 2] == [(0, 2, "dil_conv_3x3")]


def test_guarantee_fills_an_edge_that_was_on_without_operations():
    edges, operations = sure_edges()
    edges[0], edges[1] = 0.8, 0.7
    operations[0], operations[1] = 0.3, 0.4  # no operation survives on either; the more probable edge is restored
    found = run(make_posterior(edges, operations))
    assert [e for e in entries(found.genotype.normal) if e[1] == 2] == [(0, 2, "max_pool_3x3")]
    dropped = found.details["cells"]["normal"]["dropped"]
    assert {"edge": "1->2", "operation": None, "reason": "no operation left"} in dropped
    assert not [entry for entry in dropped if entry["edge"] == "0->2" and entry["operation"] is None]


def test_ties_break_by_index():
    found = run(make_posterior(np.full(E, 0.2), np.full((E, P), 0.2)))
    assert entries(found.genotype.normal) == {(0, node, "max_pool_3x3") for node in SPACE.nodes}
    assert len(found.details["cells"]["reduction"]["restored"]) == 4


def test_details_account_for_every_edge_and_operation():
    for rule in RULES:
        found = run(random_posterior(3), rule, seed=5)
        for cell_type in CELL_TYPES:
            cell, genotype_cell = found.details["cells"][cell_type], found.genotype.cell(cell_type)
            kept = [(e["edge"], e["operation"]) for e in cell["kept"]]
            assert kept == [(f"{e.predecessor}->{e.node}", e.operation) for e in genotype_cell.edges]
            dropped = {(e["edge"], e["operation"]): e["reason"] for e in cell["dropped"]}
            assert len(dropped) == len(cell["dropped"])
            everything = {(edge, operation) for edge in SPACE.edge_names for operation in SPACE.primitives}
            assert set(kept) | {key for key in dropped if key[1]} == everything
            assert not set(kept) & set(dropped)
            edges_kept = {edge for edge, _ in kept}
            assert {edge for edge, operation in dropped if operation is None} == set(SPACE.edge_names) - edges_kept
            assert (cell["n_edges"], cell["n_operations"]) == (len(edges_kept), len(kept))
            assert {(e["edge"], e["operation"]) for e in cell["restored"]} <= set(kept)


def test_details_give_the_reasons():
    edges, operations = sure_edges()
    edges[1], operations[1, 3] = 0.2, 0.9
    edges[3] = 0.9
    for rule, closed in (("mode", "below threshold"), ("budget", "below threshold")):
        dropped = run(make_posterior(edges, operations), rule).details["cells"]["normal"]["dropped"]
        reasons = {(e["edge"], e["operation"]): e["reason"] for e in dropped}
        assert reasons["1->2", None] == closed
        assert reasons["1->2", "sep_conv_3x3"] == "edge dropped"
        assert reasons["1->2", "sep_conv_5x5"] == closed
        assert reasons["0->2", "sep_conv_5x5"] == closed
        assert reasons["1->3", None] == "no operation left"
    sampled = run(make_posterior(*sure_edges()), "sample").details["cells"]["normal"]["dropped"]
    assert {e["reason"] for e in sampled} == {"gate 0"}


def test_details_are_json_and_complete():
    posterior = random_posterior(1)
    found = derive(posterior, rule="budget", seed=9, budget=WIDE, name="mine")
    details = json.loads(json.dumps(found.details, allow_nan=False))
    assert details == found.details
    assert found.genotype.name == "mine"
    assert (details["rule"], details["seed"], details["epoch"], details["search_space"]) == ("budget", 9, 50, "darts")
    assert details["budget"] == dataclasses.asdict(WIDE)
    assert details["cost"] == dataclasses.asdict(costs.deployed_cost(found.genotype, WIDE))
    assert (details["edges"], details["primitives"]) == (list(SPACE.edge_names), list(SPACE.primitives))
    cell = details["cells"]["reduction"]
    np.testing.assert_allclose(cell["edge_keep_probability"], posterior.reduction.edge_keep_probability, rtol=1e-6)
    np.testing.assert_allclose(cell["operation_keep_probability"], posterior.reduction.operation_keep_probability, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_derivation_is_deterministic_and_the_same_after_a_round_trip_through_the_file(rule, tmp_path):
    posterior = random_posterior(2)
    run_dir = RunDir(tmp_path)
    run_dir.write_posterior(posterior)
    assert run(posterior, rule, seed=4) == run(posterior, rule, seed=4) == run(run_dir.read_posterior(), rule, seed=4)


def test_the_seed_matters_for_sample_alone():
    posterior = random_posterior(2)
    assert len({run(posterior, "sample", seed).genotype.sha256 for seed in range(20)}) == 20
    for rule in ("mode", "budget"):
        assert len({run(posterior, rule, seed).genotype.sha256 for seed in range(5)}) == 1
    assert run(posterior, "sample").details["threshold"] is None


def test_sample_draws_the_two_cell_types_independently():
    posterior = random_posterior(2)
    twins = dataclasses.replace(posterior, reduction=posterior.normal)
    assert any(run(twins, "sample", seed).genotype.normal != run(twins, "sample", seed).genotype.reduction for seed in range(3))


def test_sample_keeps_with_the_probability_of_both_gates():
    generator = np.random.default_rng(0)
    edges, operations = generator.uniform(0.05, 0.95, E), generator.uniform(0.05, 0.95, (E, P))
    for node in SPACE.nodes:  # a sure operation a node, so that the guarantee never acts
        edges[SPACE.edges_into(node)[0]] = operations[SPACE.edges_into(node)[0], 2] = 1.0
    posterior, draws, counts = make_posterior(edges, operations), 400, np.zeros((2, E, P))
    for seed in range(draws):
        found = run(posterior, "sample", seed)
        for axis, cell_type in enumerate(CELL_TYPES):
            assert found.details["cells"][cell_type]["restored"] == []
            for edge in found.genotype.cell(cell_type).edges:
                counts[axis, SPACE.edges.index((edge.predecessor, edge.node)), DARTS_PRIMITIVES.index(edge.operation)] += 1
    expected = edges[:, None] * operations
    deviation = np.sqrt(expected * (1 - expected) / draws)
    # 5 standard deviations: all 196 binomials stay inside with probability 0.9999; the sure ones have no deviation at all.
    errors = np.abs(counts / draws - expected)
    assert np.all(errors <= 5 * deviation + 1e-6)
    # The tolerance tells the product from the operation's own gate, and the two cells' draws from one draw for both.
    assert np.mean(np.abs(counts / draws - operations) > 5 * deviation + 1e-6) > 0.5
    assert not np.array_equal(counts[0], counts[1])


def macs_of(posterior, threshold, budget):
    """Cost of the genotype at a threshold, by the rule's words: what is at least as probable, and the guarantee."""
    cells = {}
    for cell_type in CELL_TYPES:
        cell = posterior.cell(cell_type)
        kept = {
            (e, p)
            for e in range(E)
            for p in range(P)
            if cell.edge_keep_probability[e] >= threshold and cell.operation_keep_probability[e, p] >= threshold
        }
        for node in SPACE.nodes:
            if not any(e in SPACE.edges_into(node) for e, _ in kept):
                edge = max(SPACE.edges_into(node), key=lambda e: (cell.edge_keep_probability[e], -e))
                kept.add((edge, max(range(P), key=lambda p: (cell.operation_keep_probability[edge, p], -p))))
        cells[cell_type] = {
            "edges": [
                {"node": SPACE.edges[e][1], "predecessor": SPACE.edges[e][0], "operation": DARTS_PRIMITIVES[p]} for e, p in sorted(kept)
            ],
            "concat": list(SPACE.nodes),
        }
    genotype = Genotype.from_dict({"schema_version": 1, "name": "searched", **cells})
    return costs.cost_in(costs.deployed_cost(genotype, budget), budget.convention), genotype


def all_thresholds(posterior):
    cells = [posterior.cell(cell_type) for cell_type in CELL_TYPES]
    probabilities = [p for cell in cells for p in (*cell.edge_keep_probability, *cell.operation_keep_probability.ravel())]
    return [0.5, *sorted({float(p) for p in probabilities if p > 0.5}), 1.5]


@pytest.mark.parametrize("convention", costs.CONVENTIONS)
def test_budget_is_mode_where_that_fits(convention):
    posterior = random_posterior(0)
    mode = run(posterior, "mode", convention=convention)
    limit = mode.details["cost"][convention]
    found = run(posterior, "budget", macs=float(limit), convention=convention)
    assert found.genotype == mode.genotype
    details = found.details
    assert (details["threshold"], details["raised"], details["warning"]) == (MODE_THRESHOLD, False, None)
    assert details["cost"] == details["mode_cost"] == mode.details["cost"]
    tighter = run(posterior, "budget", macs=limit - 1.0, convention=convention).details
    assert tighter["raised"]
    assert tighter["cost"][convention] < limit == tighter["mode_cost"][convention]


@pytest.mark.parametrize("seed", range(3))
def test_budget_takes_the_first_threshold_that_fits(seed):
    posterior = random_posterior(seed, mean=-2.0)  # dense: most keep probabilities are above 0.8
    dense = run(posterior, "mode").details["cost"]["macs"]
    previous = MODE_THRESHOLD
    for share in (0.8, 0.4, 0.2):
        budget = dataclasses.replace(WIDE, macs=share * dense)
        found = derive(posterior, rule="budget", seed=0, budget=budget)
        threshold = found.details["threshold"]
        macs, genotype = macs_of(posterior, threshold, budget)
        assert found.genotype == genotype
        assert found.details["cost"]["macs"] == macs <= budget.macs
        # Every lower threshold, the next one included, is over the budget.
        lower = [value for value in all_thresholds(posterior) if value < threshold]
        assert all(macs_of(posterior, value, budget)[0] > budget.macs for value in lower)
        assert threshold > previous
        previous = threshold
        assert found.details["raised"]
        assert "too dense" in found.details["warning"] and f"raised to {threshold:.4f}" in found.details["warning"]


def test_budget_can_end_with_the_guarantee_alone():
    posterior = make_posterior(np.full(E, 0.9), np.full((E, P), 0.9))  # all the same: they fall together
    found = run(posterior, "budget", macs=20000.0)
    assert entries(found.genotype.normal) == {(0, node, "max_pool_3x3") for node in SPACE.nodes}
    assert 0.9 < found.details["threshold"] < 0.901
    sure = make_posterior(np.ones(E), np.ones((E, P)))  # above 1 there is still a threshold
    assert run(sure, "budget", macs=20000.0).genotype == found.genotype


def test_budget_walks_past_a_threshold_that_costs_more():
    # 0->2 falls empty at 0.61 and leaves the cheap 1->2; above 0.7 that falls too, and the dear 0->2 comes back.
    edges, operations = sure_edges()
    edges[0], operations[0] = 0.9, 0.0
    operations[0, 4] = 0.6
    edges[1], operations[1, 2] = 0.7, 1.0
    posterior = make_posterior(edges, operations, reduction=sure_edges())
    cost = {t: macs_of(posterior, t, WIDE)[0] for t in (0.5, 0.65, 0.8)}
    assert cost[0.65] < cost[0.8] < cost[0.5]
    found = run(posterior, "budget", macs=float(cost[0.8]))
    assert entries(found.genotype.normal) == {e for e in SURE if e[1] != 2} | {(1, 2, "skip_connect")}
    with pytest.raises(BudgetError, match=f"cheapest network.*Received: {cost[0.65]:,} macs"):
        run(posterior, "budget", macs=cost[0.65] - 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_over_the_budget(rule):
    posterior = random_posterior(0)
    budget = dataclasses.replace(WIDE, channels=16, macs=30000.0, convention="macs_ptflops")
    with pytest.raises(BudgetError) as caught:
        derive(posterior, rule=rule, seed=0, budget=budget)
    message = str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    assert ("the cheapest network" in message) == (rule == "budget")
    assert "Expected at most 30,000 macs_ptflops" in message and "channels=16" in message
    if rule == "budget":
        candidates = [macs_of(posterior, threshold, budget) for threshold in all_thresholds(posterior)]
        cost, genotype = min(candidates, key=lambda candidate: candidate[0])
    else:
        genotype = run(posterior, rule).genotype
        cost = costs.deployed_cost(genotype, budget).macs_ptflops
    assert f"Received: {cost:,} macs_ptflops" in message
    widest = costs.widest_channels(genotype, budget)
    assert f"channels={widest} is the widest" in message
    derived = run(posterior, rule, budget=budget, channels=widest)  # and it does
    assert derived.details["cost"]["macs_ptflops"] <= budget.macs


# Latency: `measure` stands in for a runtime.


def operations_of(genotype):
    """As milliseconds: the number of operations, which never rises with the threshold."""
    return float(sum(len(genotype.cell(cell_type).edges) for cell_type in CELL_TYPES))


def limited(posterior, limit, rule="budget", measure=operations_of, **budget_fields):
    """A derivation with a limit of latency, and the genotypes that were measured."""
    measured = []

    def counted(genotype):
        measured.append(genotype)
        return measure(genotype)

    budget = dataclasses.replace(WIDE, latency_ms=limit, **budget_fields)
    return derive(posterior, rule=rule, seed=0, budget=budget, measure_latency=counted), measured


@pytest.mark.parametrize("rule", RULES)
def test_without_a_limit_nothing_is_measured(rule):
    found, measured = limited(random_posterior(0), 0.0, rule)
    assert measured == [] and found.details["latency"] is None
    assert found.genotype == run(random_posterior(0), rule).genotype


def test_a_limit_needs_something_that_measures():
    with pytest.raises(ConfigError, match=r"budget.latency_ms needs measure_latency.*Received: latency_ms=3.0"):
        run(random_posterior(0), "budget", latency_ms=3.0)


@pytest.mark.parametrize("rule", RULES)
def test_what_is_fast_enough_stays_as_it_is_after_one_measurement(rule):
    posterior = random_posterior(0)
    expected = run(posterior, rule)
    limit = operations_of(expected.genotype)
    found, measured = limited(posterior, limit, rule)
    assert found.genotype == expected.genotype and measured == [expected.genotype]
    latency = {"ms": limit, "genotype_sha256": found.genotype.sha256}
    threshold = expected.details["threshold"]
    assert found.details["latency"] == {**latency, "measurements": [{"threshold": threshold, "ms": limit}]}
    assert {**found.details, "latency": None} == {**expected.details, "budget": found.details["budget"]}


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("limit", [9.0, 20.0, 60.0])
def test_budget_raises_the_threshold_to_the_first_that_is_fast_enough(limit, share):
    posterior = random_posterior(1, mean=-2.0)
    dense = run(posterior, "mode").details["cost"]["macs"]
    found, measured = limited(posterior, limit, macs=share * dense)
    details = json.loads(json.dumps(found.details))
    expected = next(
        (threshold, genotype)
        for threshold in all_thresholds(posterior)
        for macs, genotype in [macs_of(posterior, threshold, WIDE)]
        if macs <= share * dense and operations_of(genotype) <= limit
    )
    assert (details["threshold"], found.genotype) == expected
    assert details["cost"] == dataclasses.asdict(costs.deployed_cost(found.genotype, WIDE))
    # The first, the last, and a bisection of the at most 200 between them.
    assert 2 < len(measured) <= 2 + 8
    latency = details["latency"]
    assert latency["ms"] == operations_of(found.genotype) <= limit and latency["genotype_sha256"] == found.genotype.sha256
    assert [entry["ms"] for entry in latency["measurements"]] == [operations_of(genotype) for genotype in measured]
    assert details["raised"]
    first = latency["measurements"][0]["ms"]
    subject = "keeping every keep_probability >= 0.5" if share == 1.0 else "over the budget of .* macs; what fits that"
    assert re.search(rf"{subject} takes {first:g} ms in tflite_1, over the limit of {limit:g}; ", details["warning"])
    assert f"raised to {details['threshold']:.4f}" in details["warning"]


@pytest.mark.parametrize("rule", RULES)
def test_over_the_latency(rule):
    with pytest.raises(BudgetError) as caught:
        limited(random_posterior(0), 7.5, rule, latency_runtime="onnxruntime")
    message = str(caught.value)
    assert caught.value.exit_code == 3 and "\n" not in message
    assert ("the sparsest network" in message) == (rule == "budget")
    assert "Expected at most 7.5 ms an image, the median in onnxruntime on this machine" in message
    assert f"Received: {8 if rule == 'budget' else operations_of(run(random_posterior(0), rule).genotype):g} ms" in message


def test_over_the_multiply_adds_nothing_is_measured():
    def measure(genotype):
        raise AssertionError("measured")

    with pytest.raises(BudgetError, match="Expected at most 1 macs"):
        limited(random_posterior(0), 5.0, measure=measure, macs=1.0)


def test_wrong_arguments_are_refused():
    posterior = random_posterior(0)
    with pytest.raises(ConfigError, match=r"Did you mean 'sample'\?.*Received: 'samples'"):
        run(posterior, "samples")
    with pytest.raises(ConfigError, match="Received: 'best_of'"):
        run(posterior, "best_of")
    with pytest.raises(ConfigError, match="Received: seed=-1"):
        run(posterior, "sample", seed=-1)
    with pytest.raises(ConfigError, match="Received: resolution=5"):
        run(posterior, "mode", resolution=5)
    broken = dataclasses.replace(posterior.normal, log_edge_dropout_rate=np.full(E, np.nan, np.float32))
    with pytest.raises(RunDirError, match="normal_log_edge_dropout_rate must be finite"):
        run(dataclasses.replace(posterior, normal=broken))
    short = dataclasses.replace(posterior.normal, log_edge_dropout_rate=np.zeros(E - 1, np.float32))
    with pytest.raises(RunDirError, match="of shape"):
        run(dataclasses.replace(posterior, normal=short))


FLOATS = st.floats(-30, 30, width=32)
LEVELS = st.sampled_from([np.float32(value) for value in (-800, -5, -1, 0, 1, 800)])  # many ties, and exact 0 and 1


@st.composite
def posteriors(draw):
    elements = draw(st.sampled_from([FLOATS, LEVELS]))
    cells = []
    for _ in CELL_TYPES:
        operations = draw(hnp.arrays(np.float32, (E, P), elements=elements, fill=elements))
        cells.append(
            CellPosterior(np.ones((E, P)), operations, np.ones(E), draw(hnp.arrays(np.float32, E, elements=elements, fill=elements)))
        )
    return Posterior("darts", 1, *cells)


@settings(max_examples=60, deadline=None)
@given(posteriors(), st.sampled_from(RULES), st.integers(0, 2**31 - 1), st.floats(1e4, 1e6))
def test_any_posterior_gives_a_valid_genotype_within_the_budget_or_a_budget_error(posterior, rule, seed, macs):
    try:
        found = run(posterior, rule, seed, macs=macs)
    except BudgetError:
        limit = min(macs_of(posterior, value, WIDE)[0] for value in all_thresholds(posterior)) if rule == "budget" else 0
        assert rule != "budget" or limit > macs
        found = run(posterior, rule, seed)  # without a limit every posterior gives one
    genotype = found.genotype
    assert Genotype.from_json(genotype.to_json()) == genotype.canonical() == genotype
    for cell_type in CELL_TYPES:
        cell = genotype.cell(cell_type)
        assert cell.nodes == cell.concat == SPACE.nodes
        assert len(entries(cell)) == len(cell.edges)
        assert {(e.predecessor, e.node) for e in cell.edges} <= set(SPACE.edges)
        assert 4 <= found.details["cells"][cell_type]["n_edges"] <= E


def test_what_else_was_open_on_a_restored_edge_fell_with_the_edge():
    edges, operations = sure_edges()
    edges[0], operations[0, 3] = 0.3, 0.9  # what feeds node 2
    cell = run(make_posterior(edges, operations), "mode").details["cells"]["normal"]
    assert cell["restored"] == [{"edge": "0->2", "operation": "skip_connect"}]
    reasons = {(e["edge"], e["operation"]): e["reason"] for e in cell["dropped"]}
    assert reasons["0->2", SPACE.primitives[3]] == "edge dropped"
