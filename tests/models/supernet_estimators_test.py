"""Gradients through the gates, and the shape of the Gaussian noise: options of the supernet's architecture step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, TINY, assert_same, reset, values

from sivdnas_tf.errors import ConfigError
from sivdnas_tf.models.supernet import Supernet
from sivdnas_tf.search_space import CELL_TYPES, plan_network
from sivdnas_tf.training import objective

PLAN = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
GENERATOR = np.random.default_rng(0)
KL_WEIGHT = 0.1


def batch():
    return GENERATOR.normal(size=(BATCH, 8, 8, 1)).astype(np.float32), GENERATOR.integers(0, 3, BATCH).astype(np.int32)


WEIGHT_BATCH, ARCHITECTURE_BATCH = batch(), batch()
DATA = (WEIGHT_BATCH, ARCHITECTURE_BATCH)


def supernet(**kwargs):
    """The same weights for every choice of options."""
    keras.utils.set_random_seed(0)
    network = Supernet(TINY, PLAN, mixing="average", initial_log_dropout_rate=0.0, **kwargs)
    network.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(1.0), kl_weight=KL_WEIGHT)
    return network


@pytest.fixture(scope="module")
def plain():
    network = supernet()
    return network, values(network.variables)


def rate_gradients(network):
    """The gradient of the architecture's step to the dropout rates, in the order of `dropout_rate_variables`; the step's logs."""
    before = values(network.dropout_rate_variables)
    logs = network.bilevel_step(DATA)
    return [old - new for old, new in zip(before, values(network.dropout_rate_variables), strict=True)], logs


# Gates.


@pytest.mark.slow
def test_straight_through_adds_the_gates_part_and_changes_no_value(plain):
    network = reset(*plain)
    without, logs = rate_gradients(network)
    initial = plain[1]
    reset(*plain)
    through, through_logs = rate_gradients(supernet(gate_gradient="straight_through"))
    for name in ("architecture_loss", "kl"):
        assert float(through_logs[name]) == pytest.approx(float(logs[name]), rel=1e-4)
    # The part of the gates: d loss / d gate * d probability / d rate, where -1/4 is the latter at rate 1. By differentiating in the gates.
    draw = network.draw(0)
    reset(network, initial)
    gates = [part.gate for cell_type in CELL_TYPES for part in draw[cell_type]]
    with tf.GradientTape() as tape:
        tape.watch(gates)
        given = iter(gates)
        own = {cell_type: type(draw[cell_type])(*(part._replace(gate=next(given)) for part in draw[cell_type])) for cell_type in CELL_TYPES}
        images, labels = ARCHITECTURE_BATCH
        logits = network(images, draw=own, compute_all=True)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits) + KL_WEIGHT * network.kl_divergence(own)
    for before, after, slope in zip(without, through, tape.gradient(loss, gates), strict=True):
        np.testing.assert_allclose(after - before, -0.25 * slope, rtol=2e-3, atol=1e-5)
        assert np.abs(slope).max() > 1e-3


def test_a_gradient_through_the_gates_computes_closed_operations_in_the_architectures_step_only():
    network = supernet(gate_gradient="straight_through")
    closed = {cell_type: np.asarray(network.draw(0)[cell_type].operations.gate) == 0 for cell_type in CELL_TYPES}
    assert all(gates.any() for gates in closed.values())
    gradients, _ = rate_gradients(network)
    for cell_type, index in (("normal", 0), ("reduction", 2)):  # rates of operations, before those of edges
        assert np.abs(gradients[index][closed[cell_type]]).min() > 0.0


def test_relaxed_gates_pass_gradient_to_every_rate_and_weights_see_the_rounded_ones():
    network = supernet(gate_gradient="relaxed", gate_temperature=1.0)
    draw = network.draw(0)
    soft = network.differentiable(draw, 0)
    for cell_type in CELL_TYPES:
        np.testing.assert_array_equal(tf.round(soft[cell_type].operations.gate), draw[cell_type].operations.gate)
    expected = float(network.kl_divergence(soft))
    gradients, logs = rate_gradients(network)
    assert all((gradient != 0.0).all() for gradient in gradients)
    assert float(logs["kl"]) == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(float(supernet().kl_divergence(draw)), rel=1e-2)


# Noise.


def test_noise_of_cells_differs_between_cells_and_the_gates_do_not():
    network = supernet(noise_shape="cell")
    draw, plain_draw = network.draw(3), supernet().draw(3)
    counts = {cell_type: sum(plan.cell_type == cell_type for plan in PLAN.cells) for cell_type in CELL_TYPES}
    assert counts == {"normal": 1, "reduction": 2}
    for cell_type, count in counts.items():
        for part, same in zip(draw[cell_type], plain_draw[cell_type], strict=True):
            np.testing.assert_array_equal(part.gate, same.gate)
            assert part.noise.shape == (count, *part.gate.shape)
    first, second = draw["reduction"].operations.noise
    assert not np.isin(first, second).any()
    assert_same(values([draw["reduction"].operations.noise]), values([network.draw(3)["reduction"].operations.noise]))


def test_each_cell_takes_its_own_noise():
    network = supernet(noise_shape="cell")
    draw, images = network.draw(0), WEIGHT_BATCH[0]
    sample = network.samples(draw)
    previous = network.stem(images)
    numbers = {"normal": iter([0]), "reduction": iter([0, 1])}
    for plan, cell in zip(PLAN.cells, network.cells, strict=True):
        own, gates = sample[plan.cell_type]
        previous = previous[1], cell(list(previous), own[next(numbers[plan.cell_type])], gates)
    np.testing.assert_allclose(network(images, draw=draw), network.classifier(previous[1]), rtol=1e-5, atol=1e-5)


def test_noise_of_examples_is_each_examples_own():
    network = supernet(noise_shape="example")
    draw = network.draw(0, BATCH)
    assert draw["reduction"].operations.noise.shape == (2, BATCH, 5, 3)
    # Batch-norm of cells mixes examples, so that the cells' samples are looked at and not their outputs.
    sample, gates = network.samples(draw)["reduction"]
    assert sample.shape == (2, BATCH, 5, 3) and gates.shape == (5, 3)
    open_ = np.asarray(gates)
    assert not np.isclose(sample[0, 0], sample[0, 1])[open_].any() and (np.asarray(sample)[:, :, ~open_] == 0.0).all()
    logs = tf.function(network.bilevel_step, autograph=False)(DATA)
    assert all(np.isfinite(value) for value in logs.values())


def noise_variance(noise_shape, images, labels, steps=40):
    """Summed variance, over the noise of `steps` draws whose gates are all open, of the gradient to the dropout rates."""
    keras.utils.set_random_seed(0)
    network = Supernet(TINY, PLAN, mixing="average", initial_log_dropout_rate=-1.0, noise_shape=noise_shape)
    rates = [variable.value for variable in network.dropout_rate_variables]

    @tf.function(autograph=False)
    def gradient(step):
        draw = network.draw(step, len(labels))
        opened = {name: type(cell)(*(part._replace(gate=tf.ones_like(part.gate)) for part in cell)) for name, cell in draw.items()}
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(rates)
            loss = objective.cross_entropy(labels, network(images, draw=opened))
        return tf.concat([tf.reshape(each, [-1]) for each in tape.gradient(loss, rates)], 0)

    return np.stack([gradient(tf.constant(step)) for step in range(steps)]).var(axis=0).sum()


@pytest.mark.slow
def test_the_gradient_to_the_rates_varies_less_with_noise_of_examples():
    # At a rate of 0.37. Noise of cells varies no less here, and at a rate of 0.05 neither does noise of examples.
    generator = np.random.default_rng(0)
    data = generator.normal(size=(32, 8, 8, 1)).astype(np.float32), generator.integers(0, 3, 32).astype(np.int32)
    assert noise_variance("example", *data) < 0.8 * noise_variance("operation", *data)


def test_an_unknown_noise_shape_is_refused():
    with pytest.raises(ConfigError, match=r"unknown noise_shape\. Did you mean 'cell'.* Received: noise_shape='cells'"):
        Supernet(TINY, PLAN, noise_shape="cells")
