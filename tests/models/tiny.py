"""A search space that traces in a second, and what tests of a supernet of it share."""

import keras
import numpy as np

from sivdnas_tf.search_space import SearchSpace

# The smallest space with a pool, an identity and convolutions, so that tracing takes a second: five edges of three operations.
TINY = SearchSpace("tiny", ("max_pool_3x3", "skip_connect", "sep_conv_3x3"), n_nodes=2)
BATCH = 4


def compiled(network, weight_rate=0.1):
    """Both optimizers and everything that a step can do: momentum, decay, clipping."""
    network.compile(
        keras.optimizers.SGD(weight_rate, momentum=0.9),
        keras.optimizers.Adam(0.01, 0.5, 0.999),
        kl_weight=0.05,
        weight_decay=3e-4,
        architecture_weight_decay=1e-3,
        gradient_clip_norm=0.5,
    )
    return network


def reset(network, initial):
    for variable, value in zip(network.variables, initial, strict=True):
        variable.assign(value)
    return network


def values(variables):
    return [variable.numpy() for variable in variables]


def assert_same(before, after):
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first, second)


def differ(before, after):
    return [not np.array_equal(first, second) for first, second in zip(before, after, strict=True)]
