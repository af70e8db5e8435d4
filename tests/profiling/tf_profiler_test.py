"""TensorFlow's profiler against counts by hand and against the closed formulas; the price of models that are made of no genotype."""

import keras
import numpy as np
import pytest

from sivdnas_tf.errors import DataError
from sivdnas_tf.genotype import Cell, Edge, Genotype
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.profiling import costs
from sivdnas_tf.profiling.tf_profiler import load_model, model_cost, profile_model, shapes_at
from sivdnas_tf.search_space import DARTS_OPERATIONS, plan_network
from sivdnas_tf.zoo import registry

layers = keras.layers


def cell(*operations):
    """A node of these operations from input 0, and a node of the same from input 1."""
    edges = tuple(Edge(2 + predecessor, predecessor, operation) for predecessor in (0, 1) for operation in operations)
    return Cell(edges, (2, 3))


def built(genotype, network, **size):
    return evaluation_network(genotype, plan_network(network, multipliers=genotype.multipliers, **size))


@pytest.mark.parametrize(("network", "resolution"), [("cifar", 12), ("cifar", 16), ("imagenet", 96)])
def test_float_ops_of_every_operation_are_twice_the_macs_of_the_formula(network, resolution):
    # 12 and 96 end in images of 3 pixels, which the phases of a dilated convolution do not divide.
    operations = [name for name in DARTS_OPERATIONS if name != "none"]
    genotype = Genotype("everything", cell(*operations), cell(*operations))
    size = {"channels": 4, "cells": 4, "classes": 5, "resolution": resolution}
    profiled = profile_model(built(genotype, network, **size))
    cost = costs.network_cost(genotype, network=network, **size)
    assert profiled.macs == cost.macs
    assert profiled.contraction_float_ops - profiled.padding_float_ops == 2 * cost.macs
    assert (profiled.padding_float_ops > 0) == (resolution != 16)
    named = {name: (float_ops, macs) for name, _, float_ops, macs in profiled.by_type()}
    assert sum(float_ops for float_ops, _ in named.values()) == profiled.float_ops
    assert {"Conv2D", "DepthwiseConv2dNative", "MatMul", "AddV2", "MaxPool", "AvgPool"} <= named.keys()
    assert all((macs > 0) == (name in ("Conv2D", "DepthwiseConv2dNative", "MatMul")) for name, (_, macs) in named.items())


def assert_reconciles(name, network, **size):
    genotype = registry.load(name)
    model, cost = built(genotype, network, **size), costs.network_cost(genotype, network=network, **size)
    assert sum(int(np.prod(variable.shape)) for variable in model.trainable_variables) == cost.params
    profiled = profile_model(model)
    assert profiled.macs == cost.macs and profiled.contraction_float_ops - profiled.padding_float_ops == 2 * cost.macs


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.names())
def test_every_cell_of_the_zoo_reconciles(name):
    assert_reconciles(name, "imagenet", channels=4, cells=5, classes=3, resolution=96)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DARTS_V2", "NASNet"])
def test_a_published_network_reconciles(name):
    assert_reconciles(name, "imagenet", channels=48, cells=14, classes=1000, resolution=224)


def test_mobilenet_costs_what_its_paper_prints():
    model = keras.applications.MobileNet(weights=None)
    cost = model_cost(model)
    assert (round(cost.macs / 1e6), round(cost.params / 1e6, 1), cost.uncounted) == (569, 4.2, ())
    profiled = profile_model(model)
    assert profiled.contraction_float_ops == 2 * cost.macs and profiled.padding_float_ops == 0


PIXELS = 8 * 8


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (layers.Conv2D(6, 3, padding="same"), (8, 8, 4), PIXELS * 9 * 4 * 6),
        (layers.Conv2D(6, 3, strides=2), (8, 8, 4), 9 * 9 * 4 * 6),
        (layers.Conv2D(6, 3, padding="same", groups=2), (8, 8, 4), PIXELS * 9 * 2 * 6),
        (layers.Conv2D(6, 3, padding="same", dilation_rate=2), (7, 7, 4), 49 * 9 * 4 * 6),
        (layers.DepthwiseConv2D(5, padding="same", depth_multiplier=2), (8, 8, 4), PIXELS * 25 * 8),
        (layers.DepthwiseConv2D(3, padding="same", dilation_rate=2), (7, 7, 4), 49 * 9 * 4),
        (layers.SeparableConv2D(6, 3, padding="same"), (8, 8, 4), PIXELS * (9 * 4 + 4 * 6)),
        (layers.Conv2DTranspose(6, 3, strides=2, padding="same"), (8, 8, 4), PIXELS * 9 * 4 * 6),
        (layers.Conv1D(6, 3, padding="same"), (8, 4), 8 * 3 * 4 * 6),
        (layers.Conv3D(6, 3, padding="same"), (4, 4, 4, 2), 64 * 27 * 2 * 6),
        (layers.Dense(5), (7,), 35),
        (layers.EinsumDense("abc,cd->abd", output_shape=(None, 5)), (3, 7), 3 * 7 * 5),
        (layers.BatchNormalization(), (8, 8, 4), 0),
    ],
    ids=lambda value: value.name if isinstance(value, keras.Layer) else None,
)
def test_any_layer_is_priced_by_its_shapes(layer, shape, macs):
    images = keras.Input(shape)
    assert model_cost(keras.Model(images, layer(images))).macs == macs


def test_attention_is_priced():
    words = keras.Input((10, 8))
    outputs = layers.MultiHeadAttention(num_heads=2, key_dim=4)(words, words)
    # Four projections of 8 to 8 features, and each of 10 words with each, in scores and in sums.
    assert model_cost(keras.Model(words, outputs)).macs == 4 * 10 * 8 * 8 + 2 * 10 * 10 * 8


def test_what_cannot_be_counted_is_named():
    words = keras.Input((10, 8))
    assert "While" in model_cost(keras.Model(words, layers.LSTM(4)(words))).uncounted


def test_frozen_layers_count_and_moving_statistics_do_not():
    images = keras.Input((4, 4, 3))
    model = keras.Model(images, layers.BatchNormalization()(layers.Conv2D(2, 1)(images)))
    model.trainable = False
    assert model_cost(model).params == 3 * 2 + 2 + 2 * 2


def test_a_model_of_open_size_needs_one(tmp_path):
    images = keras.Input((None, None, 3))
    model = keras.Model(images, layers.Conv2D(2, 1)(images))
    for count in (profile_model, model_cost):
        with pytest.raises(DataError, match=r"leaves the size of its input open: give --resolution. Received: input shapes \[\[None"):
            count(model)
    assert model_cost(model, shapes_at(model, 5)).macs == profile_model(model, shapes_at(model, 5)).macs == 25 * 3 * 2


def test_a_file_that_is_no_model_or_holds_code_is_refused(tmp_path):
    text, code = tmp_path / "text.keras", tmp_path / "code.keras"
    text.write_text("no model")
    images = keras.Input((4,))
    keras.Model(images, layers.Lambda(lambda x: x)(images)).save(code)
    for path in (text, code, tmp_path / "missing.keras"):
        with pytest.raises(DataError, match=r"a readable \.keras file without code in it\. Received: "):
            load_model(str(path))
