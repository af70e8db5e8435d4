import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import LEARNING_RATE_SCHEDULES
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.training.schedules import (
    EpochLearningRate,
    cosine_learning_rate,
    drop_path_rate,
    kl_scale,
    learning_rate,
    linear_learning_rate,
    prior_gap,
)


def test_prior_gap_falls_after_every_epoch_that_updates_the_architecture():
    warmup_epochs, gap = 15, 1.0
    for epoch in range(50):
        assert prior_gap(epoch, warmup_epochs, 0.95) == pytest.approx(gap, rel=1e-12)
        if epoch >= warmup_epochs:  # the end of the epoch, as Algorithm 1 writes it
            gap = 0.95 * gap
    assert gap == pytest.approx(0.95**35)


def test_prior_gap_without_warmup_or_decay():
    assert [prior_gap(epoch, 0, 0.5) for epoch in range(4)] == [1.0, 0.5, 0.25, 0.125]
    assert prior_gap(1000, 0, 1.0) == 1.0


def test_drop_path_rate_is_linear_and_one_short_at_the_end():
    rates = [drop_path_rate(epoch, 600, 0.3) for epoch in range(600)]
    assert rates[0] == 0.0 and rates[300] == pytest.approx(0.15) and rates[-1] == pytest.approx(0.3 * 599 / 600)
    np.testing.assert_allclose(np.diff(rates), 0.3 / 600)


def test_cosine_follows_the_recursion_of_pytorchs_scheduler():
    # CosineAnnealingLR.get_lr, chained: the form that PyTorch steps once an epoch.
    initial, final, epochs = 0.025, 0.001, 50
    rate = initial
    for epoch in range(epochs):
        assert cosine_learning_rate(epoch, initial, final, epochs) == pytest.approx(rate, rel=1e-9)
        rate = (1 + math.cos(math.pi * (epoch + 1) / epochs)) / (1 + math.cos(math.pi * epoch / epochs)) * (rate - final) + final
    assert cosine_learning_rate(epochs, initial, final, epochs) == pytest.approx(final)
    assert cosine_learning_rate(epochs // 2, initial, final, epochs) == pytest.approx((initial + final) / 2)


def test_linear_follows_the_factors_of_pytorchs_lambda_scheduler():
    # LambdaLR(optimizer, lambda epoch: 1 - epoch / epochs): the base rate times the factor of the epoch.
    rates = [linear_learning_rate(epoch, 0.5, 0.0, 250) for epoch in range(251)]
    np.testing.assert_allclose(rates, [0.5 * (1 - epoch / 250) for epoch in range(251)], rtol=1e-12, atol=1e-17)
    assert rates[0] == 0.5 and rates[-1] == linear_learning_rate(300, 0.5, 0.0, 250) == 0.0
    np.testing.assert_allclose([linear_learning_rate(epoch, 0.1, 0.02, 4) for epoch in range(5)], [0.1, 0.08, 0.06, 0.04, 0.02])


@pytest.mark.parametrize("schedule", LEARNING_RATE_SCHEDULES)
def test_warmup_scales_what_the_schedule_gives_as_the_reference_does(schedule):
    """train_imagenet.py of P-DARTS: `if epoch < 5: lr = current_lr * (epoch + 1) / 5.0`, once an epoch."""
    for epoch in range(20):
        current = {"cosine": 0.5 * (1 + math.cos(math.pi * epoch / 20)) / 2, "linear": 0.5 * (20 - epoch) / 20}[schedule]
        expected = current * (epoch + 1) / 5.0 if epoch < 5 else current
        assert learning_rate(epoch, 0.5, 0.0, 20, schedule=schedule, warmup_epochs=5) == pytest.approx(expected, rel=1e-12)
        assert learning_rate(epoch, 0.5, 0.0, 20, schedule=schedule) == pytest.approx(current, rel=1e-12)


def test_the_rate_of_an_epoch_takes_schedule_and_warmup():
    schedule = EpochLearningRate(0.5, 0.0, epochs=10, steps_per_epoch=3, schedule="linear", warmup_epochs=2)
    expected = [0.25, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05]
    np.testing.assert_allclose([schedule(step) for step in range(30)], np.repeat(expected, 3), rtol=1e-6)


def test_the_rate_of_an_epoch_is_constant_within_an_epoch():
    schedule = EpochLearningRate(0.1, 0.01, epochs=5, steps_per_epoch=7)
    rates = np.array([schedule(step) for step in range(5 * 7)]).reshape(5, 7)
    expected = [cosine_learning_rate(epoch, 0.1, 0.01, 5) for epoch in range(5)]
    np.testing.assert_allclose(rates, np.tile(np.array(expected)[:, None], (1, 7)), rtol=1e-6)
    assert np.all(np.diff(rates[:, 0]) < 0.0)


def test_the_rate_of_an_epoch_stays_at_the_final_rate():
    schedule = EpochLearningRate(0.1, 0.01, epochs=5, steps_per_epoch=7)
    np.testing.assert_allclose([schedule(35), schedule(10**9)], [0.01, 0.01], rtol=1e-6)


@pytest.mark.parametrize("step", [8, tf.constant(8), tf.Variable(8, dtype=tf.int64), keras.Variable(8, dtype="int64"), tf.constant(8.0)])
def test_the_rate_of_an_epoch_takes_any_step(step):
    schedule = EpochLearningRate(0.1, 0.0, epochs=2, steps_per_epoch=8)
    for call in (schedule, tf.function(schedule)):
        rate = call(step)
        assert rate.dtype == tf.float32 and rate.shape == ()
        np.testing.assert_allclose(rate, 0.05, rtol=1e-6)


def test_the_rate_of_an_epoch_drives_an_optimizer():
    optimizer = keras.optimizers.SGD(EpochLearningRate(1.0, 0.0, epochs=2, steps_per_epoch=3))
    variable = keras.Variable(np.zeros(1))
    optimizer.build([variable])
    values = []

    @tf.function
    def step():
        optimizer.apply([tf.ones(1)], [variable])

    for _ in range(7):
        step()
        values.append(float(variable[0]))
    np.testing.assert_allclose(np.diff([0.0, *values]), [-1.0] * 3 + [-0.5] * 3 + [0.0], atol=1e-6)


def test_the_rate_of_an_epoch_round_trip():
    schedule = EpochLearningRate(0.1, 0.01, epochs=5, steps_per_epoch=7, schedule="linear", warmup_epochs=3)
    copy = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(schedule))
    assert type(copy) is EpochLearningRate and copy.get_config() == schedule.get_config()
    assert copy(20) == schedule(20) and copy(0) == schedule(0)
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(keras.optimizers.SGD(schedule)))
    np.testing.assert_allclose(optimizer.learning_rate, 0.1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    "call",
    [
        lambda: drop_path_rate(0, 0, 0.3),
        lambda: cosine_learning_rate(0, 0.1, 0.0, 0),
        lambda: linear_learning_rate(0, 0.1, 0.0, 0),
        lambda: learning_rate(0, 0.1, 0.0, 0),
        lambda: EpochLearningRate(0.1, 0.0, epochs=0, steps_per_epoch=1),
        lambda: EpochLearningRate(0.1, 0.0, epochs=1, steps_per_epoch=0),
    ],
)
def test_counts_below_one_are_refused(call):
    with pytest.raises(ConfigError, match=r"must be at least 1\. Received: .*=0"):
        call()


def test_an_unknown_schedule_and_a_negative_warmup_are_refused():
    with pytest.raises(ConfigError, match=r"Did you mean 'linear'\? Expected one of cosine, linear\. Received: 'liner'"):
        EpochLearningRate(0.1, 0.0, epochs=1, steps_per_epoch=1, schedule="liner")
    with pytest.raises(ConfigError, match=r"at least 0\. Received: warmup_epochs=-1"):
        learning_rate(0, 0.1, 0.0, 1, warmup_epochs=-1)


def test_the_divergences_weight_grows_after_the_warmup_and_is_whole_without_a_ramp():
    assert [kl_scale(epoch, 2, 4) for epoch in range(8)] == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [kl_scale(epoch, 2, 0) for epoch in range(4)] == [1.0] * 4
