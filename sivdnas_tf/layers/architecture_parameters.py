"""The kinds of architecture parameters that a level of a search method can have (`methods.method.Method`)."""

import numpy as np
import tensorflow as tf

from sivdnas_tf.layers.mixing_weights import Certain, MixingWeights
from sivdnas_tf.layers.semi_implicit_dropout import GaussianDropout, SemiImplicitDropout
from sivdnas_tf.posterior import ALWAYS_KEPT


class NoParameters(Certain):
    """Stands in for the layer of a level that has no parameters: every sample is 1, nothing is learnt, and no variable exists.

    Args:
      shape: of what is multiplied.
    """

    mixing_variables = dropout_rate_variables = ()

    def __init__(self, shape):
        self.shape = shape

    def __call__(self, draw):
        """The gates of `draw`: ones, but where a caller closes some."""
        return draw.gate

    def expected_sample(self):
        """1 everywhere, float32 of `shape`."""
        return tf.ones(self.shape)

    def parameters(self):
        """`(weights, log dropout rates)`, NumPy arrays of `shape` that stand for what there is not: 1 and `posterior.ALWAYS_KEPT`."""
        return np.ones(self.shape, np.float32), np.full(self.shape, ALWAYS_KEPT, np.float32)


def make_parameters(kind, shape, *, mixing, groups=None, name, **rates):
    """The layer of a level's parameters.

    Args:
      kind: "semi_implicit", "gaussian", "weights" or "none".
      shape, mixing, groups, name: see `MixingWeights`.
      **rates: the arguments that `SemiImplicitDropout` adds to them; not read for the kinds that have no rates.
    """
    if kind == "none":
        return NoParameters(shape)
    if kind == "weights":
        return MixingWeights(shape, mixing=mixing, groups=groups, name=name)
    layer = {"semi_implicit": SemiImplicitDropout, "gaussian": GaussianDropout}[kind]
    return layer(shape, mixing=mixing, groups=groups, name=name, **rates)
