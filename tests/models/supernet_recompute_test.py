"""Cells that the backward pass computes once more: another memory, the same step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import BATCH, TINY, values

from sivdnas_tf.models.supernet import Supernet
from sivdnas_tf.search_space import plan_network
from sivdnas_tf.training.distribution import make_strategy

PLAN = plan_network("cifar", channels=4, cells=3, classes=3, resolution=8, image_channels=1, multipliers=(2, 2))
GENERATOR = np.random.default_rng(0)
DATA = tuple(
    (GENERATOR.normal(size=(BATCH, 8, 8, 1)).astype(np.float32), GENERATOR.integers(0, 3, BATCH).astype(np.int32)) for _ in range(2)
)


def stepped(recompute, order=1, strategy="none", **kwargs):
    """The logs of a step, every variable after it, and how often the step's graph calls a function; every replica has the same images."""
    keras.utils.set_random_seed(0)
    strategy = make_strategy(strategy)
    with strategy.scope():
        network = Supernet(TINY, PLAN, mixing="average", initial_log_dropout_rate=-1.0, recompute=recompute, **kwargs)
        network.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.SGD(0.1), kl_weight=0.01, hypergradient_order=order)

    @tf.function(autograph=False)
    def step(data):
        logs = strategy.run(network.bilevel_step, args=(data,))
        return {name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None) for name, value in logs.items()}

    operations = step.get_concrete_function(DATA).graph.get_operations()
    calls = sum("PartitionedCall" in operation.type for operation in operations)
    return {name: float(value) for name, value in step(DATA).items()}, values(network.trainable_variables), calls


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"noise_shape": "example"}, {"order": 2}, {"strategy": "mirrored"}], ids=str)
def test_a_step_that_recomputes_its_cells_is_the_step_that_keeps_them(options):
    logs, variables, calls = stepped(True, **options)
    expected_logs, expected, expected_calls = stepped(False, **options)
    assert logs == pytest.approx(expected_logs, rel=1e-5)
    for variable, other in zip(variables, expected, strict=True):
        np.testing.assert_allclose(variable, other, rtol=1e-4, atol=1e-5)
    assert calls > 1.3 * expected_calls  # forward, backward, and forward again
