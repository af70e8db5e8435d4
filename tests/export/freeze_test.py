"""The deployed model: no training parts, the training's preprocessing, nothing left to learn."""

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from export.freeze import deployed_budget, freeze, with_preprocessing
from export.saved_model import logits_function
from sivdnas_tf.config import replace
from sivdnas_tf.data.augment import normalise
from sivdnas_tf.models.evaluation_network import evaluation_network
from sivdnas_tf.profiling.costs import deployed_cost
from sivdnas_tf.training.train import trained_plan


def frozen(trained, preprocessing):
    config = replace(trained.config, export={"preprocessing": preprocessing})
    return freeze(config, trained.genotype, trained.datasets, trained.run_dir)


def test_inside_it_takes_pixels_and_outside_normalised_images(partial):
    pixels = partial.datasets.test.images
    normalised = normalise(pixels, partial.datasets.mean, partial.datasets.std)
    expected = partial.network(normalised, training=False).numpy()
    inside, outside = frozen(partial, "inside"), frozen(partial, "outside")
    np.testing.assert_allclose(inside(tf.cast(pixels, tf.float32)), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(outside(normalised), expected, rtol=0, atol=1e-6)
    assert np.abs(inside(normalised) - expected).max() > 1e-2  # the two are not the same model
    for model in (inside, outside):
        assert (model.input.name, model.layers[-1].name) == ("image", "logits")
        assert (model.input_shape, model.output_shape) == ((None, 8, 8, 3), (None, 3))
        assert not model.trainable_variables and len(model.variables) == len(partial.network.variables)


def test_channels_are_normalised_each_by_its_own_statistics():
    images = keras.Input((1, 1, 3), name="image")
    identity = keras.Model(images, keras.layers.Flatten()(images))
    model = with_preprocessing(identity, "inside", mean=[0.0, 0.5, 1.0], std=[1.0, 0.5, 0.25])
    np.testing.assert_allclose(model(np.full((1, 1, 1, 3), 255.0, np.float32)), [[1.0, 1.0, 0.0]])
    np.testing.assert_allclose(model(np.zeros((1, 1, 1, 3), np.float32)), [[0.0, -1.0, -4.0]])


def test_frozen_graph_holds_constants_and_inference_only(partial):
    graph = convert_variables_to_constants_v2(logits_function(frozen(partial, "inside")).get_concrete_function()).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert {"Conv2D", "DepthwiseConv2dNative", "MatMul"} <= operations
    forbidden = ("Variable", "Assign", "Random", "Grad", "PartitionedCall", "If", "While", "Print", "PyFunc")
    assert [kind for kind in operations if any(word in kind for word in forbidden)] == []
    for operation in graph.get_operations():
        assert "auxiliary" not in operation.name and "drop_path" not in operation.name
        assert not (operation.type.startswith("FusedBatchNorm") and operation.get_attr("is_training"))


def test_the_training_form_would_not_pass_for_frozen(partial):
    # Keeps the test above from becoming vacuous: these are the parts that it must not find.
    plan = trained_plan(partial.config, partial.genotype, partial.datasets.image_shape, classes=3)
    model = evaluation_network(partial.genotype, plan, auxiliary=True, drop_path=True)
    names = [layer.name for layer in model.layers]
    assert any("auxiliary" in name for name in names) and any("drop_path" in name for name in names)
    deployed = [layer.name for layer in frozen(partial, "inside").get_layer("evaluation_network").layers]
    assert set(deployed) == {name for name in names if "auxiliary" not in name and "drop_path" not in name}


def test_the_budget_is_held_against_what_is_written(partial):
    config = replace(partial.config, budget={"macs": 12345, "convention": "macs_ptflops", "network": "imagenet", "cells": 14})
    budget = deployed_budget(config, (8, 8, 3), 3)
    assert (budget.network, budget.channels, budget.cells) == ("cifar", 4, 3)
    assert (budget.classes, budget.resolution, budget.image_channels) == (3, 8, 3)
    assert (budget.macs, budget.convention) == (12345, "macs_ptflops")
    trainable = sum(int(np.prod(variable.shape)) for variable in partial.network.trainable_variables)
    assert deployed_cost(partial.genotype, budget).params == trainable
