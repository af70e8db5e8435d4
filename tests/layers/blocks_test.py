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
from sivdnas_tf.training.distribution import make_strategy

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


def test_unknown_arguments_are_refused():
    with pytest.raises(ValueError, match=r"normalization must be one of.*Received: 'layer'"):
        blocks.make_normalization("layer", "norm")
    with pytest.raises(ValueError, match=r"kind of pool must be.*Received: 'median'"):
        blocks.Pool("median")


# Normalisation.


@pytest.mark.parametrize("kind", ["batch", "synchronized_batch"])
def test_evaluation_normalization_is_pytorchs(kind):
    layer, x = blocks.make_normalization(kind, "norm"), images(4, seed=2)
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
    for make in (blocks.BatchNormalization, keras.layers.BatchNormalization):
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
    layer = blocks.BatchNormalization(name="norm")
    layer.build(x.shape)
    layer.trainable = False
    np.testing.assert_allclose(layer(x, training=True), x / np.sqrt(1 + layer.epsilon), rtol=1e-6)


@pytest.mark.parametrize(("offset", "size"), [(0, 6), (1, 6), (0, 5), (1, 5)])
def test_subsampling_is_a_strided_slice(offset, size):
    x = tf.constant(images(size, seed=8))
    np.testing.assert_array_equal(blocks.subsample(x, offset), x[:, offset::2, offset::2, :])


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_search_normalization_takes_the_statistics_of_the_batch(affine, training):
    layer, x = blocks.make_normalization("batch_statistics", "norm", affine=affine), images(5, seed=3) * 3.0 + 2.0
    y = layer(x, training=training)
    assert len(layer.trainable_variables) == (2 if affine else 0) and not layer.non_trainable_variables
    expected = (x - x.mean(axis=(0, 1, 2))) / np.sqrt(x.var(axis=(0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    if affine:
        layer.scale.assign([1.0, 2.0, 3.0, 4.0])
        layer.offset.assign([0.0, -1.0, 1.0, 5.0])
        np.testing.assert_allclose(layer(x), expected * [1.0, 2.0, 3.0, 4.0] + [0.0, -1.0, 1.0, 5.0], atol=1e-4)


def test_search_normalization_passes_the_gradient_of_the_statistics():
    layer, x = blocks.BatchStatisticsNormalization(), tf.constant(images(3, seed=4))
    weights = np.random.default_rng(5).normal(size=x.shape)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(layer(x) * weights.astype(np.float32))
    gradient = tape.gradient(y, x).numpy()
    # A shift of a channel changes nothing, nor does its scale (but for epsilon).
    np.testing.assert_allclose(gradient.sum(axis=(0, 1, 2)), 0.0, atol=1e-4)
    np.testing.assert_allclose((gradient * x).numpy().sum(axis=(0, 1, 2)), 0.0, atol=1e-3)
    assert np.abs(gradient).max() > 0.01


@pytest.mark.parametrize("normalization", blocks.NORMALIZATIONS)
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


# Drop path.

ONES = tf.ones([4096, 1, 1, 2])


def dropped(rate, step=0, index=0, seed=0, inputs=ONES):
    return blocks.DropPath(index, seed=seed)(inputs, tf.constant(rate), tf.constant(step), training=True).numpy()


def test_drop_path_at_rate_zero_is_the_identity():
    np.testing.assert_array_equal(dropped(0.0), ONES)


@pytest.mark.parametrize("training", [False, None])
def test_drop_path_in_inference_is_the_identity(training):
    output = blocks.DropPath(0)(ONES, tf.constant(0.5), tf.constant(0), training=training)
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
    layer = blocks.DropPath(0)

    @tf.function
    def run():
        return strategy.run(lambda: layer(ONES, tf.constant(0.5), tf.constant(0), training=True))

    first, second = (value.numpy()[:, 0, 0, 0] > 0 for value in strategy.experimental_local_results(run()))
    np.testing.assert_array_equal(first, dropped(0.5)[:, 0, 0, 0] > 0)
    assert abs((first == second).mean() - 0.5) < 5.0 * 0.5 / np.sqrt(len(first))


def test_drop_path_schedule_is_state_that_feeds_every_drop_path():
    images = keras.Input((4, 4, 2))
    rate, step = blocks.DropPathSchedule(name="schedule")(images)
    model = keras.Model(images, blocks.DropPath(0)(images, rate, step))
    schedule, x = model.get_layer("schedule"), np.ones((64, 4, 4, 2), np.float32)
    assert len(model.non_trainable_variables) == 2 and not model.trainable_variables
    np.testing.assert_array_equal(model(x, training=True), x)
    schedule.rate.assign(0.5)
    first = model(x, training=True).numpy()
    schedule.step.assign(1)
    second = model(x, training=True).numpy()
    assert set(np.unique(first)) == set(np.unique(second)) == {0.0, 2.0}
    assert not np.array_equal(first, second)


# Saving.


def test_a_saved_model_of_every_block_is_the_same_model(tmp_path):
    inputs = keras.Input((8, 8, 4))
    rate, step = blocks.DropPathSchedule()(inputs)
    outputs = []
    for name, (make, _, strides, _) in BLOCKS.items():
        path = blocks.DropPath(len(outputs))(make(strides[-1])(inputs), rate, step)
        outputs.append(keras.layers.GlobalAveragePooling2D(name=name.replace(" ", "_").replace(",", ""))(path))
    outputs.append(keras.layers.GlobalAveragePooling2D()(blocks.BatchStatisticsNormalization(affine=True)(blocks.Subsample(1)(inputs))))
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(6)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(size=variable.shape))
    model.save(tmp_path / "blocks.keras")
    loaded, x = keras.models.load_model(tmp_path / "blocks.keras"), images(8)
    for training in (False, True):
        for expected, output in zip(model(x, training=training), loaded(x, training=training), strict=True):
            np.testing.assert_array_equal(output, expected)
