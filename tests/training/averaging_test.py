import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.training.averaging import MovingAverage
from sivdnas_tf.training.distribution import make_strategy

START = (np.array([1.0, -2.0, 3.0], np.float32), np.array([[0.5], [4.0]], np.float32))
STEPS = 5


def expected_averages(decay, steps=STEPS):
    """The recurrence in float64: the variables grow by 1 a step, then the average follows."""
    averages = [value.astype(np.float64) for value in START]
    for step in range(steps):
        rate = min(decay, (1 + step) / (10 + step))
        averages = [rate * average + (1 - rate) * (value + step + 1) for average, value in zip(averages, START, strict=True)]
    return averages


class Counting:
    """Variables that grow by 1 a step, and their average, on the devices of a strategy."""

    def __init__(self, strategy, decay):
        with strategy.scope():
            self.variables = [keras.Variable(value) for value in START]
            self.optimizer = keras.optimizers.SGD(1.0)
            self.optimizer.build(self.variables)
            self.average = MovingAverage(self.variables, decay)

        def step():
            # Keras sums the gradients over the replicas.
            replicas = tf.distribute.get_replica_context().num_replicas_in_sync
            self.optimizer.apply_gradients([(-tf.ones(value.shape) / replicas, value) for value in self.variables])
            self.average.update()

        self.step = tf.function(lambda: strategy.run(step))


@pytest.mark.parametrize("name", ["none", "mirrored"])
@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_follows_the_recurrence_on_one_device_and_on_two(name, decay):
    counting = Counting(make_strategy(name), decay)
    for _ in range(STEPS):
        counting.step()
    found = counting.average.values()
    assert list(found) == [variable.path for variable in counting.variables]
    for value, variable, start, expected in zip(found.values(), counting.variables, START, expected_averages(decay), strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_array_equal(variable.numpy(), start + STEPS)
    if name == "mirrored":
        for variable in counting.average.state:
            first, second = (copy.numpy() for copy in variable.values)
            np.testing.assert_array_equal(first, second)


def test_the_decay_matters_only_once_the_warm_start_has_passed_it():
    # (1 + t) / (10 + t) is 0.1, 0.18, 0.25, 0.31, 0.36: 0.3 is passed at the fourth step.
    early, late = expected_averages(0.3, steps=3), expected_averages(0.3)
    for value, other in zip(early, expected_averages(0.999, steps=3), strict=True):
        np.testing.assert_array_equal(value, other)
    assert not np.allclose(late[0], expected_averages(0.999)[0])


def test_before_any_step_the_average_is_the_start():
    counting = Counting(make_strategy("none"), 0.999)
    for value, start in zip(counting.average.values().values(), START, strict=True):
        np.testing.assert_array_equal(value, start)


@pytest.mark.parametrize("name", ["none", "mirrored"])
def test_a_checkpoint_keeps_the_average_and_its_step(name, tmp_path):
    uninterrupted, first, second = (Counting(make_strategy(name), 0.9) for _ in range(3))
    for _ in range(STEPS):
        uninterrupted.step()
    for _ in range(2):
        first.step()
    path = tf.train.Checkpoint(average=first.average.state).save(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(average=second.average.state).restore(path).assert_existing_objects_matched()
    for variable in second.variables:
        variable.assign(variable + 2.0)
    for _ in range(STEPS - 2):
        second.step()
    for value, expected in zip(second.average.values().values(), uninterrupted.average.values().values(), strict=True):
        np.testing.assert_array_equal(value, expected)
