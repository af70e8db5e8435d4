"""One list of all our Keras layers drives the checks that every layer must pass, and a test keeps the list complete."""

import dataclasses
import importlib.util
import pathlib
import pkgutil
import typing

import keras
import numpy as np
import pytest
import tensorflow as tf

import export
import sivdnas_tf
from export.freeze import Normalise
from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.drop_path import DropPath, DropPathSchedule
from sivdnas_tf.layers.mixing_weights import MixingWeights
from sivdnas_tf.layers.normalization import BatchNormalization, BatchStatisticsNormalization
from sivdnas_tf.layers.semi_implicit_dropout import GaussianDropout, SemiImplicitDropout
from sivdnas_tf.models import heads


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer, what it is called on, and how many variables it has."""

    make: typing.Callable
    shape: tuple = (8, 8, 4)
    scalars: tuple = ()
    trainable: int = 0
    non_trainable: int = 0
    compute_output_shape: bool = True

    def inputs(self):
        images = np.random.default_rng(0).uniform(-1.0, 1.0, (3, *self.shape)).astype(np.float32)
        return [tf.constant(images), *self.scalars]


CASES = {
    "batch statistics": Case(lambda: BatchStatisticsNormalization()),
    "batch statistics, affine": Case(lambda: BatchStatisticsNormalization(affine=True), trainable=2),
    "batch": Case(lambda: BatchNormalization(), trainable=2, non_trainable=2),
    "batch, no affine": Case(lambda: BatchNormalization(center=False, scale=False), non_trainable=2),
    "depthwise": Case(lambda: blocks.DepthwiseConv2D(5, padding="same", use_bias=False), trainable=1),
    "subsample": Case(lambda: blocks.Subsample(offset=1), shape=(7, 7, 4)),
    "relu-conv-bn": Case(lambda: blocks.ReLUConvBN(6), trainable=3, non_trainable=2),
    "relu-conv-bn, search": Case(lambda: blocks.ReLUConvBN(6, normalization="batch_statistics"), trainable=1),
    "relu-conv-bn, 3x3": Case(lambda: blocks.ReLUConvBN(6, kernel=3, stride=2), trainable=3, non_trainable=2),
    "relu-conv-bn, affine": Case(lambda: blocks.ReLUConvBN(6, normalization="batch_statistics", kernel=3, affine=True), trainable=3),
    "residual reduction": Case(lambda: blocks.ResidualReduction(6), trainable=7, non_trainable=4),
    "sep conv": Case(lambda: blocks.SepConv(3, stride=2, normalization="synchronized_batch"), trainable=8, non_trainable=4),
    "dil conv": Case(lambda: blocks.DilConv(5, stride=2), trainable=4, non_trainable=2),
    "dil conv, stride 1": Case(lambda: blocks.DilConv(3), trainable=4, non_trainable=2),
    "conv pair": Case(lambda: blocks.ConvPair(7, stride=2), trainable=4, non_trainable=2),
    "pool": Case(lambda: blocks.Pool("max", stride=2), shape=(7, 7, 4)),
    "pool, norm": Case(lambda: blocks.Pool("average", normalization="batch"), trainable=2, non_trainable=2),
    "factorized reduce": Case(lambda: blocks.FactorizedReduce(6), trainable=4, non_trainable=2),
    "zero": Case(lambda: blocks.Zero(stride=2), shape=(7, 7, 4)),
    "drop path": Case(lambda: DropPath(3, seed=1), scalars=(tf.constant(0.5), tf.constant(7)), compute_output_shape=False),
    "drop path schedule": Case(lambda: DropPathSchedule(), non_trainable=2, compute_output_shape=False),
    "stem, cifar": Case(lambda: heads.Stem("cifar", 12), shape=(8, 8, 1), trainable=3, non_trainable=2),
    "stem, imagenet 0": Case(lambda: heads.Stem("imagenet_0", 8), shape=(16, 16, 3), trainable=6, non_trainable=4),
    "stem, imagenet 1": Case(lambda: heads.Stem("imagenet_1", 8), shape=(8, 8, 4), trainable=3, non_trainable=2),
    "auxiliary head": Case(lambda: heads.AuxiliaryHead("imagenet", 5), trainable=6, non_trainable=2),
    "classifier": Case(lambda: heads.Classifier(5), trainable=2),
    "classifier, norm": Case(lambda: heads.Classifier(5, "batch"), trainable=4, non_trainable=2),
    "normalise": Case(lambda: Normalise([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0])),
    "semi-implicit dropout": Case(
        lambda: SemiImplicitDropout((3,), mixing="softmax", groups=(2, 2, 3), initial_log_dropout_rate=-1.0),
        trainable=2,
        compute_output_shape=False,
    ),
    "gaussian dropout": Case(
        lambda: GaussianDropout((2, 3), mixing="average", initial_log_dropout_rate=-1.0), trainable=2, compute_output_shape=False
    ),
    "mixing weights": Case(lambda: MixingWeights((2, 3), mixing="softmax"), trainable=1, compute_output_shape=False),
}
every_layer = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def call(layer, inputs, **kwargs):
    # A draw is one argument of two tensors.
    return layer(inputs, **kwargs) if isinstance(layer, MixingWeights) else layer(*inputs, **kwargs)


def arguments(case):
    layer = case.make()
    if isinstance(layer, MixingWeights):
        return layer, list(layer.draw(tf.constant([1, 2])))
    return layer, case.inputs()


def flat(outputs):
    return [np.asarray(output) for output in tf.nest.flatten(outputs)]


def randomise(layer):
    generator = np.random.default_rng(1)
    for variable in layer.variables:
        if variable.dtype == "int32":
            variable.assign(3)
        else:
            variable.assign(generator.uniform(0.5, 1.5, variable.shape))


@every_layer
def test_variables_losses_and_seeds_are_counted(case):
    layer, inputs = arguments(case)
    call(layer, inputs)
    assert (len(layer.trainable_variables), len(layer.non_trainable_variables)) == (case.trainable, case.non_trainable)
    assert len({variable.path for variable in layer.variables}) == case.trainable + case.non_trainable == len(layer.variables)
    assert not layer.losses and not [variable for variable in layer.variables if "seed" in variable.path]


@every_layer
def test_configuration_round_trip_gives_the_same_layer(case):
    layer, inputs = arguments(case)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is type(layer) and copy.get_config() == layer.get_config()
    call(layer, inputs)
    call(copy, inputs)
    randomise(layer)
    copy.set_weights(layer.get_weights())
    for expected, output in zip(flat(call(layer, inputs)), flat(call(copy, inputs)), strict=True):
        np.testing.assert_array_equal(output, expected)


@every_layer
def test_a_saved_model_keeps_the_layer(case, tmp_path):
    layer, inputs = arguments(case)
    symbolic = [keras.Input(batch_shape=value.shape, dtype=value.dtype.name) for value in inputs]
    model = keras.Model(symbolic, call(layer, symbolic))
    randomise(layer)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for expected, output in zip(flat(model(inputs)), flat(loaded(inputs)), strict=True):
        np.testing.assert_array_equal(output, expected)


@every_layer
def test_output_shapes_are_those_announced(case):
    layer, inputs = arguments(case)
    expected = [output.shape for output in flat(call(layer, inputs))]
    symbolic = [keras.KerasTensor(value.shape, value.dtype.name) for value in inputs]
    fresh = case.make()
    outputs = tf.nest.flatten(call(fresh, symbolic))
    assert [tuple(output.shape) for output in outputs] == expected
    assert [output.dtype for output in outputs] == [output.dtype for output in flat(call(layer, inputs))]
    if case.compute_output_shape:
        unbuilt = case.make()
        assert unbuilt.compute_output_shape(inputs[0].shape) == expected[0] == layer.compute_output_shape(inputs[0].shape)
        assert layer.compute_output_shape((None, *inputs[0].shape[1:])) == (None, *expected[0][1:])


@every_layer
@pytest.mark.parametrize("training", [False, True])
def test_eager_and_graph_agree(case, training):
    layer, inputs = arguments(case)
    call(layer, inputs)
    randomise(layer)
    values = layer.get_weights()

    def run(function):
        layer.set_weights(values)  # a batch-norm moves its averages
        return flat(function())

    if isinstance(layer, MixingWeights):
        pair = run(lambda: call(layer, inputs)), run(tf.function(lambda: call(layer, inputs)))
    else:
        pair = (
            run(lambda: call(layer, inputs, training=training)),
            run(tf.function(lambda: call(layer, inputs, training=training))),
        )
    for expected, output in zip(*pair, strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


@every_layer
def test_every_trainable_variable_gets_a_gradient(case):
    layer, inputs = arguments(case)
    call(layer, inputs)
    randomise(layer)
    with tf.GradientTape() as tape:
        outputs = call(layer, inputs)
        # Squares, since a sum of normalised values does not depend on what is normalised.
        loss = tf.add_n([tf.reduce_sum(tf.square(tf.cast(output, tf.float32))) for output in tf.nest.flatten(outputs)])
    gradients = tape.gradient(loss, [variable.value for variable in layer.trainable_variables])
    assert all(gradient is not None and np.all(np.isfinite(gradient)) for gradient in gradients)


def registering_modules():
    """Names of our modules that register something with Keras; only these are imported, since others take seconds."""
    for package in (sivdnas_tf, export):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            source = pathlib.Path(importlib.util.find_spec(module.name).origin).read_text(encoding="utf-8")
            if "register_keras_serializable" in source:
                yield module.name


def registered_layers():
    for name in registering_modules():
        importlib.import_module(name)
    ours = [value for name, value in keras.saving.get_custom_objects().items() if name.startswith("sivdnas_tf>")]
    return {value for value in ours if issubclass(value, keras.layers.Layer)}


def test_the_list_holds_every_registered_layer():
    listed = {type(case.make()) for case in CASES.values()}
    assert registered_layers() == listed
