"""The Keras layer that owns weights (w or phi) and how they become mixing weights: all that DARTS has, and the base of what has more."""

import keras
import numpy as np
import tensorflow as tf

from sivdnas_tf.errors import ConfigError, nearest
from sivdnas_tf.posterior import ALWAYS_KEPT, MIXINGS
from sivdnas_tf.variational.distributions import Draw


class Certain:
    """What parameters of `shape` without a posterior have in common: nothing is drawn, and there is no divergence."""

    def draw(self, seed, noise_shape=(), noise_seed=None):
        """Nothing is left to chance, whatever the arguments: a `Draw` of ones and zeros."""
        del seed, noise_shape, noise_seed
        return Draw(tf.ones(self.shape), tf.zeros(self.shape))

    def differentiable(self, draw, seed):
        """`draw`: there is no rate that a gate could pass gradient to."""
        del seed
        return draw

    def kl_divergence(self, draw, prior_gap, centered=False):
        """0: there is no posterior."""
        del draw, prior_gap, centered
        return tf.zeros([])

    def keep_probability(self):
        """1 everywhere, float32 of `shape`."""
        return tf.ones(self.shape)


@keras.saving.register_keras_serializable(package="sivdnas_tf")
class MixingWeights(Certain, keras.layers.Layer):
    """Weights gamma without gate, noise or dropout rate: a sample is gamma (DARTS, Eq. 2, with mixing="softmax").

    Called and drawn like `SemiImplicitDropout`, which it is the limit delta -> 0 of. Always float32, whatever the precision policy:
    architecture parameters are few, and their updates small.

    Args:
      shape: of the parameters: (E, P) for the operations of every edge, (E,) for the edges.
      mixing: "identity" (the weights as they are, initially 1), "average" (the weights, initially 1, over their number along the last
        axis or in their group: a sum that starts as an average and whose terms do not compete), "sigmoid" (initially 1/2), or
        "softmax": over the last axis, or over the members of each group. For the last two the variable starts at 0.
      groups: for a 1-D shape, E integers: the node that each edge enters, over whose edges "average" and "softmax" normalise.
        Required by them there, and without influence on the other mixings.
      name: of the layer; its variable is `{name}/weight`.
      trainable: whether it is trainable.

    Raises:
      ConfigError: for an unknown mixing, or groups that do not fit the shape.
    """

    def __init__(self, shape, *, mixing="identity", groups=None, name=None, trainable=True):
        super().__init__(name=name, trainable=trainable, dtype="float32")
        self.shape = tuple(int(size) for size in shape)
        self.mixing = mixing
        self.groups = None if groups is None else tuple(int(group) for group in groups)
        self._check_arguments()
        self.build()

    def build(self, input_shape=None):
        """Creates the variables, at construction: nothing about them depends on an input."""
        del input_shape
        self.weight = self._add_parameter("weight", 1.0 if self.mixing in ("identity", "average") else 0.0)
        self.built = True

    @property
    def mixing_variables(self):
        """The weights: a list of one variable, the one that weight decay belongs on."""
        return [self.weight]

    @property
    def dropout_rate_variables(self):
        """None."""
        return []

    def mixing_weights(self):
        """gamma after mixing, float32 of `shape`."""
        weight = tf.convert_to_tensor(self.weight)
        if self.mixing == "sigmoid":
            return tf.sigmoid(weight)
        if self.mixing == "average":
            return weight / (self.shape[-1] if self.groups is None else _group_sizes(self.groups))
        if self.mixing == "softmax":
            return tf.nn.softmax(weight, axis=-1) if self.groups is None else _segment_softmax(weight, self.groups)
        return weight

    def call(self, draw):
        """The sample of a step: gate * gamma, float32 of `shape`."""
        gate, _ = draw
        return gate * self.mixing_weights()

    def compute_output_shape(self, draw_shape):
        """`shape`, whatever the draw's."""
        del draw_shape
        return self.shape

    def expected_sample(self):
        """gamma, float32 of `shape`."""
        return self.mixing_weights()

    def parameters(self):
        """`(weights, log dropout rates)` as NumPy arrays of `shape`; `posterior.ALWAYS_KEPT` stands for the rates that there are not."""
        return self.weight.numpy(), np.full(self.shape, ALWAYS_KEPT, np.float32)

    def get_config(self):
        """Constructor arguments as JSON types."""
        config = super().get_config()
        del config["dtype"]  # not a choice
        groups = None if self.groups is None else list(self.groups)
        return {**config, "shape": list(self.shape), "mixing": self.mixing, "groups": groups}

    def _add_parameter(self, name, initial_value):
        return self.add_weight(
            name=name,
            shape=self.shape,
            initializer=keras.initializers.Constant(initial_value),
            dtype="float32",
            autocast=False,  # methods other than call run in the caller's autocast scope, which may be bfloat16
        )

    def _check_arguments(self):
        if self.mixing not in MIXINGS:
            raise ConfigError(
                f"unknown mixing.{nearest(self.mixing, MIXINGS)} Expected one of {', '.join(MIXINGS)}. Received: mixing={self.mixing!r}"
            )
        if not self.shape or min(self.shape) < 1:
            raise ConfigError(f"shape must have at least one axis, every one of at least 1. Received: shape={self.shape}")
        if self.groups is not None and self.shape != (len(self.groups),):
            raise ConfigError(
                "groups must hold one integer for each parameter of a 1-D shape. "
                f"Received: {len(self.groups)} groups={self.groups}, shape={self.shape}"
            )
        if self.mixing in ("average", "softmax") and self.groups is None and len(self.shape) == 1:
            raise ConfigError(f"{self.mixing} over edges needs groups, the node that each edge enters. Received: groups=None")


def _group_sizes(groups):
    """float32 [E]: how many members the group of each has."""
    _, segments, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return counts[segments].astype(np.float32)


def _segment_softmax(logits, groups):
    """Softmax of `logits` [E] over the members of each group; groups are any E integers, in any order."""
    names, segments = np.unique(groups, return_inverse=True)
    largest = tf.math.unsorted_segment_max(logits, segments, len(names))
    exponentials = tf.exp(logits - tf.stop_gradient(tf.gather(largest, segments)))
    return exponentials / tf.gather(tf.math.unsorted_segment_sum(exponentials, segments, len(names)), segments)
