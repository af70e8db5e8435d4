"""The supernet's second-order step, on a smooth network in its place: ReLUs and pools have no slope that a difference could confirm."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, TINY, assert_same, values

from sivdnas_tf.errors import ConfigError
from sivdnas_tf.models.supernet import Supernet
from sivdnas_tf.search_space import CELL_TYPES, plan_network
from sivdnas_tf.training import objective

RATE, MOMENTUM, DECAY, KL_WEIGHT = 0.3, 0.5, 0.1, 0.02
GENERATOR = np.random.default_rng(0)
PROJECTION = {cell_type: GENERATOR.normal(size=(5, 3)).astype(np.float32) for cell_type in CELL_TYPES}


def batch():
    return GENERATOR.normal(size=(BATCH, 8, 8, 1)).astype(np.float32), GENERATOR.integers(0, 3, BATCH).astype(np.int32)


WEIGHT_BATCH, ARCHITECTURE_BATCH = batch(), batch()


class Smooth(Supernet):
    """The variables, losses and optimizers of a supernet; its logits are those of its classifier alone, scaled by the samples."""

    def call(self, images, draw=None, compute_all=False, gradients_to="all"):
        del compute_all, gradients_to
        scale = tf.add_n([tf.reduce_sum(sample * PROJECTION[cell_type]) for cell_type, (sample, _) in self.samples(draw).items()])
        features = tf.reshape(images, [BATCH, -1])[:, : self.plan.final_channels]
        return self.classifier(features[:, None, None, :] * scale)


@pytest.fixture(scope="module")
def supernet():
    """One that has made a step of the weights, so that its velocities are not 0."""
    keras.utils.set_random_seed(1)
    plan = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
    network = Smooth(TINY, plan, initial_log_dropout_rate=-2.0)
    network.compile(
        keras.optimizers.SGD(RATE, momentum=MOMENTUM),
        keras.optimizers.SGD(1.0),
        kl_weight=KL_WEIGHT,
        weight_decay=DECAY,
        hypergradient_order=2,
    )
    network.bilevel_step((WEIGHT_BATCH, ARCHITECTURE_BATCH), update_architecture=False)
    return network


def exact_gradients(network, draw):
    """Of the architecture's loss at the weights one step ahead, by differentiating through the step."""
    weights, architecture = network.weight_variables, [variable.value for variable in network.architecture_variables]
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = objective.cross_entropy(WEIGHT_BATCH[1], network(WEIGHT_BATCH[0], draw=draw))
        slopes = inner.gradient(loss, [weight.value for weight in weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)
        ahead = [
            weight.value + MOMENTUM * velocity.value - RATE * (slope + DECAY * weight.value)
            for weight, velocity, slope in zip(weights, network.weight_optimizer.momentums, slopes, strict=True)
        ]
        with keras.StatelessScope(state_mapping=list(zip(weights, ahead, strict=True))):
            images, labels = ARCHITECTURE_BATCH
            loss = objective.architecture_loss(labels, network(images, draw=draw), network.kl_divergence(draw), KL_WEIGHT)
    return outer.gradient(loss, architecture)


def gradients_of_a_step(network, order):
    """What the architecture's step, plain SGD of rate 1, subtracts; leaves everything as it was, and checks that it left the weights."""
    network.hypergradient_order = order
    draw = network.draw(network.weight_optimizer.iterations)
    architecture, weights = values(network.architecture_variables), values(network.weight_variables)
    tf.function(network.architecture_step, autograph=False)((WEIGHT_BATCH, ARCHITECTURE_BATCH))
    assert_same(weights, values(network.weight_variables))
    gradients = [before - after for before, after in zip(architecture, values(network.architecture_variables), strict=True)]
    for variable, value in zip(network.architecture_variables, architecture, strict=True):
        variable.assign(value)
    return draw, np.concatenate([gradient.ravel() for gradient in gradients])


def test_the_gradient_is_that_through_the_step_of_the_weights_and_leaves_them_bit_for_bit(supernet):
    draw, gradients = gradients_of_a_step(supernet, order=2)
    expected = np.concatenate([gradient.numpy().ravel() for gradient in exact_gradients(supernet, draw)])
    largest = np.abs(expected).max()
    np.testing.assert_allclose(gradients, expected, atol=2e-3 * largest)
    assert np.abs(gradients_of_a_step(supernet, order=1)[1] - expected).max() > 0.02 * largest  # what first order leaves out shows


@pytest.mark.slow
def test_a_step_of_second_order_runs_on_the_real_network():
    plan = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
    network = Supernet(TINY, plan)
    network.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.SGD(0.1), hypergradient_order=2)
    architecture = values(network.architecture_variables)
    logs = tf.function(network.architecture_step, autograph=False)((WEIGHT_BATCH, ARCHITECTURE_BATCH))
    assert all(np.isfinite(value) for value in logs.values())
    assert all(not np.array_equal(*pair) for pair in zip(architecture, values(network.architecture_variables), strict=True))


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam(0.1), keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)])
def test_another_optimizer_of_the_weights_than_the_unrolled_one_is_refused(optimizer, supernet):
    with pytest.raises(ConfigError, match=r"hypergradient_order=2 .* Received: weight_optimizer"):
        supernet.compile(optimizer, keras.optimizers.SGD(1.0), hypergradient_order=2)
