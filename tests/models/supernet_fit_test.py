"""`Supernet.fit`, on one device and on two."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, TINY, assert_same, compiled, differ, reset, values

from sivdnas_tf.models.supernet import Supernet
from sivdnas_tf.search_space import SearchSpace, plan_network
from sivdnas_tf.training.distribution import make_strategy

# `fit` compiles a step into one graph, which takes several times as long as tracing the edges alone: a single node here.
ONE_NODE = SearchSpace("one node", TINY.primitives, n_nodes=1)
ONE_NODE_PLAN = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(1, 1))


def fitted(strategy, batches, initial):
    """A supernet after an epoch of `fit` from `initial`, and the epoch's logs."""
    with strategy.scope():
        network = compiled(reset(Supernet(ONE_NODE, ONE_NODE_PLAN), initial))
    history = network.fit(batches, verbose=0, shuffle=False)
    return network, {name: losses[-1] for name, losses in history.history.items()}


def dataset(repetitions):
    """Two steps; every batch holds its images `repetitions` times, one time after the other."""
    generator = np.random.default_rng(7)

    def half():
        images, labels = generator.normal(size=(2, BATCH, 8, 8, 1)).astype(np.float32), generator.integers(0, 3, (2, BATCH))
        return np.tile(images, (1, repetitions, 1, 1, 1)), np.tile(labels, (1, repetitions))

    return tf.data.Dataset.from_tensor_slices((half(), half()))


@pytest.fixture(scope="module")
def one_node():
    """A supernet of the smaller space, to step eagerly, and its initial values."""
    keras.utils.set_random_seed(1)
    network = Supernet(ONE_NODE, ONE_NODE_PLAN, initial_log_dropout_rate=-1.0)
    return network, values(network.variables)


@pytest.fixture(scope="module")
def on_one_device(one_node):
    return fitted(tf.distribute.get_strategy(), dataset(1), one_node[1])


@pytest.fixture(scope="module")
def on_two_devices(one_node):
    return fitted(make_strategy("mirrored"), dataset(2), one_node[1])


def test_fit_is_the_bilevel_step_and_reports_the_means_of_its_values(on_one_device, one_node):
    (network, logs), supernet = on_one_device, reset(*one_node)
    norms = {"mixing_gradient_norm", "dropout_rate_gradient_norm"}
    assert set(logs) == {"loss", "accuracy", "architecture_loss", "architecture_accuracy", "kl"} | norms
    assert all(logs[name] > 0 for name in norms)
    assert network.weight_optimizer.iterations.numpy() == network.architecture_optimizer.iterations.numpy() == 2
    steps = [compiled(supernet).bilevel_step(next(iter(dataset(1))))]
    steps.append(supernet.bilevel_step(next(iter(dataset(1).skip(1)))))
    for name, value in logs.items():
        assert value == pytest.approx(np.mean([float(step[name]) for step in steps]), rel=1e-4), name
    for variable, expected in zip(network.trainable_variables, supernet.trainable_variables, strict=True):
        np.testing.assert_allclose(variable, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_devices_agree_with_one_on_the_same_images(on_one_device, on_two_devices):
    (one, one_logs), (two, two_logs) = on_one_device, on_two_devices
    for name, value in one_logs.items():
        assert two_logs[name] == pytest.approx(value, rel=1e-5), name
    for of_one, of_two in zip(one.trainable_variables, two.trainable_variables, strict=True):
        expected, value = of_one.numpy(), of_two.numpy()
        assert np.abs(value - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max()), of_one.path


def test_fit_can_be_told_later_to_freeze_the_architecture(on_one_device):
    network, _ = on_one_device
    weights, architecture = values(network.weight_variables), values(network.architecture_variables)
    assert network.update_architecture
    network.update_architecture = False
    network.fit(dataset(1), verbose=0, shuffle=False)
    assert_same(architecture, values(network.architecture_variables))
    assert any(differ(weights, values(network.weight_variables)))
