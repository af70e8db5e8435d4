import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.training import objective

GENERATOR = np.random.default_rng(0)
LOGITS = tf.constant(GENERATOR.normal(0.0, 3.0, (16, 5)).astype(np.float32))
AUXILIARY_LOGITS = tf.constant(GENERATOR.normal(0.0, 3.0, (16, 5)).astype(np.float32))
LABELS = tf.constant(GENERATOR.integers(0, 5, 16))


def keras_cross_entropy(logits, label_smoothing=0.0):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    return float(loss(tf.one_hot(LABELS, 5), logits))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_keras(label_smoothing):
    value = objective.cross_entropy(LABELS, LOGITS, label_smoothing)
    assert value.shape == () and value.dtype == tf.float32
    assert float(value) == pytest.approx(keras_cross_entropy(LOGITS, label_smoothing), rel=1e-6)


def test_label_smoothing_spreads_its_share_over_all_classes():
    log_probability = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True))
    targets = np.eye(5)[LABELS] * 0.9 + 0.1 / 5
    np.testing.assert_allclose(objective.cross_entropy(LABELS, LOGITS, 0.1), -(targets * log_probability).sum(axis=1).mean(), rtol=1e-5)


def test_cross_entropy_is_computed_in_float32():
    low = tf.cast(LOGITS, tf.bfloat16)
    value = objective.cross_entropy(LABELS, low)
    assert value.dtype == tf.float32
    assert float(value) == pytest.approx(keras_cross_entropy(tf.cast(low, tf.float32)), rel=1e-6)


WEIGHTS = np.array([0.5, 2.0, 1.0, 3.0, 0.25], np.float32)


def weighted_cross_entropy(logits, label_smoothing=0.0):
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    return float(loss(tf.one_hot(LABELS, 5), logits, sample_weight=WEIGHTS[LABELS.numpy()]))


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_weight_multiplies_each_example_of_its_class(label_smoothing):
    value = float(objective.cross_entropy(LABELS, LOGITS, label_smoothing, WEIGHTS))
    assert value == pytest.approx(weighted_cross_entropy(LOGITS, label_smoothing), rel=1e-6)
    assert value != pytest.approx(keras_cross_entropy(LOGITS, label_smoothing), rel=1e-2)
    ones = objective.cross_entropy(LABELS, LOGITS, label_smoothing, np.ones(5, np.float32))
    assert float(ones) == pytest.approx(keras_cross_entropy(LOGITS, label_smoothing), rel=1e-6)


def test_weights_are_of_every_cross_entropy_and_of_nothing_else():
    value = objective.architecture_loss(LABELS, LOGITS, tf.constant(50.0), 0.01, WEIGHTS)
    assert float(value) == pytest.approx(weighted_cross_entropy(LOGITS) + 0.5, rel=1e-6)
    both = objective.training_loss(LABELS, LOGITS, AUXILIARY_LOGITS, auxiliary_weight=0.4, label_smoothing=0.1, weights=WEIGHTS)
    expected = weighted_cross_entropy(LOGITS, 0.1) + 0.4 * weighted_cross_entropy(AUXILIARY_LOGITS, 0.1)
    assert float(both) == pytest.approx(expected, rel=1e-6)


def test_balanced_class_weights_are_scikit_learn_s():
    from sklearn.utils.class_weight import compute_class_weight

    labels = GENERATOR.choice(4, 200, p=[0.6, 0.25, 0.1, 0.05])
    weights = objective.class_weights("balanced", labels, 4)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(4), y=labels), rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1, rel=1e-6)
    assert objective.class_weights("none", labels, 4) is None


@pytest.mark.parametrize("kl_weight", [0.0, 0.01, 1.0])
def test_architecture_loss_adds_the_weighted_divergence(kl_weight):
    value = objective.architecture_loss(LABELS, LOGITS, tf.constant(50.0), kl_weight)
    assert float(value) == pytest.approx(keras_cross_entropy(LOGITS) + 50.0 * kl_weight, rel=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_training_loss_adds_the_weighted_auxiliary_loss(label_smoothing):
    main, auxiliary = (keras_cross_entropy(logits, label_smoothing) for logits in (LOGITS, AUXILIARY_LOGITS))
    both = objective.training_loss(LABELS, LOGITS, AUXILIARY_LOGITS, auxiliary_weight=0.4, label_smoothing=label_smoothing)
    assert float(both) == pytest.approx(main + 0.4 * auxiliary, rel=1e-6)
    alone = objective.training_loss(LABELS, LOGITS, auxiliary_weight=0.4, label_smoothing=label_smoothing)
    assert float(alone) == pytest.approx(main, rel=1e-6)


def test_accuracy_is_the_share_of_labels_with_the_largest_logit():
    value = objective.accuracy(LABELS, LOGITS)
    assert value.dtype == tf.float32 and value.shape == ()
    share = float(np.mean(np.argmax(LOGITS, axis=1) == LABELS.numpy()))
    assert float(value) == pytest.approx(share) and 0.0 < share < 1.0
    assert float(objective.accuracy([1, 0], tf.constant([[0.0, 1.0], [2.0, 0.0]]))) == 1.0
