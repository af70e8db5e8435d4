import subprocess
import sys

import numpy as np
import pytest

from sivdnas_tf.config import BudgetConfig
from sivdnas_tf.errors import BudgetError, ConfigError, GenotypeError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.profiling import costs
from sivdnas_tf.profiling.costs import Cost, operation_cost
from sivdnas_tf.search_space import DARTS_OPERATIONS, EVALUATION_OPERATIONS, get_search_space, plan_network
from sivdnas_tf.zoo import registry

# The two networks that `counts` of the zoo was measured on.
REFERENCE_NETWORKS = {
    "cifar": {"network": "cifar", "channels": 36, "cells": 20, "classes": 10, "resolution": 32},
    "imagenet": {"network": "imagenet", "channels": 48, "cells": 14, "classes": 1000, "resolution": 224},
}
SMALL = {"network": "cifar", "channels": 4, "cells": 5, "classes": 3, "resolution": 8, "image_channels": 1}


def cell(*edges, concat):
    return Cell(tuple(Edge(*edge) for edge in edges), tuple(concat))


CHAIN = cell((2, 0, "skip_connect"), (2, 1, "sep_conv_3x3"), (3, 2, "dil_conv_3x3"), concat=(2, 3))


def with_cells(normal, reduction=CHAIN):
    return Genotype("test", normal, reduction)


@pytest.mark.parametrize("network", REFERENCE_NETWORKS)
@pytest.mark.parametrize("name", registry.names())
def test_equals_the_reference_networks_exactly(name, network):
    arguments, counts = REFERENCE_NETWORKS[network], registry.entry(name)["counts"][network]
    cost = costs.network_cost(registry.load(name), **arguments)
    assert cost == Cost(counts["params"], counts["macs"], counts["macs_ptflops"])
    if "params_aux_head" in counts:
        assert costs.auxiliary_head_params(registry.load(name), **arguments) == counts["params_aux_head"]


def test_the_zoo_covers_every_operation_at_some_stride():
    # Without this the test above could become vacuous for an operation.
    found = {edge.operation for name in registry.names() for c in ["normal", "reduction"] for edge in registry.load(name).cell(c).edges}
    assert found == set(DARTS_OPERATIONS)


def brute_force(operation, channels, size, stride):
    """Counts layer by layer, output pixel by output pixel."""
    params = macs = extra = 0
    height = width = size

    def convolve(kernel, strides, in_channels_per_group):
        nonlocal params, macs, height, width
        params += channels * in_channels_per_group * kernel[0] * kernel[1]
        rows, columns = range(0, height, strides[0]), range(0, width, strides[1])
        macs += sum(channels * in_channels_per_group * kernel[0] * kernel[1] for _ in rows for _ in columns)
        height, width = len(rows), len(columns)

    def elements(times):
        nonlocal extra
        extra += times * channels * height * width

    def normalize():
        nonlocal params
        params += 2 * channels
        elements(2)

    if operation in ("max_pool_3x3", "avg_pool_3x3"):
        elements(1)
    elif operation.startswith("nor_conv"):
        elements(1)
        convolve((int(operation[-1]),) * 2, (stride, stride), channels)
        normalize()
    elif operation == "conv_7x1_1x7":
        elements(1)
        convolve((1, 7), (1, stride), channels)
        convolve((7, 1), (stride, 1), channels)
        normalize()
    elif operation == "skip_connect" and stride == 2:
        elements(1)
        convolve((1, 1), (2, 2), channels)
        normalize()
    elif operation.startswith(("sep_conv", "dil_conv")):
        kernel = int(operation[-1])
        for unit_stride in (stride, 1)[: 2 if operation.startswith("sep") else 1]:
            elements(1)
            convolve((kernel, kernel), (unit_stride, unit_stride), 1)
            convolve((1, 1), (1, 1), channels)
            normalize()
    return Cost(params, macs, macs + extra)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 6, 7])
@pytest.mark.parametrize("operation", EVALUATION_OPERATIONS)
def test_operation_equals_a_count_by_pixels(operation, size, stride):
    assert operation_cost(operation, channels=6, resolution=size, stride=stride) == brute_force(operation, 6, size, stride)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", EVALUATION_OPERATIONS)
def test_twice_the_resolution_costs_four_times_the_multiply_adds(operation, stride):
    small, large = (operation_cost(operation, channels=4, resolution=size, stride=stride) for size in (6, 12))
    assert large == Cost(small.params, 4 * small.macs, 4 * small.macs_ptflops)


def test_what_costs_nothing():
    assert operation_cost("none", channels=8, resolution=8, stride=2) == Cost()
    assert operation_cost("skip_connect", channels=8, resolution=8, stride=1) == Cost()
    pool = operation_cost("max_pool_3x3", channels=8, resolution=7, stride=2)
    assert pool == Cost(0, 0, 8 * 7 * 7)  # pools have no multiply-adds but in the ptflops convention


def test_network_is_stem_cells_and_classifier():
    genotype = registry.load("FairDARTS_a")  # cells of different width
    plan = plan_network(**SMALL, multipliers=genotype.multipliers)
    cells = sum((costs.cell_cost(genotype.cell(p.cell_type), p) for p in plan.cells), Cost())
    final, size = plan.final_channels, plan.cells[-1].out_resolution
    stem_weights, stem_elements = 9 * 1 * 12, 12 * 8 * 8
    expected = Cost(
        params=stem_weights + 2 * 12 + cells.params + (final + 1) * 3,
        macs=stem_weights * 8 * 8 + cells.macs + final * 3,
        macs_ptflops=stem_weights * 8 * 8 + 2 * stem_elements + cells.macs_ptflops + final * 3 + final * size**2,
    )
    assert costs.network_cost(genotype, **SMALL) == expected


def test_one_more_normal_cell_costs_that_cell():
    genotype = registry.load("DARTS_V2")
    # 6 and 7 cells both have their reductions at 2 and 4: the seventh is a normal cell at the end, of the same width.
    six, seven = (costs.network_cost(genotype, **{**SMALL, "cells": cells}) for cells in (6, 7))
    last = plan_network(**{**SMALL, "cells": 7}, multipliers=genotype.multipliers).cells[6]
    assert seven == six + costs.cell_cost(genotype.normal, last)


def test_image_channels_and_classes_change_only_stem_and_classifier():
    genotype = registry.load("DARTS_V2")
    gray, colour, more = (costs.network_cost(genotype, **{**SMALL, **c}) for c in ({}, {"image_channels": 3}, {"classes": 4}))
    assert colour.params - gray.params == 9 * 2 * 12
    assert colour.macs - gray.macs == 9 * 2 * 12 * 64
    final = plan_network(**SMALL, multipliers=genotype.multipliers).final_channels
    assert more.params - gray.params == final + 1
    assert more.macs - gray.macs == final


def test_cell_preprocessing_follows_the_plan():
    plan = plan_network("imagenet", channels=8, cells=3, classes=2, resolution=32, multipliers=(1, 1))
    only_input_0, only_input_1 = (cell((2, node, "none"), concat=(2,)) for node in (0, 1))
    first = plan.cells[0]  # its input 0 is stem 0, of twice the resolution
    halved = costs.cell_cost(only_input_0, first)
    assert halved == Cost(8 * 8 + 16, 8 * 8 * 16, 8 * 8 * 16 + 2 * 8 * 16 + 8 * 64)
    assert costs.cell_cost(only_input_1, first) == Cost(8 * 8 + 16, 8 * 8 * 16, 8 * 8 * 16 + 2 * 8 * 16 + 8 * 16)


def test_intermediate_edges_of_a_reduction_cell_run_at_its_output_resolution():
    plan = plan_network(**SMALL, multipliers=(2, 2)).cells[1]
    assert plan.reduction
    base = cell((2, 1, "max_pool_3x3"), concat=(2,))
    more = cell((2, 1, "max_pool_3x3"), (3, 2, "dil_conv_5x5"), concat=(2, 3))
    added = operation_cost("dil_conv_5x5", channels=plan.channels, resolution=plan.out_resolution, stride=1)
    assert costs.cell_cost(more, plan) == costs.cell_cost(base, plan) + added


def test_none_adds_nothing_and_repeated_operations_count_each_time():
    base = cell((2, 0, "sep_conv_3x3"), (2, 1, "skip_connect"), concat=(2,))
    none = cell(*[(e.node, e.predecessor, e.operation) for e in base.edges], (2, 1, "none"), concat=(2,))
    twice = cell(*[(e.node, e.predecessor, e.operation) for e in base.edges], (2, 0, "sep_conv_3x3"), concat=(2,))
    assert costs.network_cost(with_cells(none), **SMALL) == costs.network_cost(with_cells(base), **SMALL)
    plan = plan_network(**SMALL, multipliers=(1, 2)).cells[0]
    sep_conv = operation_cost("sep_conv_3x3", channels=4, resolution=8, stride=1)
    assert costs.cell_cost(twice, plan) == costs.cell_cost(base, plan) + sep_conv


def test_none_reads_its_input():
    # The reference multiplies the input by 0, so that its preprocessing is there (SNAS_aggressive).
    assert costs.used_nodes(cell((2, 0, "skip_connect"), (2, 1, "none"), concat=(2,))) == {0, 1, 2}


def test_a_node_that_no_output_depends_on_is_free():
    base = cell((2, 0, "skip_connect"), (2, 1, "sep_conv_3x3"), concat=(2,))
    dead = cell((2, 0, "skip_connect"), (2, 1, "sep_conv_3x3"), (3, 2, "sep_conv_5x5"), (4, 3, "sep_conv_5x5"), concat=(2,))
    assert costs.used_nodes(dead) == {0, 1, 2}
    assert costs.network_cost(with_cells(dead), **SMALL) == costs.network_cost(with_cells(base), **SMALL)
    through = cell((4, 3, "skip_connect"), (3, 2, "skip_connect"), (2, 0, "skip_connect"), concat=(4,))  # not in order
    assert costs.used_nodes(through) == {0, 2, 3, 4}


def test_preprocessing_of_an_unused_input_and_unread_cells_are_free():
    lonely = cell((2, 0, "sep_conv_3x3"), concat=(2,))
    plan = plan_network(**SMALL, multipliers=(1, 2)).cells[0]
    preprocessing = 12 * 4 * 64 + 2 * 4 * 64 + 12 * 64
    operation = operation_cost("sep_conv_3x3", channels=4, resolution=8, stride=1).macs_ptflops
    assert costs.cell_cost(lonely, plan).macs_ptflops == preprocessing + operation
    # Cells 0 to 6, reductions at 2 and 4: cell 6 reads 4, the reduction cell 4 reads 3 and 2, cell 3 reads 1; cell 5 is not read.
    network = {**SMALL, "cells": 7}
    genotype = with_cells(lonely)
    cells = plan_network(**network, multipliers=genotype.multipliers).cells
    read = sum((costs.cell_cost(genotype.cell(p.cell_type), p) for p in cells if p.index != 5), Cost())
    stem_and_classifier = 9 * 12 * 64 + cells[-1].out_channels * 3
    assert costs.network_cost(genotype, **network).macs == read.macs + stem_and_classifier


def test_imagenet_stem_1_is_free_where_no_cell_reads_it():
    network = {**SMALL, "network": "imagenet", "resolution": 32, "cells": 3}
    # Reductions at 1 and 2. Cell 2 reads cell 0 or 1 by its input.
    older, newer = cell((2, 0, "skip_connect"), concat=(2,)), cell((2, 1, "skip_connect"), concat=(2,))
    plan = plan_network(**network, multipliers=(1, 1))
    stem_0 = 9 * 2 * 256 + 9 * 2 * 4 * 64
    classifier = plan.final_channels * 3
    only_0 = costs.network_cost(Genotype("a", older, older), **network).macs  # cells 2 and 0, stem 0
    expected = [costs.cell_cost(older, plan.cells[index]).macs for index in (0, 2)]
    assert only_0 == stem_0 + sum(expected) + classifier
    all_cells = costs.network_cost(Genotype("b", newer, newer), **network).macs
    stem_1 = 9 * 4 * 4 * 16
    assert all_cells == stem_0 + stem_1 + sum(costs.cell_cost(newer, p).macs for p in plan.cells) + classifier


def test_costs_add():
    assert Cost(1, 2, 3) + Cost(10, 20, 30) == Cost(11, 22, 33)
    with pytest.raises(TypeError):
        Cost() + 1


def test_cost_in_names_its_convention():
    assert costs.cost_in(Cost(1, 2, 3), "macs") == 2
    assert costs.cost_in(Cost(1, 2, 3), "macs_ptflops") == 3
    with pytest.raises(ConfigError, match=r"Did you mean 'macs_ptflops'\?.*Received: 'macs_ptflop'"):
        costs.cost_in(Cost(1, 2, 3), "macs_ptflop")
    with pytest.raises(ConfigError, match="Received: 'params'"):
        costs.cost_in(Cost(1, 2, 3), "params")


@pytest.mark.parametrize(
    "operation, arguments, error",
    [
        ("sep_conv_3x4", {}, GenotypeError),
        ("max_pool_3x3", {"stride": 3}, ConfigError),
        ("max_pool_3x3", {"channels": 0}, ConfigError),
        ("max_pool_3x3", {"resolution": 0}, ConfigError),
    ],
)
def test_operations_that_do_not_exist_are_refused(operation, arguments, error):
    with pytest.raises(error, match="Received: "):
        operation_cost(operation, **{"channels": 4, "resolution": 4, "stride": 1, **arguments})


def test_networks_that_do_not_exist_are_refused():
    for wrong in ({"resolution": 30}, {"channels": 7}, {"network": "mobile"}, {"cells": 2}):
        for function in (costs.network_cost, costs.auxiliary_head_params):
            with pytest.raises(ConfigError, match="Received: "):
                function(registry.load("DARTS_V2"), **{**SMALL, **wrong})


def test_deployed_cost_is_that_of_the_budget_network():
    budget = BudgetConfig()  # the paper's mobile setting
    counts = registry.entry("PDARTS")["counts"]["imagenet"]
    assert costs.deployed_cost(registry.load("PDARTS"), budget).macs == counts["macs"]


@pytest.mark.parametrize("convention", costs.CONVENTIONS)
def test_widest_channels_is_the_last_that_fits(convention):
    genotype = registry.load("PDARTS")
    for macs in (1e5, 3e6, 1e8):
        budget = BudgetConfig(**{**SMALL, "macs": macs, "convention": convention})
        widest = costs.widest_channels(genotype, budget)
        at, above = (
            costs.cost_in(costs.network_cost(genotype, **{**SMALL, "channels": channels}), convention) for channels in (widest, widest + 2)
        )
        assert widest % 2 == 0
        assert at <= macs < above


def test_no_width_fits_a_tiny_budget():
    assert costs.widest_channels(registry.load("PDARTS"), BudgetConfig(**SMALL, macs=10.0)) is None


def test_budget_is_exact_at_its_edge():
    genotype = registry.load("PDARTS")
    cost = costs.network_cost(genotype, **SMALL)
    assert costs.check_budget(genotype, BudgetConfig(**SMALL, macs=float(cost.macs))) == cost
    with pytest.raises(BudgetError):
        costs.check_budget(genotype, BudgetConfig(**SMALL, macs=cost.macs - 1.0))
    with pytest.raises(BudgetError):  # the other convention counts more
        costs.check_budget(genotype, BudgetConfig(**SMALL, macs=float(cost.macs), convention="macs_ptflops"))


def test_budget_error_says_what_would_fit():
    budget = BudgetConfig(macs=500e6, convention="macs_ptflops")
    with pytest.raises(BudgetError) as caught:
        costs.check_budget(registry.load("PDARTS"), budget, "PDARTS")
    message = str(caught.value)
    widest = costs.widest_channels(registry.load("PDARTS"), budget)
    assert caught.value.exit_code == 3
    assert "\n" not in message
    assert message.startswith("PDARTS costs more than the budget allows. Expected at most 500,000,000 macs_ptflops; ")
    assert f"channels={widest} is the widest that would fit" in message
    assert "Received: 557,382,912 macs_ptflops at network=imagenet, channels=48" in message
    with pytest.raises(BudgetError, match="no width would fit"):
        costs.check_budget(registry.load("PDARTS"), BudgetConfig(macs=1.0))


def test_a_latency_over_its_limit_is_refused_and_one_at_the_limit_is_not():
    budget = BudgetConfig(**SMALL, latency_ms=2.5, latency_runtime="keras")
    assert costs.check_latency(2.5, budget) == 2.5
    with pytest.raises(
        BudgetError, match=r"the exported network takes longer.*at most 2\.5 ms.*median in keras.*Received: 2\.501 ms at"
    ) as caught:
        costs.check_latency(2.501, budget, "the exported network")
    assert caught.value.exit_code == 3 and "\n" not in str(caught.value)
    assert costs.check_latency(1e9, BudgetConfig(**SMALL)) == 1e9


def test_pricing_starts_without_tensorflow():
    code = "import sys, sivdnas_tf.profiling.costs, sivdnas_tf.derive, sivdnas_tf.zoo.registry; print('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize("convention", costs.CONVENTIONS)
@pytest.mark.parametrize("network", ["cifar", "imagenet"])
def test_the_expected_cost_of_certain_gates_is_that_of_the_network(network, convention):
    space = get_search_space("darts")
    budget = BudgetConfig(network=network, channels=4, cells=5, classes=3, resolution=32, convention=convention)
    fixed, terms = costs.expected_cost_terms(space, budget)
    assert {cell_type: (len(rows), {len(row) for row in rows}) for cell_type, rows in terms.items()} == {
        "normal": (14, {7}),
        "reduction": (14, {7}),
    }
    rng = np.random.default_rng(0)
    for share in (1.0, 0.5):
        cells, expected = {}, fixed
        for cell_type in ("normal", "reduction"):
            kept = rng.random((14, 7)) < share
            # Every node is used: the concatenation is of all of them.
            edges = [Edge(space.edges[e][1], space.edges[e][0], space.primitives[p]) for e, p in np.argwhere(kept)]
            cells[cell_type] = Cell(tuple(edges), space.nodes)
            expected += int((kept * np.array(terms[cell_type])).sum())
        genotype = Genotype("drawn", cells["normal"], cells["reduction"])
        assert costs.cost_in(costs.deployed_cost(genotype, budget), convention) == expected
