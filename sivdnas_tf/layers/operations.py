"""The table from primitive names to candidate operations: the only one, used by search and evaluation."""

import functools

import keras

from sivdnas_tf.errors import ConfigError, GenotypeError, nearest
from sivdnas_tf.layers import blocks
from sivdnas_tf.search_space import EVALUATION_OPERATIONS


def _skip_connect(*, channels, stride, normalization, pool_normalization, name):
    del pool_normalization
    if stride == 1:
        return keras.layers.Identity(name=name)
    return blocks.FactorizedReduce(channels, normalization=normalization, name=name)


def _none(*, channels, stride, normalization, pool_normalization, name):
    del channels, normalization, pool_normalization
    return blocks.Zero(stride, name=name)


def _pool(kind, *, channels, stride, normalization, pool_normalization, name):
    del channels, normalization
    return blocks.Pool(kind, stride, normalization=pool_normalization, name=name)


def _convolution(block, kernel, *, channels, stride, normalization, pool_normalization, name):
    del channels, pool_normalization
    return block(kernel, stride, normalization=normalization, name=name)


def _plain_convolution(kernel, *, channels, stride, normalization, pool_normalization, name):
    del pool_normalization
    return blocks.ReLUConvBN(channels, normalization=normalization, kernel=kernel, stride=stride, name=name)


_BUILDERS = {
    "none": _none,
    "max_pool_3x3": functools.partial(_pool, "max"),
    "avg_pool_3x3": functools.partial(_pool, "average"),
    "skip_connect": _skip_connect,
    "sep_conv_3x3": functools.partial(_convolution, blocks.SepConv, 3),
    "sep_conv_5x5": functools.partial(_convolution, blocks.SepConv, 5),
    "dil_conv_3x3": functools.partial(_convolution, blocks.DilConv, 3),
    "dil_conv_5x5": functools.partial(_convolution, blocks.DilConv, 5),
    "sep_conv_7x7": functools.partial(_convolution, blocks.SepConv, 7),
    "conv_7x1_1x7": functools.partial(_convolution, blocks.ConvPair, 7),
    "nor_conv_1x1": functools.partial(_plain_convolution, 1),
    "nor_conv_3x3": functools.partial(_plain_convolution, 3),
}
if tuple(sorted(_BUILDERS)) != tuple(sorted(EVALUATION_OPERATIONS)):
    raise RuntimeError("layers.operations and search_space name different operations")


def candidate_operation(primitive, *, channels, stride, normalization="batch", pool_normalization=None, name=None):
    """The Keras layer of a primitive, mapping `[batch, n, n, channels]` to `[batch, ceil(n / stride), …, channels]`.

    Args:
      primitive: one of `EVALUATION_OPERATIONS`.
      channels: of input and output.
      stride: 1 or 2.
      normalization: one of `layers.normalization.NORMALIZATIONS`, for what has convolutions.
      pool_normalization: the same for pools; None, as the reference evaluates, for none.
      name: of the layer.

    Raises:
      GenotypeError: for an unknown primitive.
      ConfigError: for another stride.
    """
    if primitive not in _BUILDERS:
        raise GenotypeError(
            f"unknown operation.{nearest(primitive, _BUILDERS)} Expected one of {', '.join(_BUILDERS)}. Received: {primitive!r}"
        )
    if stride not in (1, 2):
        raise ConfigError(f"an operation has stride 1 or 2. Received: stride={stride}")
    return _BUILDERS[primitive](
        channels=channels, stride=stride, normalization=normalization, pool_normalization=pool_normalization, name=name
    )


def is_identity(primitive, stride):
    """Whether the operation passes its input on unchanged: drop path leaves such paths alone, as the reference does."""
    return primitive == "skip_connect" and stride == 1
