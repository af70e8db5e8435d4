"""The supernet of NAS-Bench-201's space, its evaluation network, and options of the search that the paper does not have."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, TINY, compiled, values

from sivdnas_tf.genotype import Genotype
from sivdnas_tf.layers.semi_implicit_dropout import SemiImplicitDropout
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.models.supernet import CellDraw, Supernet
from sivdnas_tf.profiling import costs
from sivdnas_tf.profiling.tf_profiler import model_cost
from sivdnas_tf.search_space import get_search_space, plan_network
from sivdnas_tf.training.score import genotype_draw
from sivdnas_tf.variational.distributions import Draw

SPACE = get_search_space("nasbench201")
SIZE = {"network": "nasbench201", "channels": 4, "cells": 6, "classes": 3, "resolution": 8, "image_channels": 1}
PLAN = plan_network(**SIZE)
IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)
STRINGS = (
    "|nor_conv_3x3~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_3x3~2|",
    "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|",
)


@pytest.fixture(scope="module")
def supernet():
    keras.utils.set_random_seed(0)
    network = Supernet(SPACE, PLAN)
    generator = np.random.default_rng(4)
    for variable in network.weight_variables:
        if len(variable.shape) == 1:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))
    for layer in (network.operation_dropout["normal"], network.edge_dropout["normal"]):
        layer.log_dropout_rate.assign(np.full(layer.shape, -20.0))
    return network


def copy_weights(supernet, model, genotype):
    blocks = {"stem": supernet.stem.get_layer("stem"), "classifier": supernet.classifier}
    blocks |= {block.name: block for block in supernet.reductions}
    sources = {name: {long_tail(variable): variable for variable in layer.trainable_variables} for name, layer in blocks.items()}
    for plan, cell in zip(PLAN.cells, supernet.cells, strict=True):
        weights = cell.edge_weights()
        for node in genotype.normal.nodes:
            for number, edge in enumerate(genotype.normal.edges_into(node)):
                if edge.operation != "none":
                    index, primitive = SPACE.edges.index((edge.predecessor, node)), SPACE.primitives.index(edge.operation)
                    templates = cell._mixed[edge.predecessor].templates[primitive].trainable_variables
                    own = dict(zip(map(long_tail, templates), weights[index][primitive], strict=True))
                    sources[f"cell{plan.index}_node{node}_{number}_from{edge.predecessor}_{edge.operation}"] = own
    for layer in model.layers:
        for variable in layer.trainable_variables:
            if layer.name in blocks or "norm" not in variable.path:  # an operation's batch-norm has no parameters in a search
                variable.assign(sources[layer.name][long_tail(variable)])


def long_tail(variable):
    """`first/conv/kernel` of a block within a block, `conv/kernel` elsewhere."""
    parts = variable.path.replace("scale", "gamma").replace("offset", "beta").split("/")
    return "/".join(parts[-3:]) if parts[-3:-2] and parts[-3] in ("first", "second") else "/".join(parts[-2:])


@pytest.mark.parametrize("text", STRINGS)
def test_the_supernet_equals_the_evaluation_network(text, supernet):
    genotype = Genotype.from_architecture_string(text)
    draw = genotype_draw(genotype, SPACE)
    noiseless = {kind: CellDraw(*(Draw(tf.constant(level.gate), tf.constant(level.noise)) for level in draw[kind])) for kind in draw}
    model = evaluation_network(genotype, PLAN, pool_normalization="batch")
    searched, unrelated = supernet(IMAGES, draw=noiseless).numpy(), model(IMAGES, training=True).numpy()
    copy_weights(supernet, model, genotype)
    assert np.ptp(searched, axis=0).min() > 0.01
    assert np.abs(searched - unrelated).max() > 0.01
    np.testing.assert_allclose(model(IMAGES, training=True), searched, atol=1e-5 * np.abs(searched).max())


@pytest.mark.parametrize("text", STRINGS)
def test_the_model_has_what_costs_count(text):
    genotype = Genotype.from_architecture_string(text)
    model, cost = evaluation_network(genotype, PLAN, drop_path=True), costs.network_cost(genotype, **SIZE)
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == cost.params
    assert model_cost(evaluation_network(genotype, PLAN)).macs == cost.macs


def test_a_step_updates_one_cell_types_parameters_and_recomputes_alike():
    batch = (IMAGES[:BATCH], np.arange(BATCH) % 3)
    losses = []
    for recompute in (False, True):
        keras.utils.set_random_seed(1)
        network = compiled(Supernet(SPACE, PLAN, recompute=recompute, initial_log_dropout_rate=-1.0))
        before = values(network.architecture_variables)
        losses.append(network.bilevel_step((batch, batch))["loss"].numpy())
        assert len(before) == 4  # w, phi, log delta, log sigma of the one cell type
        assert all(not np.array_equal(old, new) for old, new in zip(before, values(network.architecture_variables), strict=True))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_skips_are_normalised_where_asked():
    keras.utils.set_random_seed(2)
    plan = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
    network = Supernet(TINY, plan, normalize_skips=True)
    cell = network.cells[0]
    mixed = cell._mixed[0]
    image = np.random.default_rng(3).normal(5.0, 2.0, (4, 8, 8, 4)).astype(np.float32)
    begun = mixed.beginnings(image, tf.constant([False, True, False]))
    np.testing.assert_allclose(begun["skip"].numpy().mean(axis=(0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(begun["skip"].numpy().std(axis=(0, 1, 2)), 1.0, atol=1e-3)
    assert not mixed.beginnings(image, tf.constant([True, False, True]))["skip"].numpy().any()
    sums = {"image": tf.zeros_like(image), "phases": tf.zeros([16, 4, 4, 4])}
    added, _ = mixed.add(sums, begun, tf.constant([0.0, 2.0, 0.0]), tf.constant([False, True, False]), cell.edge_weights()[0])
    np.testing.assert_allclose(added["image"], 2 * begun["skip"], rtol=1e-5)


@pytest.mark.parametrize(("shape", "groups"), [((3, 4), None), ((5,), (2, 2, 3, 3, 3))])
def test_a_centred_divergence_moves_rates_against_each_other_only(shape, groups):
    layer = SemiImplicitDropout(shape, groups=groups, mixing="identity")
    layer.log_dropout_rate.assign(np.random.default_rng(0).normal(-1.0, 1.0, shape))
    draw = Draw(tf.ones(shape), tf.zeros(shape))
    gradients, divergences = {}, {}
    for centered in (False, True):
        with tf.GradientTape() as tape:
            divergences[centered] = layer.kl_divergence(draw, 0.5, centered)
        gradients[centered] = tape.gradient(divergences[centered], layer.log_dropout_rate.value).numpy()
    np.testing.assert_allclose(divergences[True], divergences[False], rtol=1e-6)
    segments = [slice(None)] if groups is None else [[0, 1], [2, 3, 4]]
    for segment in segments:
        plain = gradients[False][segment]
        expected = plain - plain.mean(axis=-1, keepdims=True)
        np.testing.assert_allclose(gradients[True][segment], expected, atol=1e-6)
        assert np.abs(expected).max() > 1e-3


_COMPILED = ("dropout_rate_optimizer", "kl_centered", "kl_until_budget", "cost_terms")


def searched(**options):
    keras.utils.set_random_seed(5)
    compile_options = {key: options.pop(key) for key in _COMPILED if key in options}
    plan = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
    network = Supernet(TINY, plan, initial_log_dropout_rate=-1.0, **options)
    network.compile(keras.optimizers.SGD(0.1), keras.optimizers.Adam(0.01), kl_weight=0.05, **compile_options)
    batch = (IMAGES[:BATCH], np.arange(BATCH) % 3)
    return network, (batch, batch)


def test_dropout_rates_can_have_an_optimizer_of_their_own():
    together, data = searched()
    apart, _ = searched(dropout_rate_optimizer=keras.optimizers.Adam(0.03))
    moved = []
    for network in (together, apart):
        before = values(network.architecture_variables)
        network.architecture_step(data)
        moved.append([new - old for old, new in zip(before, values(network.architecture_variables), strict=True)])
    weights = len(together.mixing_variables)
    for kind, factor in ((slice(weights), 1.0), (slice(weights, None), 3.0)):
        for one, other in zip(moved[0][kind], moved[1][kind], strict=True):
            np.testing.assert_allclose(other, factor * one, rtol=1e-3, atol=1e-6)
    assert np.abs(moved[0][weights]).max() > 0.005


def test_noise_can_be_left_to_the_architectures_update():
    both, data = searched()
    alone, _ = searched(noise_in="architecture")
    draw = both.draw(both.weight_optimizer.iterations)
    quiet = {kind: CellDraw(*(level._replace(noise=tf.zeros_like(level.noise)) for level in levels)) for kind, levels in draw.items()}
    expected, _ = alone._training_loss(quiet, *data[0])
    assert float(both.architecture_step(data)["architecture_loss"]) == pytest.approx(
        float(alone.architecture_step(data)["architecture_loss"])
    )
    alone, _ = searched(noise_in="architecture")
    losses = [float(network.weight_step(data)["loss"]) for network in (searched()[0], alone)]
    assert losses[1] == pytest.approx(float(expected), rel=1e-5)
    assert abs(losses[0] - losses[1]) > 1e-3


def test_the_divergences_weight_can_be_ramped():
    network, data = searched()
    full = float(network.architecture_step(data)["architecture_loss"])
    network, _ = searched()
    network.kl_scale.assign(0.0)
    logs = network.architecture_step(data)
    assert full - float(logs["architecture_loss"]) == pytest.approx(0.05 * float(logs["kl"]), rel=1e-3)


def test_the_divergence_weighs_nothing_within_the_budget():
    nothing = {cell_type: np.zeros((len(TINY.edges), len(TINY.primitives))) for cell_type in TINY.cell_types}
    plain, data = searched()
    full = float(plain.architecture_step(data)["architecture_loss"])
    for cost, weighs in ((1.01, True), (1.0, False)):
        network, _ = searched(kl_until_budget=True, cost_terms=(cost, nothing))
        unpruned, _ = searched()
        unpruned.kl_scale.assign(0.0)
        logs = network.architecture_step(data)
        unpruned.architecture_step(data)
        assert full - float(logs["architecture_loss"]) == pytest.approx(0.0 if weighs else 0.05 * float(logs["kl"]), rel=1e-3, abs=1e-6)
        for value, expected in zip(
            values(network.architecture_variables), values((plain if weighs else unpruned).architecture_variables), strict=True
        ):
            np.testing.assert_allclose(value, expected, atol=1e-6)
