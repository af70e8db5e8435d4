import keras
import numpy as np
import pytest
import tensorflow as tf
from reference import (
    average_pool,
    conv_pair,
    dil_conv,
    factorized_reduce,
    images,
    max_pool,
    norm,
    randomise,
    relu_conv_bn,
    sep_conv,
    zeros,
)

from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.drop_path import DropPath, DropPathSchedule
from sivdnas_tf.layers.normalization import NORMALIZATIONS, BatchStatisticsNormalization

BLOCKS = {
    "ReLUConvBN": (lambda stride: blocks.ReLUConvBN(6), lambda x, v, stride: relu_conv_bn(x, v), (1,), (8, 7)),
    "SepConv 3": (lambda stride: blocks.SepConv(3, stride), lambda x, v, stride: sep_conv(x, v, 3, stride), (1, 2), (8, 7)),
    "SepConv 5": (lambda stride: blocks.SepConv(5, stride), lambda x, v, stride: sep_conv(x, v, 5, stride), (1, 2), (8, 7)),
    "SepConv 7": (lambda stride: blocks.SepConv(7, stride), lambda x, v, stride: sep_conv(x, v, 7, stride), (1, 2), (8,)),
    "DilConv 3": (lambda stride: blocks.DilConv(3, stride), lambda x, v, stride: dil_conv(x, v, 3, stride), (1, 2), (8, 7)),
    "DilConv 5": (lambda stride: blocks.DilConv(5, stride), lambda x, v, stride: dil_conv(x, v, 5, stride), (1, 2), (8, 7)),
    "ConvPair": (lambda stride: blocks.ConvPair(7, stride), lambda x, v, stride: conv_pair(x, v, 7, stride), (1, 2), (8, 7)),
    "max pool": (lambda stride: blocks.Pool("max", stride), lambda x, v, stride: max_pool(x, stride), (1, 2), (8, 7)),
    "average pool": (lambda stride: blocks.Pool("average", stride), lambda x, v, stride: average_pool(x, stride), (1, 2), (8, 7)),
    "max pool, norm": (
        lambda stride: blocks.Pool("max", stride, normalization="batch"),
        lambda x, v, stride: norm(max_pool(x, stride), v),
        (1, 2),
        (8,),
    ),
    "FactorizedReduce": (lambda stride: blocks.FactorizedReduce(6), lambda x, v, stride: factorized_reduce(x, v), (2,), (8, 2)),
    "Zero": (lambda stride: blocks.Zero(stride), lambda x, v, stride: zeros(x, stride), (1, 2), (8, 7)),
}
CASES = [(name, stride, size) for name, (_, _, strides, sizes) in BLOCKS.items() for stride in strides for size in sizes]


@pytest.mark.parametrize(("name", "stride", "size"), CASES)
def test_outputs_are_those_of_the_definition(name, stride, size):
    make, reference, _, _ = BLOCKS[name]
    layer, x = make(stride), images(size)
    layer.build(x.shape)
    expected = reference(x.astype(np.float64), randomise(layer), stride)
    output = layer(x, training=False)
    assert output.shape == expected.shape == (3, -(-size // stride), -(-size // stride), expected.shape[-1])
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)
    assert layer.compute_output_shape(x.shape) == expected.shape


def test_factorized_reduce_reads_even_and_shifted_pixels():
    layer, shape = blocks.FactorizedReduce(2), (1, 4, 4, 1)
    layer.build(shape)
    for convolution in (layer.conv_1, layer.conv_2):
        convolution.kernel.assign(tf.ones_like(convolution.kernel))
    x = tf.Variable(np.ones(shape, np.float32))
    with tf.GradientTape() as tape:
        y = layer(x, training=False)
    # One convolution reads the pixels of even, the other those of odd row and column: all, but for the two other diagonals of 2x2.
    expected = np.tile([[True, False], [False, True]], (2, 2))
    np.testing.assert_array_equal(tape.gradient(y, x).numpy()[0, :, :, 0] > 0, expected)


@pytest.mark.parametrize("shape", [(1, 7, 8, 4), (1, 8, 7, 4)])
def test_factorized_reduce_refuses_odd_sizes(shape):
    with pytest.raises(ValueError, match=r"halves even sizes.*Received: .*7"):
        blocks.FactorizedReduce(4).build(shape)


def test_an_unknown_kind_of_pool_is_refused():
    with pytest.raises(ValueError, match=r"kind of pool must be.*Received: 'median'"):
        blocks.Pool("median")


@pytest.mark.parametrize(("offset", "size"), [(0, 6), (1, 6), (0, 5), (1, 5)])
def test_subsampling_is_a_strided_slice(offset, size):
    x = tf.constant(images(size, seed=8))
    np.testing.assert_array_equal(blocks.subsample(x, offset), x[:, offset::2, offset::2, :])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_only_evaluation_blocks_have_affine_parameters_and_state(normalization):
    layer = blocks.SepConv(3, normalization=normalization)
    layer.build((None, 8, 8, 4))
    searched = normalization == "batch_statistics"
    assert len(layer.trainable_variables) == (4 if searched else 8)
    assert len(layer.non_trainable_variables) == (0 if searched else 4)


def test_convolutions_start_uniform_in_one_over_root_fan_in():
    layer = blocks.SepConv(5)
    layer.build((None, 8, 8, 64))
    for variable in layer.trainable_variables:
        if variable.path.endswith("kernel"):
            bound = (25 if "depthwise" in variable.path else 64) ** -0.5
            largest = float(np.abs(variable).max())
            assert 0.9 * bound < largest <= bound, variable.path
    first, second = (step.kernel.numpy() for step in layer.steps if isinstance(step, keras.layers.DepthwiseConv2D))
    assert not np.array_equal(first, second)


# Depthwise convolution.


@pytest.mark.parametrize(("resolution", "channels"), [(8, 16), (5, 3), (1, 2)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_training_computes_the_same_depthwise_convolution_and_the_same_gradients(kernel, resolution, channels):
    layer = blocks.depthwise_conv(kernel, name="depthwise")
    images = tf.constant(np.random.default_rng(0).normal(size=(3, resolution, resolution, channels)).astype(np.float32))
    layer.build(images.shape)
    upstream = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)

    def run(training):
        with tf.GradientTape() as tape:
            tape.watch(images)
            output = layer(images, training=training)
            value = tf.reduce_sum(output * upstream)
        return output, *tape.gradient(value, [images, layer.kernel.value])

    plain = keras.layers.DepthwiseConv2D(layer.kernel_size, padding="same", use_bias=False)
    plain.build(images.shape)
    plain.kernel.assign(layer.kernel)
    for actual, inferred, of_keras in zip(run(True), run(False), (plain(images), None, None), strict=True):
        np.testing.assert_allclose(actual, inferred, atol=1e-4)
        if of_keras is not None:
            np.testing.assert_allclose(actual, of_keras, atol=1e-5)


def test_only_training_changes_the_graph_of_a_5x5_depthwise_convolution():
    layer = blocks.depthwise_conv(5, name="depthwise")
    layer.build((None, 8, 8, 4))

    def operations(training):
        function = tf.function(lambda images: layer(images, training=training))
        return {operation.type for operation in function.get_concrete_function(tf.TensorSpec([2, 8, 8, 4])).graph.get_operations()}

    assert "IdentityN" in operations(True) - operations(False)


# Saving.


def test_a_saved_model_of_every_block_is_the_same_model(tmp_path):
    inputs = keras.Input((8, 8, 4))
    rate, step = DropPathSchedule()(inputs)
    outputs = []
    for name, (make, _, strides, _) in BLOCKS.items():
        path = DropPath(len(outputs))(make(strides[-1])(inputs), rate, step)
        outputs.append(keras.layers.GlobalAveragePooling2D(name=name.replace(" ", "_").replace(",", ""))(path))
    outputs.append(keras.layers.GlobalAveragePooling2D()(BatchStatisticsNormalization(affine=True)(blocks.Subsample(1)(inputs))))
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(6)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    model.save(tmp_path / "blocks.keras")
    loaded, x = keras.models.load_model(tmp_path / "blocks.keras"), images(8)
    for training in (False, True):
        for expected, output in zip(model(x, training=training), loaded(x, training=training), strict=True):
            np.testing.assert_array_equal(output, expected)
