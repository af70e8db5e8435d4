"""A search space that traces in a second, and what tests of a supernet of it share."""

import numpy as np

from sivdnas_tf.search_space import SearchSpace

# The smallest space with a pool, an identity and convolutions, so that tracing takes a second: five edges of three operations.
TINY = SearchSpace("tiny", ("max_pool_3x3", "skip_connect", "sep_conv_3x3"), n_nodes=2)
BATCH = 4


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
