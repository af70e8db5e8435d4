import itertools

import pytest

from sivdnas_tf.errors import ConfigError
from sivdnas_tf.search_space import (
    DARTS_PRIMITIVES,
    EVALUATION_OPERATIONS,
    SEARCH_SPACES,
    SearchSpace,
    get_search_space,
    plan_network,
)

CIFAR = {"network": "cifar", "channels": 36, "cells": 20, "classes": 10, "resolution": 32}
IMAGENET = {"network": "imagenet", "channels": 48, "cells": 14, "classes": 1000, "resolution": 224}


def test_edges_are_node_major():
    space = get_search_space("darts")
    assert space.nodes == (2, 3, 4, 5)
    assert space.edges == tuple((i, j) for j in (2, 3, 4, 5) for i in range(j))
    assert len(space.edges) == 14
    assert space.edge_names[:6] == ("0->2", "1->2", "0->3", "1->3", "2->3", "0->4")
    assert [space.edges_into(node) for node in space.nodes] == [(0, 1), (2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12, 13)]
    assert space.edges_into(0) == ()


def test_edges_of_another_number_of_nodes():
    space = SearchSpace("two", ("skip_connect",), n_nodes=2)
    assert space.edges == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))


def test_primitives():
    assert SEARCH_SPACES["darts"].primitives == DARTS_PRIMITIVES
    assert len(DARTS_PRIMITIVES) == 7 and "none" not in DARTS_PRIMITIVES
    assert set(DARTS_PRIMITIVES) < set(EVALUATION_OPERATIONS)
    assert len(set(EVALUATION_OPERATIONS)) == len(EVALUATION_OPERATIONS)


def test_an_unknown_space_names_the_nearest():
    with pytest.raises(ConfigError, match=r"Did you mean 'darts'\?.*Received: 'dart'"):
        get_search_space("dart")


@pytest.mark.parametrize(
    "cells, reductions, auxiliary", [(20, (6, 13), 13), (14, (4, 9), 9), (8, (2, 5), 5), (7, (2, 4), 4), (4, (1, 2), 2), (3, (1, 2), 2)]
)
def test_reductions_stand_at_one_and_two_thirds(cells, reductions, auxiliary):
    plan = plan_network(**{**CIFAR, "cells": cells})
    assert tuple(cell.index for cell in plan.cells if cell.reduction) == reductions
    assert plan.auxiliary_cell == auxiliary
    assert [cell.index for cell in plan.cells] == list(range(cells))
    assert [cell.cell_type == "reduction" for cell in plan.cells] == [cell.reduction for cell in plan.cells]


def test_widths_and_resolutions_of_the_cifar_network():
    plan = plan_network(**CIFAR)
    assert plan.stem_channels == (108, 108)
    assert [cell.channels for cell in plan.cells] == [36] * 6 + [72] * 7 + [144] * 7
    assert [cell.out_resolution for cell in plan.cells] == [32] * 6 + [16] * 7 + [8] * 7
    assert [cell.in_resolution for cell in plan.cells] == [32] * 7 + [16] * 7 + [8] * 6
    assert [cell.index for cell in plan.cells if cell.reduction_prev] == [7, 14]
    assert plan.final_channels == 576
    assert plan.cells[0].in_channels == (108, 108)
    assert plan.cells[1].in_channels == (108, 144)
    assert plan.cells[7].in_channels == (144, 288)  # after the reduction at 6


def test_widths_and_resolutions_of_the_imagenet_network():
    plan = plan_network(**IMAGENET)
    assert plan.stem_channels == (48, 48)
    assert [cell.channels for cell in plan.cells] == [48] * 4 + [96] * 5 + [192] * 5
    assert [cell.out_resolution for cell in plan.cells] == [28] * 4 + [14] * 5 + [7] * 5
    assert [cell.index for cell in plan.cells if cell.reduction_prev] == [0, 5, 10]
    assert plan.final_channels == 768
    assert plan.auxiliary_cell == 9 and plan.cells[9].out_channels == 768


def test_small_networks():
    digits = plan_network("cifar", channels=8, cells=5, classes=10, resolution=8, image_channels=1)
    assert [cell.out_resolution for cell in digits.cells] == [8, 4, 4, 2, 2]
    assert digits.image_channels == 1
    mobile = plan_network("imagenet", channels=2, cells=3, classes=2, resolution=32)
    assert [cell.out_resolution for cell in mobile.cells] == [4, 2, 1]


@pytest.mark.parametrize("arguments", [CIFAR, IMAGENET])
def test_multipliers_may_differ_between_cell_types(arguments):
    plan = plan_network(**arguments, multipliers=(3, 4))
    for cell in plan.cells:
        assert cell.out_channels == (4 if cell.reduction else 3) * cell.channels


@pytest.mark.parametrize("arguments, cells, multipliers", list(itertools.product([CIFAR, IMAGENET], [3, 5, 8, 14, 20], [(4, 4), (1, 5)])))
def test_a_plan_fits_together(arguments, cells, multipliers):
    plan = plan_network(**{**arguments, "cells": cells}, multipliers=multipliers)
    outputs = [*plan.stem_channels, *(cell.out_channels for cell in plan.cells)]
    first = plan.cells[0].in_resolution
    resolutions = [first * 2 if plan.network == "imagenet" else first, first, *(cell.out_resolution for cell in plan.cells)]
    for cell in plan.cells:
        assert cell.in_channels == tuple(outputs[cell.index : cell.index + 2])
        older, newer = resolutions[cell.index : cell.index + 2]
        assert newer == cell.in_resolution
        assert older == (2 * newer if cell.reduction_prev else newer)
        assert cell.in_resolution == (2 * cell.out_resolution if cell.reduction else cell.out_resolution)
    assert plan.final_channels == outputs[-1]
    assert plan.cells[plan.auxiliary_cell].reduction


def test_strides():
    plan = plan_network(**CIFAR)
    assert [plan.cells[6].stride(predecessor) for predecessor in range(5)] == [2, 2, 1, 1, 1]
    assert [plan.cells[5].stride(predecessor) for predecessor in range(5)] == [1] * 5


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"network": "imagenets"}, r"Did you mean 'imagenet'\?.*Received: 'imagenets'"),
        ({"channels": 35}, "channels must be even and positive .*Received: channels=35"),
        ({"channels": 0}, "Received: channels=0"),
        ({"channels": -2}, "Received: channels=-2"),
        ({"cells": 2}, "at least 3 cells.*Received: cells=2"),
        ({"classes": 1}, "at least 2 classes.*Received: classes=1"),
        ({"image_channels": 0}, "Received: image_channels=0"),
        ({"resolution": 30}, "multiple of 4.*Received: resolution=30"),
        ({"resolution": 0}, "Received: resolution=0"),
        ({"resolution": -4}, "Received: resolution=-4"),
        ({"network": "imagenet", "resolution": 48}, "multiple of 32.*Received: resolution=48"),
    ],
)
def test_networks_that_do_not_exist(wrong, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan_network(**{**CIFAR, **wrong})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
