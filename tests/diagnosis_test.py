import math

import numpy as np
import pytest

from sivdnas_tf.config import Config, replace
from sivdnas_tf.diagnosis import SKIP_LIMIT, WEIGHTLESS_LIMIT, diagnose, watched
from sivdnas_tf.posterior import ALWAYS_KEPT, CellPosterior, Posterior
from sivdnas_tf.search_space import SKIP, WITHOUT_WEIGHTS, get_search_space
from sivdnas_tf.zoo import registry

SPACE = get_search_space("darts")
CONFIG = replace(Config(), search={"epochs": 12, "warmup_epochs": 2, "architecture_learning_rate": 0.1}, budget={"macs": 100.0})
# Ten epochs of ten steps after the warm-up: log delta can move by 10.


def healthy(epochs=12):
    """The records of a search that goes well: operations fall from all to a quarter, accuracy rises."""
    start = {"mean_entropy": 0.321, "expected_operations": 193.4, "skip_share": 1 / 7, "weightless_share": 3 / 7, "expected_macs": 400.0}
    records = [{"epoch": epoch, "step": 10 * epoch, "frozen": True, "architecture_accuracy": None, **start} for epoch in (1, 2)]
    for epoch in range(3, 13):
        share = (epoch - 2) / 10
        records.append(
            {
                "epoch": epoch,
                "step": 10 * epoch,
                "frozen": False,
                "architecture_accuracy": 0.3 + 0.5 * share,
                "mixing_gradient_norm": 0.9 - 0.5 * share,
                "dropout_rate_gradient_norm": 0.3 - 0.2 * share,
                "mean_entropy": 0.321 + 3 * share * (1.4 - share),
                "expected_operations": 193.4 - 145 * share,
                "expected_macs": 400.0 - 340 * share,
                "skip_share": 1 / 7 + 0.1 * share,
                "weightless_share": 3 / 7,
            }
        )
    return records[:epochs]


def darts(epochs=12):
    """The records of a DARTS search that goes well: nothing is dropped, the softmax sharpens."""
    for record in (records := healthy(epochs)):
        share = max(0, record["epoch"] - 2) / 10
        record |= {"expected_operations": 196.0, "expected_macs": 400.0, "mean_entropy": math.log(7) * (1 - 0.4 * share)}
        record.pop("dropout_rate_gradient_norm", None)
    return records


def found(records, **search):
    return diagnose(records, SPACE, replace(CONFIG, search=search).search, CONFIG.budget)


def names(records, **search):
    return [finding.name for finding in found(records, **search)]


def changed(epoch, to_end=True, epochs=None, records=None, **values):
    """A healthy search's records up to `epochs` (default: `epoch`), with other values from `epoch` on, or in it alone."""
    records = records or healthy()
    for record in records:
        if record["epoch"] == epoch or (to_end and record["epoch"] > epoch):
            record |= values
    return records[: epochs or epoch]


@pytest.mark.parametrize("method", ["si_vdnas", "h_vdnas"])
def test_nothing_is_found_in_a_healthy_search(method):
    for epochs in range(13):
        assert names(healthy(epochs), method=method) == []


def test_nothing_is_found_in_a_healthy_search_by_darts():
    for epochs in range(13):
        assert names(darts(epochs), method="darts_first") == []


# (what is found, the epoch of the last record, changes from which epoch on, changed values, a text of the figures, a field of the advice)
CASES = {
    "skip connections": ("skip_connections", 6, 5, {"skip_share": 0.75}, "75% of the operations of the normal cell", "kl_weight"),
    "pools": ("without_weights", 6, 5, {"weightless_share": 0.9}, "90% of the operations", "search.architecture_learning_rate"),
    "next to nothing": (
        "few_operations",
        7,
        7,
        {"expected_operations": 5.24},
        "5.2 operations are expected to be kept, fewer than the 8",
        "kl",
    ),
    "next to all": (
        "dense",
        10,
        3,
        {"expected_operations": 185.04, "mean_entropy": 1.0},
        "185.0 of 196 operations",
        "larger search.kl_weight",
    ),
    "sure too early": ("decided_early", 7, 7, {"mean_entropy": 0.02}, "0.02 of 5.5 nats an edge after 50%", "search.warmup_epochs"),
    "standing still": (
        "unmoved",
        7,
        3,
        {"mean_entropy": 0.33, "expected_operations": 193.0},
        "entropy is 0.33 nats an edge, as at the start (0.321)",
        "search.epochs",
    ),
    "no gradient": (
        "vanishing_gradient",
        6,
        6,
        {"mixing_gradient_norm": 1e-5},
        "to w and phi has a norm of 1e-05, 0.8 in",
        "search.kl_weight",
    ),
    "huge gradient": (
        "exploding_gradient",
        6,
        6,
        {"dropout_rate_gradient_norm": 99.0},
        "to the log dropout rates has a norm of 99, 0.26 in the median before",
        "search.learning_rate",
    ),
    "collapse": ("accuracy_fell", 9, 9, {"architecture_accuracy": 0.4}, "fell from 0.600 to 0.400 as the expected operations", "kl_weight"),
    "too dear": ("over_budget", 12, 11, {"expected_macs": 123.0}, "123 macs are expected, over the budget of 100", "search.cost_scale"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_is_found_with_figures_and_advice(name):
    expected, epochs, since, values, seen, advice = CASES[name]
    (finding,) = found(changed(since, epochs=epochs, **values))
    assert finding.name == expected and seen in finding.seen and advice in finding.advice
    assert finding.line == f"{expected}: {finding.seen}; {finding.advice}" and "\n" not in finding.line


# What is nearly wrong: the epoch of the last record, changes from which epoch on, changed values.
NEARLY = {
    "as many skip connections as published cells have": (12, 5, {"skip_share": SKIP_LIMIT, "weightless_share": WEIGHTLESS_LIMIT}),
    "skip connections in one epoch alone": (7, 7, {"skip_share": 0.75}),
    "skip connections while ranks still change": (4, 3, {"skip_share": 0.75, "weightless_share": 1.0}),
    "one operation a node": (7, 7, {"expected_operations": 8.0}),
    "dense half-way": (9, 3, {"expected_operations": 185.0, "mean_entropy": 1.0}),
    "less than dense": (12, 3, {"expected_operations": 170.0, "mean_entropy": 1.0, "expected_macs": 99.0, "architecture_accuracy": 0.7}),
    "sure in the second half": (8, 8, {"mean_entropy": 0.02}),
    "rather sure": (7, 7, {"mean_entropy": 0.3}),
    "standing still at first": (6, 3, {"mean_entropy": 0.33, "expected_operations": 193.0}),
    "an entropy as at the start, of gates that have closed": (7, 3, {"mean_entropy": 0.321, "expected_operations": 100.0}),
    "a smaller gradient": (6, 6, {"mixing_gradient_norm": 0.01, "dropout_rate_gradient_norm": 3.0}),
    "nothing to compare the gradient with": (5, 5, {"mixing_gradient_norm": 1e-5}),
    "a lower accuracy": (9, 9, {"architecture_accuracy": 0.45}),
    "a fall of accuracy without dropping": (6, 6, {"architecture_accuracy": 0.2, "expected_operations": 193.4, "mean_entropy": 2.0}),
    "dear half-way": (10, 3, {"expected_macs": 300.0}),
    "within the budget": (12, 3, {"expected_macs": 100.0}),
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_wrong_is_not_found(name):
    epochs, since, values = NEARLY[name]
    assert names(changed(since, epochs=epochs, **values)) == []


def test_nothing_is_found_in_the_warm_up():
    record = {"skip_share": 1.0, "weightless_share": 1.0, "expected_operations": 0.0, "mean_entropy": 0.0, "architecture_accuracy": 0.0}
    assert found([{"epoch": 1, "step": 10, "frozen": True, **record}]) == [] == found([])


def test_a_record_without_the_figures_is_passed_over():
    """As an earlier version wrote them, and of an epoch whose steps returned less."""
    for epochs in range(1, 13):
        assert found([{key: record[key] for key in ("epoch", "step", "frozen")} for record in healthy(epochs)]) == []
        assert (
            found([{**dict.fromkeys(record), **{key: record[key] for key in ("epoch", "step", "frozen")}} for record in healthy(epochs)])
            == []
        )


def test_darts_is_held_against_what_it_has():
    assert names(changed(5, epochs=6, records=darts(), skip_share=0.75), method="darts_first") == ["skip_connections"]
    (finding,) = found(changed(5, epochs=6, records=darts(), skip_share=0.75), method="darts_first")
    assert "kl_weight" not in finding.advice and "search.architecture_learning_rate" in finding.advice
    assert names(changed(3, epochs=8, records=darts(), mean_entropy=math.log(7) - 1e-3), method="darts_first") == ["unmoved"]
    assert names(changed(3, epochs=5, records=darts(), mean_entropy=0.05), method="darts_first") == ["decided_early"]
    # Nothing is dropped and no budget is steered to: neither dense nor over the budget, and no accuracy lost to dropout.
    assert names(changed(8, epochs=12, records=darts(), architecture_accuracy=0.1), method="darts_first") == []


def test_v_vdnas_keeps_two_edges_a_node_whatever_is_expected():
    assert names(changed(3, epochs=12, expected_operations=190.0, mean_entropy=1.0, expected_macs=1e9), method="v_vdnas") == []


def test_macs_about_the_budget_are_no_finding_where_the_divergence_stops_there():
    just_over, over = (changed(3, epochs=12, records=healthy(), expected_macs=macs) for macs in (101.0, 103.0))
    assert names(just_over) == names(over) == names(over, kl_until_budget=True) == ["over_budget"]
    assert names(just_over, kl_until_budget=True) == []
    assert names(just_over, kl_until_budget=True, method="h_vdnas") == []


def test_the_advice_follows_the_settings():
    collapsed = changed(5, epochs=6, skip_share=0.75)
    (plain,) = found(collapsed)
    (softmax,) = found(collapsed, mixing="softmax", cost_scale=0.5)
    assert "mixing" not in plain.advice and "cost_scale" not in plain.advice
    assert (
        "search.mixing=identity" in softmax.advice
        and "a smaller search.architecture_learning_rate or search.kl_weight or search.cost_scale," in softmax.advice
    )
    dense = changed(3, epochs=12, expected_operations=185.0, mean_entropy=1.0, expected_macs=50.0, architecture_accuracy=0.6)
    (slow,) = found(dense, architecture_learning_rate=0.01)
    assert "search.architecture_learning_rate x steps is 1, which cannot raise a log dropout rate from -5 to 0" in slow.advice
    (fast,) = found(dense)
    assert fast.advice == "try a larger search.kl_weight or search.cost_scale"


def posterior(operations, edges, method="si_vdnas", weights=None):
    """A posterior whose normal cell has these log dropout rates and weights, and whose reduction cell keeps everything."""
    ones = np.ones((14, 7))
    normal = CellPosterior(ones if weights is None else weights, operations, np.ones(14), edges)
    everything = CellPosterior(ones, np.full((14, 7), ALWAYS_KEPT), np.ones(14), np.full(14, ALWAYS_KEPT))
    return Posterior("darts", 1, normal, everything, method)


def test_the_shares_are_those_of_the_normal_cell_that_would_be_derived():
    rates, edges = np.full((14, 7), 3.0), np.full(14, -3.0)
    skip, convolution = SPACE.primitives.index(SKIP), SPACE.primitives.index("sep_conv_3x3")
    rates[[0, 2, 5, 9], skip], rates[1, 0], rates[3, convolution] = -3.0, -3.0, -3.0
    assert watched(posterior(rates, edges)) == {"mode_operations": 98 + 6, "skip_share": 4 / 6, "weightless_share": 5 / 6}
    edges[[1, 3]] = 3.0  # with their pool and their convolution
    assert watched(posterior(rates, edges)) == {"mode_operations": 98 + 4, "skip_share": 1.0, "weightless_share": 1.0}


@pytest.mark.parametrize("method", ["darts_first", "v_vdnas"])
def test_the_shares_of_a_method_that_keeps_two_edges_a_node_are_those_of_what_it_keeps(method):
    best = np.full((14, 7), -1.0)
    best[:, SPACE.primitives.index("dil_conv_3x3")] = 0.0
    best[[0, 4], SPACE.primitives.index(SKIP)] = 1.0
    chosen = posterior(-best, np.full(14, ALWAYS_KEPT), method, weights=best)
    # Two edges of each node; edges 0 and 4 lead into different nodes and are the best of theirs.
    normal = {"skip_share": 2 / 8, "weightless_share": 2 / 8}
    assert watched(chosen) == {"mode_operations": 16, **normal}


def test_no_published_normal_cell_is_over_the_limits_but_one():
    over = set()
    for name in registry.names():
        operations = [edge.operation for edge in registry.load(name).normal.edges]
        skips, weightless = operations.count(SKIP) / len(operations), np.mean([each in WITHOUT_WEIGHTS for each in operations])
        over |= {name} if skips > SKIP_LIMIT or weightless > WEIGHTLESS_LIMIT else set()
    assert over == {"SNAS_aggressive"} and len(registry.names()) > 15


@pytest.mark.parametrize(("low", "expected"), [(80.0, []), (101.0, ["101 macs are below 95% of draws, over the budget of 100"])])
def test_one_operation_an_edge_is_over_the_budget_where_draws_are(low, expected):
    """The gates' sum, of which derive leaves an edge one operation, is no measure there."""
    records = changed(11, epochs=12, expected_operations=12.0, expected_macs=123.0, macs_low=low)
    found = diagnose(records, get_search_space("nasbench201"), CONFIG.search, CONFIG.budget)
    assert [finding.seen.partition(":")[0] for finding in found if finding.name == "over_budget"] == expected
