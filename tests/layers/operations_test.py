import keras
import numpy as np
import pytest
from reference import images, operation, randomise

from sivdnas_tf.errors import ConfigError, GenotypeError
from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.operations import candidate_operation, is_identity
from sivdnas_tf.profiling.costs import operation_cost
from sivdnas_tf.search_space import DARTS_PRIMITIVES, EVALUATION_OPERATIONS

CHANNELS, RESOLUTION = 6, 8
X = np.random.default_rng(0).normal(size=(2, RESOLUTION, RESOLUTION, CHANNELS)).astype(np.float32)


def trainable_params(layer):
    return sum(int(np.prod(variable.shape)) for variable in layer.trainable_variables)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("primitive", EVALUATION_OPERATIONS)
def test_parameters_are_those_that_costs_count_and_channels_stay(primitive, stride):
    layer = candidate_operation(primitive, channels=CHANNELS, stride=stride, name=primitive)
    output = layer(X)
    cost = operation_cost(primitive, channels=CHANNELS, resolution=RESOLUTION, stride=stride)
    assert trainable_params(layer) == cost.params
    assert output.shape == (2, RESOLUTION // stride, RESOLUTION // stride, CHANNELS)
    assert layer.compute_output_shape(X.shape) == output.shape
    assert layer.name == primitive


@pytest.mark.parametrize("size", [2, 7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("primitive", EVALUATION_OPERATIONS)
def test_outputs_are_those_of_the_definition(primitive, stride, size):
    """Smaller than most kernels, odd, and even; for every variable its own random values, batch-norm's statistics included."""
    layer, x = candidate_operation(primitive, channels=CHANNELS, stride=stride), images(size, CHANNELS)
    if (primitive, stride, size) == ("skip_connect", 2, 7):
        with pytest.raises(ValueError, match=r"factorized reduce halves even sizes\. Received: input_shape=\(3, 7, 7, 6\)"):
            layer.build(x.shape)
        return
    layer.build(x.shape)
    expected = operation(primitive, x.astype(np.float64), randomise(layer), stride)
    output = layer(x, training=False)
    assert output.shape == expected.shape == (3, -(-size // stride), -(-size // stride), CHANNELS)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-3)
    assert primitive == "none" or np.abs(expected).max() > 0.1


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("primitive", DARTS_PRIMITIVES)
def test_searched_operations_hold_convolutions_only_and_normalise_pools(primitive, stride):
    layer = candidate_operation(
        primitive, channels=CHANNELS, stride=stride, normalization="batch_statistics", pool_normalization="batch_statistics"
    )
    output = layer(X).numpy()
    assert not layer.non_trainable_variables
    assert all(variable.path.endswith("kernel") for variable in layer.trainable_variables)
    if not is_identity(primitive, stride):
        np.testing.assert_allclose(output.mean(axis=(0, 1, 2)), 0.0, atol=1e-5)
        np.testing.assert_allclose(output.std(axis=(0, 1, 2)), 1.0, atol=0.02)


def test_pools_are_normalised_on_request_only():
    def variables(**kwargs):
        layer = candidate_operation("avg_pool_3x3", channels=CHANNELS, stride=1, **kwargs)
        layer.build(X.shape)
        return len(layer.variables)

    assert variables() == 0
    assert variables(normalization="synchronized_batch") == 0
    assert variables(pool_normalization="batch") == 4


def test_identities_are_the_skips_of_stride_one():
    identities = [(primitive, stride) for primitive in EVALUATION_OPERATIONS for stride in (1, 2) if is_identity(primitive, stride)]
    assert identities == [("skip_connect", 1)]
    layer = candidate_operation("skip_connect", channels=CHANNELS, stride=1)
    assert isinstance(layer, keras.layers.Identity)
    np.testing.assert_array_equal(layer(X), X)
    assert isinstance(candidate_operation("skip_connect", channels=CHANNELS, stride=2), blocks.FactorizedReduce)


def test_an_unknown_primitive_is_refused_naming_the_nearest():
    with pytest.raises(GenotypeError, match=r"unknown operation\. Did you mean 'sep_conv_3x3'\?.*Received: 'sep_conv_3x'"):
        candidate_operation("sep_conv_3x", channels=CHANNELS, stride=1)


@pytest.mark.parametrize("stride", [0, 3])
def test_other_strides_are_refused(stride):
    with pytest.raises(ConfigError, match=f"stride 1 or 2.*Received: stride={stride}"):
        candidate_operation("sep_conv_3x3", channels=CHANNELS, stride=stride)
