import keras
import numpy as np
import pytest

from sivdnas_tf.errors import ConfigError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.drop_path import DropPath
from sivdnas_tf.layers.operations import is_identity
from sivdnas_tf.models.evaluation_network import DROP_PATH_SCHEDULE, evaluation_network
from sivdnas_tf.profiling.costs import auxiliary_head_params, network_cost
from sivdnas_tf.search_space import plan_network
from sivdnas_tf.zoo import registry

PUBLISHED = {
    "cifar": {"network": "cifar", "channels": 36, "cells": 20, "classes": 10, "resolution": 32},
    "imagenet": {"network": "imagenet", "channels": 48, "cells": 14, "classes": 1000, "resolution": 224},
}
SMALL = {
    "cifar": {"network": "cifar", "channels": 4, "cells": 5, "classes": 3, "resolution": 8, "image_channels": 1},
    "imagenet": {"network": "imagenet", "channels": 4, "cells": 3, "classes": 3, "resolution": 64, "image_channels": 3},
}


def cell(*edges, concat):
    return Cell(tuple(Edge(*edge) for edge in edges), concat)


# Two operations on an edge, an operation twice on an edge, `none`, a concatenation out of order, another number of nodes in each cell.
VARIABLE = Genotype(
    "variable",
    normal=cell(
        (2, 0, "skip_connect"),
        (2, 0, "max_pool_3x3"),
        (2, 1, "sep_conv_3x3"),
        (3, 2, "dil_conv_3x3"),
        (3, 0, "none"),
        (4, 3, "sep_conv_3x3"),
        (4, 3, "sep_conv_3x3"),
        concat=(4, 2),
    ),
    reduction=cell((2, 0, "skip_connect"), (2, 1, "avg_pool_3x3"), (3, 2, "skip_connect"), (3, 1, "conv_7x1_1x7"), concat=(3,)),
)
# Node 4 of the normal cell and input 0 of the reduction cell reach no output.
DEAD_ENDS = Genotype(
    "dead ends",
    normal=cell((2, 0, "sep_conv_3x3"), (2, 1, "skip_connect"), (3, 2, "dil_conv_5x5"), (4, 0, "sep_conv_5x5"), concat=(2, 3)),
    reduction=cell((2, 1, "sep_conv_3x3"), (3, 0, "sep_conv_5x5"), concat=(2,)),
)


def build(genotype, arguments, **kwargs):
    plan = plan_network(**arguments, multipliers=genotype.multipliers)
    return evaluation_network(genotype, plan, **kwargs), plan


def images(plan, batch=4):
    return np.random.default_rng(0).normal(size=(batch, plan.resolution, plan.resolution, plan.image_channels)).astype(np.float32)


def randomise(model):
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if "kernel" not in variable.path:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    for layer_variable in model.non_trainable_variables:
        if "moving" in layer_variable.path:
            layer_variable.assign(generator.uniform(0.5, 1.5, layer_variable.shape))


def params(layer):
    return sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)


# Size.


BUILT = [("DARTS_V2", "cifar"), ("DCO_EDGE_BS_64", "cifar"), ("DARTS_V2", "imagenet")]


@pytest.fixture(scope="module")
def published():
    """Published networks at full size with auxiliary head, by name and network; built once."""
    return {(name, network): build(registry.load(name), PUBLISHED[network], auxiliary=True) for name, network in BUILT}


def assert_counted(model, name, network):
    counts, auxiliary = registry.entry(name)["counts"][network], params(model.get_layer("auxiliary"))
    assert auxiliary == auxiliary_head_params(registry.load(name), **PUBLISHED[network])
    assert auxiliary == counts.get("params_aux_head", auxiliary)
    assert params(model) - auxiliary == counts["params"] == network_cost(registry.load(name), **PUBLISHED[network]).params


@pytest.mark.parametrize(("name", "network"), BUILT)
def test_published_networks_have_exactly_the_counted_parameters(name, network, published):
    assert_counted(published[name, network][0], name, network)


@pytest.mark.slow
@pytest.mark.parametrize("network", PUBLISHED)
@pytest.mark.parametrize("name", registry.names())
def test_every_network_of_the_zoo_has_exactly_the_counted_parameters(name, network):
    assert_counted(build(registry.load(name), PUBLISHED[network], auxiliary=True)[0], name, network)


def test_one_published_network_has_several_operations_on_an_edge():
    edges = registry.load("DCO_EDGE_BS_64").reduction.edges
    assert len({(edge.node, edge.predecessor) for edge in edges}) < len(edges)


@pytest.mark.parametrize("network", SMALL)
@pytest.mark.parametrize("genotype", [VARIABLE, DEAD_ENDS], ids=lambda genotype: genotype.name)
def test_small_networks_have_exactly_the_counted_parameters(genotype, network):
    model, _ = build(genotype, SMALL[network], auxiliary=True)
    auxiliary = params(model.get_layer("auxiliary"))
    assert auxiliary == auxiliary_head_params(genotype, **SMALL[network])
    assert params(model) - auxiliary == network_cost(genotype, **SMALL[network]).params


def test_endpoints_of_the_cifar_network(published):
    model, plan = published["DARTS_V2", "cifar"]
    endpoints = [model.get_layer(f"cell{index + 1}_preprocess1").input.shape for index in range(19)] + [
        model.get_layer("classifier").input.shape
    ]
    assert endpoints == [(None, 32, 32, 144)] * 6 + [(None, 16, 16, 288)] * 7 + [(None, 8, 8, 576)] * 7
    assert [endpoint[1:] for endpoint in endpoints] == [(each.out_resolution,) * 2 + (each.out_channels,) for each in plan.cells]
    assert model.get_layer("stem").output.shape == (None, 32, 32, 108)
    assert model.get_layer("auxiliary").input is model.get_layer("cell14_preprocess1").input
    assert [output.shape for output in model.outputs] == [(None, 10)] * 2
    # The cell after a reduction halves its input 0, and no other does.
    halving = [index for index in range(20) if isinstance(model.get_layer(f"cell{index}_preprocess0"), blocks.FactorizedReduce)]
    assert halving == [7, 14]


def test_endpoints_of_the_imagenet_network(published):
    model, plan = published["DARTS_V2", "imagenet"]
    assert model.get_layer("stem_0").output.shape == (None, 56, 56, 48)
    assert model.get_layer("stem_1").output.shape == (None, 28, 28, 48)
    assert model.get_layer("stem_1").input is model.get_layer("stem_0").output
    assert model.get_layer("cell0_preprocess0").input is model.get_layer("stem_0").output
    assert model.get_layer("cell0_preprocess1").input is model.get_layer("stem_1").output
    endpoints = [model.get_layer(f"cell{index + 1}_preprocess1").input.shape for index in range(13)] + [
        model.get_layer("classifier").input.shape
    ]
    assert endpoints == [(None, 28, 28, 192)] * 4 + [(None, 14, 14, 384)] * 5 + [(None, 7, 7, 768)] * 5
    assert [endpoint[1:] for endpoint in endpoints] == [(each.out_resolution,) * 2 + (each.out_channels,) for each in plan.cells]
    # 7x7, whatever the reference's docstring says (EVALUATION_NETWORK.md).
    assert model.get_layer("auxiliary").input is model.get_layer("cell10_preprocess1").input
    assert [output.shape for output in model.outputs] == [(None, 1000)] * 2
    # Cell 0 too: stem 0 has twice the resolution of stem 1.
    halving = [index for index in range(14) if isinstance(model.get_layer(f"cell{index}_preprocess0"), blocks.FactorizedReduce)]
    assert halving == [0, 5, 10]


@pytest.mark.parametrize(
    ("resolution", "channels", "cells", "classes"), [(64, 2, 3, 2), (96, 6, 4, 7), (160, 2, 6, 3), (224, 4, 3, 11), (320, 2, 3, 5)]
)
def test_the_imagenet_network_runs_at_any_multiple_of_32(resolution, channels, cells, classes):
    size = {"network": "imagenet", "channels": channels, "cells": cells, "classes": classes, "resolution": resolution}
    model, plan = build(DEAD_ENDS, size, auxiliary=True)
    assert [each.out_resolution for each in plan.cells][-1] == resolution // 32
    for training in (False, True):
        for logits in model(images(plan, batch=2), training=training):
            assert logits.shape == (2, classes) and np.all(np.isfinite(logits))
    auxiliary = params(model.get_layer("auxiliary"))
    assert auxiliary == auxiliary_head_params(DEAD_ENDS, **size)
    assert params(model) - auxiliary == network_cost(DEAD_ENDS, **size).params


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        *(({"resolution": value}, f"multiple of 32.*Received: resolution={value}") for value in (0, 16, 100, 225)),
        ({"channels": 5}, "Received: channels=5"),
        ({"cells": 2}, "at least 3 cells.*Received: cells=2"),
        ({"classes": 1}, "at least 2 classes.*Received: classes=1"),
        ({"resolution": 32}, "an auxiliary head needs at least 2x2 pixels.*Received: 1x1"),
    ],
)
def test_imagenet_networks_that_cannot_be_built_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        build(DEAD_ENDS, {**SMALL["imagenet"], **wrong}, auxiliary=True)


# Wiring: the network recomputed, layer by layer, from the genotype.


def recompute(model, genotype, plan, x, training):
    layers = {layer.name: layer for layer in model.layers}
    schedule = layers[DROP_PATH_SCHEDULE](x) if DROP_PATH_SCHEDULE in layers else None

    def operation(index, node, number, edge, states):
        name = f"cell{index}_node{node}_{number}_from{edge.predecessor}_{edge.operation}"
        output = layers[name](states[edge.predecessor], training=training)
        path = layers.get(f"{name}_drop_path")
        return np.asarray(output if path is None else path(output, *schedule, training=training))

    if plan.network == "cifar":
        previous = [np.asarray(layers["stem"](x, training=training))] * 2
    else:
        previous = [layers["stem_0"](x, training=training)]
        previous.append(layers["stem_1"](previous[0], training=training))
    auxiliary = None
    for each in plan.cells:
        states = {position: layers[f"cell{each.index}_preprocess{position}"](previous[position], training=training) for position in (0, 1)}
        found = genotype.cell(each.cell_type)
        for node in sorted({edge.node for edge in found.edges}):
            edges = [edge for edge in found.edges if edge.node == node]
            states[node] = sum(operation(each.index, node, number, edge, states) for number, edge in enumerate(edges))
        previous = [previous[1], np.concatenate([states[node] for node in found.concat], axis=-1)]
        if "auxiliary" in layers and each.index == 2 * len(plan.cells) // 3:
            auxiliary = layers["auxiliary"](previous[1], training=training)
    logits = layers["classifier"](previous[1], training=training)
    return [logits] if auxiliary is None else [logits, auxiliary]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("network", SMALL)
def test_the_network_is_wired_as_the_genotype_says(network, training):
    model, plan = build(VARIABLE, SMALL[network], auxiliary=True, drop_path=True)
    randomise(model)
    model.get_layer(DROP_PATH_SCHEDULE).rate.assign(0.3)
    x = images(plan)
    expected = recompute(model, VARIABLE, plan, x, training)
    for output, value in zip(model(x, training=training), expected, strict=True):
        np.testing.assert_allclose(output, value, rtol=1e-4, atol=1e-4)


# Forms of one network.


@pytest.fixture(scope="module")
def plain():
    return build(VARIABLE, SMALL["cifar"])


@pytest.fixture(scope="module")
def training_form():
    return build(VARIABLE, SMALL["cifar"], auxiliary=True, drop_path=True, synchronized=True)[0]


def operation_names(plan):
    for each in plan.cells:
        found = VARIABLE.cell(each.cell_type)
        for node in found.nodes:
            for number, edge in enumerate(found.edges_into(node)):
                name = f"cell{each.index}_node{node}_{number}_from{edge.predecessor}_{edge.operation}"
                yield name, is_identity(edge.operation, each.stride(edge.predecessor))


def test_names_are_the_same_in_every_form(plain, training_form):
    plain, plan = plain
    names = {layer.name for layer in plain.layers}
    more = {layer.name for layer in training_form.layers} - names
    paths = {f"{name}_drop_path" for name, identity in operation_names(plan) if not identity}
    assert more == paths | {"auxiliary", DROP_PATH_SCHEDULE}
    assert names <= {layer.name for layer in training_form.layers}
    shapes = {variable.path: variable.shape for variable in training_form.variables}
    assert len(shapes) == len(training_form.variables)
    assert all(shapes[variable.path] == variable.shape for variable in plain.variables)


def test_drop_path_spares_identities_only_and_drops_paths_independently(plain, training_form):
    _, plan = plain
    identities = [name for name, identity in operation_names(plan) if identity]
    assert any("skip_connect" in name for name in identities)
    assert not any(f"{name}_drop_path" in {layer.name for layer in training_form.layers} for name in identities)
    strided = [name for name, identity in operation_names(plan) if "skip_connect" in name and not identity]
    assert strided and all(training_form.get_layer(f"{name}_drop_path") for name in strided)
    indices = [layer.index for layer in training_form.layers if isinstance(layer, DropPath)]
    assert sorted(indices) == list(range(len(indices)))


def test_drop_path_at_rate_zero_changes_nothing_and_its_seed_decides_the_masks(plain):
    plain, plan = plain
    dropping = [build(VARIABLE, SMALL["cifar"], drop_path=True, seed=seed)[0] for seed in (0, 0, 1)]
    for model in dropping:
        values = {variable.path: variable for variable in plain.variables}
        for variable in model.variables:
            if variable.path in values:
                variable.assign(values[variable.path])
    x = images(plan)
    np.testing.assert_allclose(dropping[0](x, training=True), plain(x, training=True), rtol=1e-5, atol=1e-5)
    for model in dropping:
        model.get_layer(DROP_PATH_SCHEDULE).rate.assign(0.5)
    outputs = [model(x, training=True).numpy() for model in dropping]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize(("synchronized", "expected"), [(False, "batch"), (True, "synchronized_batch")])
def test_every_batch_norm_is_of_the_kind_asked_for(synchronized, expected):
    model, _ = build(VARIABLE, SMALL["cifar"], auxiliary=True, synchronized=synchronized)
    kinds = {layer.name: layer.get_config()["normalization"] for layer in model.layers if "normalization" in layer.get_config()}
    pools = {name for name in kinds if "_pool_" in name}
    assert pools and {kinds[name] for name in pools} == {None}
    assert kinds.pop("classifier") is None  # but in NAS-Bench-201's network
    assert {kinds[name] for name in kinds.keys() - pools} == {expected}


def test_pools_are_normalised_on_request(plain):
    plain, _ = plain
    model, _ = build(VARIABLE, SMALL["cifar"], pool_normalization="batch")
    pools = [layer for layer in model.layers if isinstance(layer, blocks.Pool)]
    assert pools and all(params(layer) > 0 for layer in pools)
    assert params(model) == params(plain) + sum(params(layer) for layer in pools)


def test_a_clone_has_the_same_names_and_function(training_form, plain):
    _, plan = plain
    x = images(plan)
    randomise(training_form)
    clone = keras.models.clone_model(training_form)
    assert [variable.path for variable in clone.variables] == [variable.path for variable in training_form.variables]
    clone.set_weights(training_form.get_weights())
    for output, expected in zip(clone(x), training_form(x), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5)


def test_a_saved_model_is_the_same_model_drop_path_included(training_form, plain, tmp_path):
    _, plan = plain
    x, schedule = images(plan), training_form.get_layer(DROP_PATH_SCHEDULE)
    schedule.rate.assign(0.5)
    schedule.step.assign(7)
    training_form.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in training_form.layers]
    for training in (False, True):
        for output, expected in zip(loaded(x, training=training), training_form(x, training=training), strict=True):
            np.testing.assert_allclose(output, expected, rtol=1e-5)


def test_an_auxiliary_head_on_a_single_pixel_is_refused():
    with pytest.raises(ConfigError, match="Received: 1x1"):
        build(VARIABLE, {**SMALL["cifar"], "resolution": 4}, auxiliary=True)
    assert build(VARIABLE, {**SMALL["cifar"], "resolution": 4})[0].output_shape == (None, 3)
