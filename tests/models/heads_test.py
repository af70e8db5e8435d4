import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.errors import ConfigError
from sivdnas_tf.layers.normalization import BatchStatisticsNormalization
from sivdnas_tf.models import heads
from sivdnas_tf.profiling.costs import auxiliary_head_params
from sivdnas_tf.search_space import plan_network
from sivdnas_tf.zoo import registry


def images(size, channels, seed=0):
    return np.random.default_rng(seed).normal(size=(2, size, size, channels)).astype(np.float32)


def randomise(layer):
    generator = np.random.default_rng(1)
    for variable in layer.variables:
        variable.assign(
            generator.uniform(0.5, 1.5, variable.shape) if "kernel" not in variable.path else generator.normal(size=variable.shape)
        )
    return {"/".join(variable.path.split("/")[-2:]): variable.numpy() for variable in layer.variables}


def conv(x, kernel, stride, pad):
    """A convolution that pads `pad` pixels on each side, as PyTorch's does."""
    return tf.nn.conv2d(x, kernel, stride, [[0, 0], [pad, pad], [pad, pad], [0, 0]])


def norm(x, v, name):
    gamma, beta, mean, variance = (v[f"{name}/{part}"] for part in ("gamma", "beta", "moving_mean", "moving_variance"))
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


# Stems.


def stem_cifar(x, v):
    return norm(conv(x, v["conv_1/kernel"], 1, 1), v, "norm_1")


def stem_imagenet_0(x, v):
    first = tf.nn.relu(norm(conv(x, v["conv_1/kernel"], 2, 1), v, "norm_1"))
    return norm(conv(first, v["conv_2/kernel"], 2, 1), v, "norm_2")


def stem_imagenet_1(x, v):
    return norm(conv(tf.nn.relu(x), v["conv_1/kernel"], 2, 1), v, "norm_1")


STEMS = {
    "cifar": (12, images(8, 3), stem_cifar, 8),
    "imagenet_0": (8, images(16, 3), stem_imagenet_0, 4),
    "imagenet_1": (8, images(8, 8), stem_imagenet_1, 4),
}


@pytest.mark.parametrize("part", STEMS)
def test_stems_are_those_of_the_definition(part):
    channels, x, reference, size = STEMS[part]
    stem = heads.Stem(part, channels)
    stem.build(x.shape)
    variables = randomise(stem)
    output = stem(x, training=False)
    assert output.shape == (2, size, size, channels)
    np.testing.assert_allclose(output, reference(x, variables), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("network", "resolution", "expected"), [("cifar", 8, (8, 8)), ("imagenet", 32, (8, 4))])
def test_a_stem_hands_two_tensors_to_cell_0(network, resolution, expected):
    plan = plan_network(network, channels=4, cells=3, classes=2, resolution=resolution)
    x = keras.Input((resolution, resolution, 3))
    outputs = heads.build_stem(plan, "batch")(x)
    assert [output.shape for output in outputs] == [
        (None, size, size, width) for size, width in zip(expected, plan.stem_channels, strict=True)
    ]
    assert (outputs[0] is outputs[1]) == (network == "cifar")


def test_a_searched_stem_keeps_its_affine_parameters():
    stem = heads.Stem("cifar", 12, "batch_statistics")
    stem.build((None, 8, 8, 1))
    assert isinstance(stem.steps[-1], BatchStatisticsNormalization)
    assert [variable.shape for variable in stem.trainable_variables] == [(3, 3, 1, 12), (12,), (12,)]
    assert not stem.non_trainable_variables


# Auxiliary head.


@pytest.mark.parametrize(("resolution", "expected"), [(8, (5, 3)), (7, (5, 2))])
def test_auxiliary_pool_is_the_references(resolution, expected):
    assert heads.auxiliary_pool(resolution) == expected


@pytest.mark.parametrize("resolution", range(2, 40))
def test_auxiliary_pool_leaves_two_by_two_pixels_and_covers_the_image(resolution):
    window, stride = heads.auxiliary_pool(resolution)
    assert keras.layers.AveragePooling2D(window, stride).compute_output_shape((1, resolution, resolution, 3)) == (1, 2, 2, 3)
    assert 1 <= stride <= window and window + stride == resolution


def test_an_auxiliary_head_needs_two_by_two_pixels():
    with pytest.raises(ConfigError, match=r"at least 2x2 pixels at the last cells\. Received: 1x1"):
        heads.AuxiliaryHead("cifar", 10).build((None, 1, 1, 16))


def auxiliary_reference(x, v, network):
    window, stride = {8: (5, 3), 7: (5, 2)}[x.shape[1]]
    pooled = tf.nn.avg_pool2d(tf.nn.relu(x), window, stride, "VALID")
    first = tf.nn.relu(norm(conv(pooled, v["conv_1/kernel"], 1, 0), v, "norm_1"))
    second = conv(first, v["conv_2/kernel"], 1, 0)
    second = tf.nn.relu(norm(second, v, "norm_2") if network == "cifar" else second)
    assert second.shape[1:] == (1, 1, 768)
    return tf.reshape(second, (2, 768)) @ v["classifier/kernel"] + v["classifier/bias"]


@pytest.mark.parametrize(("network", "size"), [("cifar", 8), ("imagenet", 7)])
def test_auxiliary_head_is_that_of_the_definition(network, size):
    head, x = heads.AuxiliaryHead(network, 5), images(size, 16)
    head.build(x.shape)
    variables = randomise(head)
    output = head(x, training=False)
    assert output.shape == (2, 5)
    np.testing.assert_allclose(output, auxiliary_reference(x, variables, network), rtol=1e-4)


@pytest.mark.parametrize(("network", "size", "channels", "classes"), [("cifar", 8, 36, 10), ("imagenet", 7, 48, 1000)])
def test_auxiliary_head_has_the_parameters_that_costs_count(network, size, channels, classes):
    resolution, cells = (32, 20) if network == "cifar" else (224, 14)
    head = heads.AuxiliaryHead(network, classes)
    head.build((None, size, size, 16 * channels))
    params = sum(int(np.prod(variable.shape)) for variable in head.trainable_variables)
    genotype = registry.load("DARTS_V2")
    arguments = {"network": network, "channels": channels, "cells": cells, "classes": classes, "resolution": resolution}
    assert params == auxiliary_head_params(genotype, **arguments)
    if network == "cifar":
        assert params == 476_426  # EVALUATION_NETWORK.md


# Classifier.


def test_classifier_is_the_mean_and_a_dense_layer():
    classifier, x = heads.Classifier(5), images(4, 6)
    classifier.build(x.shape)
    variables = randomise(classifier)
    expected = x.mean(axis=(1, 2)) @ variables["dense/kernel"] + variables["dense/bias"]
    np.testing.assert_allclose(classifier(x), expected, rtol=1e-5, atol=1e-5)


def test_logits_are_float32_under_a_half_precision_policy():
    classifier = heads.Classifier(5, dtype="mixed_bfloat16")
    assert classifier(images(4, 6)).dtype == tf.float32
    assert all(variable.dtype == "float32" for variable in classifier.variables)
