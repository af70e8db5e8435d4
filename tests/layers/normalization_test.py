import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import images, norm, randomise

from sivdnas_tf.layers.normalization import BatchNormalization, BatchStatisticsNormalization, make_normalization


def test_an_unknown_normalization_is_refused():
    with pytest.raises(ValueError, match=r"normalization must be one of.*Received: 'layer'"):
        make_normalization("layer", "norm")


@pytest.mark.parametrize("kind", ["batch", "synchronized_batch"])
def test_evaluation_normalization_is_pytorchs(kind):
    layer, x = make_normalization(kind, "norm"), images(4, seed=2)
    layer.build(x.shape)
    variables = randomise(layer)
    mean, variance = x.mean(axis=(0, 1, 2), dtype=np.float64), x.var(axis=(0, 1, 2), dtype=np.float64)
    of_batch = {**variables, "norm/moving_mean": mean, "norm/moving_variance": variance}
    np.testing.assert_allclose(layer(x, training=True), norm(x, of_batch), atol=1e-5)
    # PyTorch's momentum of 0.1 is Keras' 0.9.
    np.testing.assert_allclose(layer.moving_mean, 0.9 * variables["norm/moving_mean"] + 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, 0.9 * variables["norm/moving_variance"] + 0.1 * variance, rtol=1e-5)
    assert layer.synchronized == (kind == "synchronized_batch")


def test_fused_normalization_has_the_gradients_of_keras_own():
    x, gradients = tf.constant(images(4, seed=6)), []
    direction = np.random.default_rng(7).normal(size=x.shape).astype(np.float32)
    for make in (BatchNormalization, keras.layers.BatchNormalization):
        layer = make(momentum=0.9, epsilon=1e-5, name="norm")
        layer.build(x.shape)
        randomise(layer)
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = tf.reduce_sum(layer(x, training=True) * direction)
        gradients.append(tape.gradient(value, [x, layer.gamma.value, layer.beta.value]))
    for fused, own in zip(*gradients, strict=True):
        np.testing.assert_allclose(fused, own, atol=1e-3)
    # Frozen, or without training, it normalises by the moving averages.
    layer = BatchNormalization(name="norm")
    layer.build(x.shape)
    layer.trainable = False
    np.testing.assert_allclose(layer(x, training=True), x / np.sqrt(1 + layer.epsilon), rtol=1e-6)


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_search_normalization_takes_the_statistics_of_the_batch(affine, training):
    layer, x = make_normalization("batch_statistics", "norm", affine=affine), images(5, seed=3) * 3.0 + 2.0
    y = layer(x, training=training)
    assert len(layer.trainable_variables) == (2 if affine else 0) and not layer.non_trainable_variables
    expected = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    if affine:
        layer.scale.assign([1.0, 2.0, 3.0, 4.0])
        layer.offset.assign([0.0, -1.0, 1.0, 5.0])
        np.testing.assert_allclose(layer(x), expected * [1.0, 2.0, 3.0, 4.0] + [0.0, -1.0, 1.0, 5.0], atol=1e-4)


def test_search_normalization_passes_the_gradient_of_the_statistics():
    layer, x = BatchStatisticsNormalization(), tf.constant(images(3, seed=4))
    weights = np.random.default_rng(5).normal(size=x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x) * weights.astype(np.float32))
    gradient = tape.gradient(y, x).numpy()
    # A shift of a channel changes nothing, nor does its scale (but for epsilon).
    np.testing.assert_allclose(gradient.sum(axis=(0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose((gradient * x).numpy().sum(axis=(0, 1, 2)), 0.0, atol=1e-3)
    assert np.abs(gradient).max() > 0.01
