"""NAS-Bench-201's space without TensorFlow: its edges, its strings, genotypes, what networks cost, and one operation an edge derived."""

import collections
import dataclasses
import json
import math
import types

import numpy as np
import pytest

from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.derive import derive, full_genotype
from sivdnas_tf.errors import BudgetError, ConfigError, GenotypeError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.posterior import ALWAYS_KEPT, CellPosterior, Posterior
from sivdnas_tf.profiling import costs
from sivdnas_tf.random_search import uniform_posterior
from sivdnas_tf.report.dropped import dropped
from sivdnas_tf.search_space import get_search_space, plan_network, space_of_network
from sivdnas_tf.zoo import registry

SPACE = get_search_space("nasbench201")
E, P = len(SPACE.edges), len(SPACE.primitives)
BENCHMARK = {"network": "nasbench201", "channels": 16, "cells": 15, "classes": 10, "resolution": 32}
WIDE = BudgetConfig(**BENCHMARK, macs=1e12)
RESNET = "|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|skip_connect~0|none~1|skip_connect~2|"
DEAREST = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def log_rate(keep):
    return np.log(1.0 / np.asarray(keep) - 1.0).astype(np.float32)


def posterior(operations, edges=0.9, weights=None, edge_weights=None, **kwargs):
    operations, edges = np.broadcast_to(operations, (E, P)), np.broadcast_to(edges, E)
    weights = np.ones((E, P)) if weights is None else np.broadcast_to(weights, (E, P))
    edge_weights = np.ones(E) if edge_weights is None else edge_weights
    cell = CellPosterior(weights.astype(np.float32), log_rate(operations), edge_weights.astype(np.float32), log_rate(edges))
    return Posterior("nasbench201", 3, cell, **kwargs)


def string(found):
    return found.genotype.architecture_string


def test_the_space_is_the_benchmarks():
    assert SPACE.edges == ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    assert SPACE.nodes == (1, 2, 3) and SPACE.outputs == (3,) and SPACE.cell_types == ("normal",)
    assert (len(SPACE.primitives) + 1) ** E == 15_625  # with `none`: the size of the benchmark's table
    assert space_of_network("nasbench201") is SPACE
    assert get_search_space("darts").outputs == (2, 3, 4, 5)


def test_three_stages_with_a_residual_block_between():
    plan = plan_network("nasbench201", channels=8, cells=6, classes=10, resolution=32)
    assert [(cell.channels, cell.in_resolution) for cell in plan.cells] == [(8, 32), (8, 32), (16, 16), (16, 16), (32, 8), (32, 8)]
    assert plan.residual_reductions == (2, 4) and plan.final_channels == 32 and plan.auxiliary_cell is None
    assert {cell.stride(predecessor) for cell in plan.cells for predecessor in range(3)} == {1}
    assert not any(cell.preprocesses or cell.n_inputs != 1 for cell in plan.cells)
    with pytest.raises(ConfigError, match=r"three stages of as many cells: a multiple of 3\. Received: cells=7"):
        plan_network("nasbench201", channels=8, cells=7, classes=10, resolution=32)


def test_strings_and_files_say_the_same():
    generator = np.random.default_rng(0)
    for _ in range(20):
        names = generator.choice(SPACE.operations, E)
        edges = tuple(Edge(node, predecessor, str(name)) for (predecessor, node), name in zip(SPACE.edges, names, strict=True))
        genotype = Genotype("x", Cell(edges, (3,)), search_space="nasbench201")
        text = genotype.architecture_string
        assert text.count("~") == E and text.count("+") == 2
        assert Genotype.from_architecture_string(text).normal == genotype.normal
        assert Genotype.from_json(genotype.to_json()) == genotype == genotype.canonical()
        assert registry.resolve(text).sha256 == genotype.sha256
    data = json.loads(Genotype.from_architecture_string(RESNET).to_json())
    assert data["search_space"] == "nasbench201" and data["architecture_string"] == RESNET == data["name"]
    assert len(data["normal"]["edges"]) == E and "reduction" not in data


@pytest.mark.parametrize(
    "text",
    [
        "|",
        "||",
        "|nor_conv_3x3~0|",
        RESNET.replace("~2", "~1"),
        RESNET + "+",
        RESNET.replace("+", ""),
        RESNET + "|skip_connect~3|",
        "|x" * 10_000,
        RESNET.replace("~0|+", "~00|+", 1),
    ],
)
def test_other_strings_are_refused(text):
    with pytest.raises(
        GenotypeError, match=r"an architecture string has the form \|op~0\|\+\|op~0\|op~1\|\+\|op~0\|op~1\|op~2\|\. Received"
    ):
        registry.resolve(text)


def test_an_unknown_operation_names_the_nearest():
    with pytest.raises(GenotypeError, match="Did you mean 'nor_conv_3x3'"):
        Genotype.from_architecture_string(RESNET.replace("nor_conv_3x3~0", "conv_3x3~0"))
    with pytest.raises(GenotypeError, match="'sep_conv_3x3'"):  # of another space
        Genotype.from_architecture_string(RESNET.replace("nor_conv_3x3~0", "sep_conv_3x3~0"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(architecture_string=DEAREST), "architecture_string must say what the edges say"),
        (lambda data: data.pop("architecture_string"), "lacks 'architecture_string'"),
        (lambda data: data.update(search_space="nasbench101"), "Did you mean 'nasbench201'"),
        (lambda data: data.update(search_space=["darts"]), "unknown search space of a genotype"),
        (lambda data: data["normal"]["edges"].pop(), "normal.edges must be the 6 edges of nasbench201, in order: 0->1, 0->2"),
        (lambda data: data["normal"]["edges"].reverse(), "in order"),
        (lambda data: data["normal"].update(concat=[2]), r"normal.concat must be \[3\]"),
        (lambda data: data["normal"].update(concat=[3.0]), r"normal.concat must be \[3\]"),
        (lambda data: data["normal"]["edges"][0].update(operation="max_pool_3x3"), "unknown operation"),
        (lambda data: data["normal"]["edges"][0].update(node=True), "must join nodes by integers"),
        (lambda data: data.update(reduction=data["normal"]), "unknown key"),
        (lambda data: data.update(search_space="darts"), "unknown key"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change, message):
    data = Genotype.from_architecture_string(RESNET).to_dict()
    change(data)
    with pytest.raises(GenotypeError, match=message):
        Genotype.from_dict(data)


def test_a_darts_genotype_needs_both_cells_and_a_benchmarks_one():
    cell = registry.load("DARTS_V2").normal
    with pytest.raises(GenotypeError, match=r"has the cells normal, reduction\. Received: reduction=None"):
        Genotype("half", cell)
    own = Genotype.from_architecture_string(RESNET).normal
    with pytest.raises(GenotypeError, match=r"has the cells normal\. Received: reduction="):
        Genotype("both", own, own, "nasbench201")


def by_hand(text):
    """params and macs of the benchmark's network, layer by layer."""
    params, macs = 3 * 16 * 9 + 32, 3 * 16 * 9 * 32**2
    for stage in range(3):
        width, pixels = 16 << stage, (32 >> stage) ** 2
        if stage:  # 3x3 of stride 2, 3x3, 1x1 on the pooled image
            kernels = (width // 2) * width * 9 + width * width * 9 + (width // 2) * width
            params, macs = params + kernels + 4 * width, macs + kernels * pixels
        for size in (1, 3):
            count = 5 * text.count(f"nor_conv_{size}x{size}")
            params, macs = params + count * (width**2 * size**2 + 2 * width), macs + count * width**2 * size**2 * pixels
    return params + 2 * 64 + 64 * 10 + 10, macs + 64 * 10


@pytest.mark.parametrize("text", [RESNET, DEAREST, RESNET.replace("none", "nor_conv_1x1"), RESNET.replace("none", "avg_pool_3x3")])
def test_a_network_costs_what_its_layers_do(text):
    genotype = Genotype.from_architecture_string(text)
    cost = costs.network_cost(genotype, **BENCHMARK)
    assert (cost.params, cost.macs) == by_hand(text)
    assert cost.macs_ptflops > cost.macs
    assert costs.auxiliary_head_params(genotype, **BENCHMARK) == 0
    parts = costs.network_parts(genotype, **BENCHMARK)
    assert [place for place, _, _ in parts].count("reduction before cell 5") == 1
    assert sum(part.macs for _, _, part in parts) == cost.macs


def test_a_network_is_built_of_its_own_spaces_cells():
    with pytest.raises(GenotypeError, match=r"a cifar network is built of cells of the search space darts\. Received: '.*' of nasbench201"):
        costs.network_cost(Genotype.from_architecture_string(RESNET), network="cifar", channels=16, cells=8, classes=10, resolution=32)
    with pytest.raises(GenotypeError, match="a nasbench201 network is built of cells of the search space nasbench201"):
        costs.network_cost(registry.load("DARTS_V2"), **BENCHMARK)


def test_depth_grows_by_a_cell_a_stage():
    genotype = Genotype.from_architecture_string(DEAREST)
    cells = costs.deepest_cells(genotype, dataclasses.replace(WIDE, macs=600e6))
    at = [costs.network_cost(genotype, **{**BENCHMARK, "cells": number}).macs for number in (cells, cells + 3)]
    assert cells % 3 == 0 and at[0] <= 600e6 < at[1]


def test_the_expected_cost_of_certain_gates_is_the_networks():
    fixed, terms = costs.expected_cost_terms(SPACE, WIDE)
    kept = np.zeros((E, P))
    kept[:, SPACE.primitives.index("nor_conv_3x3")] = 1
    assert terms.keys() == {"normal"}
    assert fixed + (kept * np.array(terms["normal"])).sum() == costs.network_cost(full_genotype("nasbench201"), **BENCHMARK).macs
    assert full_genotype("nasbench201").architecture_string == DEAREST


# Derivation.


def test_every_edge_keeps_its_best_operation():
    keep = np.full((E, P), 0.6)
    best = [0, 1, 2, 3, 2, 1]
    keep[np.arange(E), best] = 0.8
    found = derive(posterior(keep), rule="mode", seed=0, budget=WIDE)
    names = [SPACE.primitives[index] for index in best]
    assert [edge.operation for edge in found.genotype.normal.edges] == names
    assert found.details["architecture_string"] == string(found)
    assert found.details["cells"]["normal"]["n_operations"] == E
    reasons = collections.Counter(entry["reason"] for entry in found.details["cells"]["normal"]["dropped"])
    assert reasons == {"outranked": E * (P - 1)}
    assert found.genotype == derive(posterior(keep), seed=5, budget=WIDE).genotype  # by the method's own rule


def test_the_report_shows_keep_probabilities_whatever_ranked():
    keep = np.tile([0.9, 0.8, 0.7, 0.6], (E, 1))
    found = derive(posterior(keep, 0.75), rule="mode", seed=0, budget=WIDE)
    page = dropped(types.SimpleNamespace(derivation=found.details))
    assert "skip_connect&nbsp;0.900" in page and "Outranked: an edge of this search space has one operation" in page
    ranked = derive(posterior(keep, 0.75), rule="darts", seed=0, budget=WIDE)
    assert "skip_connect&nbsp;0.675" in dropped(types.SimpleNamespace(derivation=ranked.details))


def test_a_dropped_edge_becomes_none_and_a_node_gets_its_most_probable_edge_back():
    keep, edges = np.full((E, P), 0.6), np.full(E, 0.9)
    keep[:, 2] = 0.7
    edges[[0, 4]] = 0.2, 0.3  # 0 is the only edge of node 1
    edges[[1, 2]] = 0.3, 0.4  # both of node 2
    keep[3] = 0.1  # no operation left
    found = derive(posterior(keep, edges), rule="mode", seed=0, budget=WIDE)
    conv = SPACE.primitives[2]
    assert string(found) == f"|{conv}~0|+|none~0|{conv}~1|+|none~0|none~1|{conv}~2|"
    described = found.details["cells"]["normal"]
    assert [entry["edge"] for entry in described["restored"]] == ["0->1", "1->2"]
    assert {entry["edge"] for entry in described["dropped"] if entry["operation"] is None} == {"0->2", "0->3", "1->3"}


def test_operations_are_ranked_as_asked():
    keep = np.tile([0.9, 0.8, 0.7, 0.6], (E, 1))
    weights = np.tile([0.5, -2.0, 1.0, 2.0], (E, 1))  # |w| times keep: 0.45, 1.6, 0.7, 1.2
    named = {
        rank_by: {
            edge.operation
            for edge in derive(posterior(keep, weights=weights), rule="mode", seed=0, budget=WIDE, rank_by=rank_by).genotype.normal.edges
        }
        for rank_by in ("method", "keep_probability", "contribution", "weight")
    }
    assert named == {
        "method": {"skip_connect"},
        "keep_probability": {"skip_connect"},
        "contribution": {"nor_conv_1x1"},
        "weight": {"avg_pool_3x3"},
    }
    mixed = posterior(keep, weights=weights, mixing="softmax")  # exp(w) times keep: the last
    found = derive(mixed, rule="mode", seed=0, budget=WIDE, rank_by="contribution")
    assert {edge.operation for edge in found.genotype.normal.edges} == {"avg_pool_3x3"}
    with pytest.raises(ConfigError, match=r"unknown ranking\. Did you mean 'weight'"):
        derive(mixed, rule="mode", seed=0, budget=WIDE, rank_by="weights")


def test_darts_rule_keeps_every_edge():
    weights = np.tile([0.0, 3.0, 1.0, 2.0], (E, 1))
    darts = posterior(np.full((E, P), 0.5), weights=weights, method="darts_first")
    assert {edge.operation for edge in derive(darts, seed=0, budget=WIDE).genotype.normal.edges} == {"nor_conv_1x1"}


def test_the_budget_raises_the_threshold():
    generator = np.random.default_rng(1)
    keep = generator.uniform(0.55, 0.95, (E, P))
    keep[:, 2] += 0.03
    dense = derive(posterior(keep), rule="mode", seed=0, budget=WIDE).details["cost"]["macs"]
    limit = dataclasses.replace(WIDE, macs=0.8 * dense)
    found = derive(posterior(keep), rule="budget", seed=0, budget=limit)
    assert found.details["cost"]["macs"] <= limit.macs and found.details["raised"] and found.details["threshold"] > 0.5
    with pytest.raises(BudgetError):
        derive(posterior(keep), rule="budget", seed=0, budget=dataclasses.replace(WIDE, macs=1e6))


def test_a_draw_keeps_one_open_operation_in_proportion_to_its_rank():
    keep = np.tile([0.999, 0.5, 0.999, 0.001], (E, 1))
    drawn = [derive(posterior(keep, 0.8), rule="sample", seed=seed, budget=WIDE).genotype.normal.edges[5].operation for seed in range(3000)]
    share = {name: count / len(drawn) for name, count in collections.Counter(drawn).items()}
    ranks = np.array([0.999, 0.5, 0.999])
    # The second is open in half of the draws; the edge is open with 0.8, and closed it is none (node 3 has other edges).
    second = 0.8 * 0.5 * ranks[1] / ranks.sum()
    assert share["nor_conv_1x1"] == pytest.approx(second, abs=0.02)
    assert share["skip_connect"] == pytest.approx((0.8 - second) / 2, abs=0.03)
    assert share["none"] == pytest.approx(0.2, abs=0.03)
    assert share.get("avg_pool_3x3", 0) < 0.01


def test_best_of_scores_strings_within_the_budget_and_knows_their_probability():
    generator = np.random.default_rng(3)
    keep, edges = generator.uniform(0.3, 0.7, (E, P)), generator.uniform(0.5, 0.8, E)
    limit = dataclasses.replace(WIDE, macs=80e6)

    def score(genotype):
        return genotype.architecture_string.count("nor_conv_3x3")

    found = derive(posterior(keep, edges), rule="best_of", seed=0, budget=limit, samples=60, score=score)
    entries = found.details["candidates"]
    assert score(found.genotype) == max(entry["score"] for entry in entries if entry["score"] is not None)
    assert found.details["cost"]["macs"] <= limit.macs
    assert any(entry["score"] is None for entry in entries)
    assert all(-200 < entry["log_probability"] < 0 for entry in entries)


def test_the_probability_of_a_draw_is_its_frequency():
    """Of gates and choice together: three gates of the one edge of node 1 are uncertain, so that draws are few."""
    keep, edges = np.full((E, P), 1e-12), np.full(E, 1 - 1e-12)
    keep[0], keep[1:, 0] = [0.3, 0.6, 0.8, 1e-12], 1 - 1e-12
    counts, probabilities = collections.Counter(), {}
    for seed in range(3000):
        found = derive(posterior(keep, edges), rule="best_of", seed=seed, budget=WIDE, samples=1, score=lambda genotype: 0.0)
        drawn = found.details["candidates"][1]
        key = round(drawn["log_probability"], 6)  # with these numbers no two draws are as probable
        counts[key] += 1
        probabilities[key] = math.exp(drawn["log_probability"])
    kept = {key: count for key, count in counts.items() if probabilities[key] > 0.02}
    assert len(kept) > 5
    for key, count in kept.items():
        assert count / 3000 == pytest.approx(probabilities[key], abs=0.025)


def test_random_is_uniform_over_the_operations_of_an_edge():
    uniform, names = uniform_posterior(SPACE), (*SPACE.primitives, "none")
    drawn = [derive(uniform, seed=seed, budget=WIDE).genotype.normal.edges for seed in range(1500)]
    last = collections.Counter(edges[5].operation for edges in drawn)
    assert all(abs(last[name] / 1500 - 0.2) < 0.04 for name in names)
    first = collections.Counter(edges[0].operation for edges in drawn)  # node 1 must be fed: its one edge is never none
    assert first["none"] == 0 and all(abs(first[name] / 1500 - 0.25) < 0.04 for name in SPACE.primitives)
    tight = dataclasses.replace(WIDE, macs=60e6)
    assert all(derive(uniform, seed=seed, budget=tight).details["cost"]["macs"] <= 60e6 for seed in range(50))


def test_a_posterior_of_one_cell_type_survives_its_file():
    before = posterior(np.full((E, P), 0.7), mixing="softmax")
    arrays = before.to_arrays()
    assert not any(key.startswith("reduction") for key in arrays) and str(arrays["mixing"]) == "softmax"
    after = Posterior.from_arrays(arrays)
    assert after.mixing == "softmax" and after.reduction is None and after.cell_types == ("normal",)
    np.testing.assert_array_equal(after.normal.log_edge_dropout_rate, before.normal.log_edge_dropout_rate)
    assert ALWAYS_KEPT < 0


def test_a_file_of_darts_that_names_no_mixing_is_of_softmax():
    arrays = posterior(np.full((E, P), 0.7), method="darts_first", mixing="softmax").to_arrays()
    del arrays["mixing"]
    assert Posterior.from_arrays(arrays).mixing == "softmax"
