import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.layers.drop_path import DropPath, DropPathSchedule
from sivdnas_tf.training.distribution import make_strategy

ONES = tf.ones([4096, 1, 1, 2])


def dropped(rate, step=0, index=0, seed=0, inputs=ONES):
    return DropPath(index, seed=seed)(inputs, tf.constant(rate), tf.constant(step), training=True).numpy()


def test_drop_path_at_rate_zero_is_the_identity():
    np.testing.assert_array_equal(dropped(0.0), ONES)


@pytest.mark.parametrize("training", [False, None])
def test_drop_path_in_inference_is_the_identity(training):
    output = DropPath(0)(ONES, tf.constant(0.5), tf.constant(0), training=training)
    np.testing.assert_array_equal(output, ONES)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_drop_path_drops_whole_examples_at_its_rate_and_rescales_the_rest(rate):
    output = dropped(rate)
    np.testing.assert_array_equal(output[..., 0], output[..., 1])
    kept = output[:, 0, 0, 0] > 0
    np.testing.assert_allclose(output[kept], 1.0 / (1.0 - rate), rtol=1e-6)
    np.testing.assert_array_equal(output[~kept], 0.0)
    five_sigma = 5.0 * np.sqrt(rate * (1.0 - rate) / len(kept))
    assert abs(kept.mean() - (1.0 - rate)) < five_sigma
    shape = (8, 3, 3, 4)
    spatial = dropped(rate, inputs=tf.ones(shape)).reshape(8, -1)
    np.testing.assert_array_equal(spatial, spatial[:, :1] * np.ones((1, spatial.shape[1])))


def test_drop_path_masks_are_fixed_by_seed_step_and_index_and_independent_between_them():
    mask = dropped(0.5)[:, 0, 0, 0] > 0
    np.testing.assert_array_equal(mask, dropped(0.5)[:, 0, 0, 0] > 0)
    for other in ({"step": 1}, {"index": 1}, {"seed": 1}):
        agreement = (mask == (dropped(0.5, **other)[:, 0, 0, 0] > 0)).mean()
        assert abs(agreement - 0.5) < 5.0 * 0.5 / np.sqrt(len(mask)), other


def test_drop_path_differs_between_replicas():
    strategy = make_strategy("mirrored")
    layer = DropPath(0)

    @tf.function
    def run():
        return strategy.run(lambda: layer(ONES, tf.constant(0.5), tf.constant(0), training=True))

    first, second = (value.numpy()[:, 0, 0, 0] > 0 for value in strategy.experimental_local_results(run()))
    np.testing.assert_array_equal(first, dropped(0.5)[:, 0, 0, 0] > 0)
    assert abs((first == second).mean() - 0.5) < 5.0 * 0.5 / np.sqrt(len(first))


def test_drop_path_schedule_is_state_that_feeds_every_drop_path():
    images = keras.Input((4, 4, 2))
    rate, step = DropPathSchedule(name="schedule")(images)
    model = keras.Model(images, DropPath(0)(images, rate, step))
    schedule, x = model.get_layer("schedule"), np.ones((64, 4, 4, 2), np.float32)
    assert len(model.non_trainable_variables) == 2 and not model.trainable_variables
    np.testing.assert_array_equal(model(x, training=True), x)
    schedule.rate.assign(0.5)
    first = model(x, training=True).numpy()
    schedule.step.assign(1)
    second = model(x, training=True).numpy()
    assert set(np.unique(first)) == set(np.unique(second)) == {0.0, 2.0}
    assert not np.array_equal(first, second)
