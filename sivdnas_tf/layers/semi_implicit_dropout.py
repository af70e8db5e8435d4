"""The Keras layer that owns one set of architecture parameters: weights (w or phi), dropout rates, draws and KL (SI-VDNAS, Section 3)."""

import math

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from sivdnas_tf.errors import ConfigError, nearest
from sivdnas_tf.variational import kl  # noqa: F401  (registers the divergence that tfd.kl_divergence looks up)
from sivdnas_tf.variational.distributions import AnnealedSemiImplicitARDPrior, SemiImplicitPosterior

tfd = tfp.distributions

MIXINGS = ("identity", "average", "sigmoid", "softmax")
GATE_GRADIENTS = ("none", "straight_through", "relaxed")


@keras.saving.register_keras_serializable(package="sivdnas_tf")
class SemiImplicitDropout(keras.layers.Layer):
    """Weights gamma with multiplicative noise of their own learnt rate: tau = gamma * gate * (1 + sqrt(delta) * noise).

    The paper does not say how w and phi become mixing weights (Eq. 12 treats them as free parameters); `mixing` chooses, and gamma
    above is the mixed weight. The draw is an argument, not state: one draw serves both updates of a step (Algorithm 1).

        layer = SemiImplicitDropout((14, 7), name="normal_operations")
        draw = layer.draw(step_seed(seed, step, "normal_operations"))
        tau = layer(draw)  # [14, 7]

    Always float32, whatever the precision policy: architecture parameters are few, and their updates small.

    Args:
      shape: of the parameters: (E, P) for the operations of every edge, (E,) for the edges.
      initial_log_dropout_rate: log delta at the start, everywhere.
      mixing: "identity" (the weights as they are, initially 1), "average" (the weights, initially 1, over their number along the last
        axis or in their group: a sum that starts as an average and whose terms do not compete), "sigmoid" (initially 1/2), or
        "softmax": over the last axis, or over the members of each group. For the last two the variable starts at 0.
      gate_gradient: what gradient `differentiable` lets through a gate: "none" (the paper), "straight_through" or "relaxed".
      gate_temperature: of "relaxed", above 0: the smaller, the closer to a Bernoulli draw, and the noisier the gradient.
      groups: for a 1-D shape, E integers: the node that each edge enters, over whose edges "average" and "softmax" normalise.
        Required by them there, and without influence on the other mixings.
      name: of the layer; its variables are `{name}/weight` and `{name}/log_dropout_rate`.
      trainable: whether the variables are trainable.

    Raises:
      ConfigError: for an unknown mixing or gate gradient, a rate that is not finite, a temperature that is not positive, or groups that
        do not fit the shape.
    """

    def __init__(
        self,
        shape,
        *,
        initial_log_dropout_rate=-5.0,
        mixing="identity",
        gate_gradient="none",
        gate_temperature=0.5,
        groups=None,
        name=None,
        trainable=True,
    ):
        super().__init__(name=name, trainable=trainable, dtype="float32")
        self.shape = tuple(int(size) for size in shape)
        self.initial_log_dropout_rate = float(initial_log_dropout_rate)
        self.mixing = mixing
        self.gate_gradient, self.gate_temperature = gate_gradient, float(gate_temperature)
        self.groups = None if groups is None else tuple(int(group) for group in groups)
        self._check_arguments()
        self.build()

    def build(self, input_shape=None):
        """Creates the two variables, at construction: nothing about them depends on an input."""
        del input_shape
        self.weight = self._add_parameter("weight", 1.0 if self.mixing in ("identity", "average") else 0.0)
        self.log_dropout_rate = self._add_parameter("log_dropout_rate", self.initial_log_dropout_rate)
        self.built = True

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

    def posterior(self):
        """The `SemiImplicitPosterior` of the current parameters, of batch shape `shape`, without a gate."""
        return SemiImplicitPosterior(self.mixing_weights(), tf.convert_to_tensor(self.log_dropout_rate))

    def draw(self, seed, noise_shape=(), noise_seed=None):
        """Draws gates at the current dropout rates, and noise.

        Args:
          seed: int32 of shape [2], see `step_seed`; other parameters that must be independent of these need another one.
          noise_shape: of the places that share the gates but not the noise, which then is `[*noise_shape, *shape]`.
          noise_seed: of the noise where it is not `seed` that decides.

        Returns:
          A `distributions.Draw` of float32 tensors of `shape`, fixed by the seeds and the rates alone (the same in every replica), that
          passes no gradient.
        """
        draw = self.posterior().draw(seed)
        if self.gate_gradient == "relaxed":
            draw = draw._replace(gate=tf.stop_gradient(tf.cast(self._relaxed_gate(seed) > 0.5, tf.float32)))
        if noise_seed is not None:
            shape = tf.concat([tf.cast(tf.stack(noise_shape), tf.int32), self.shape], axis=0) if noise_shape else self.shape
            draw = draw._replace(noise=tf.random.stateless_normal(shape, noise_seed))
        return draw

    def differentiable(self, draw, seed):
        """`draw` with a gate that passes gradient to the dropout rates, as `gate_gradient` says.

        "straight_through": the gate that was drawn, with the gradient of its probability (Bengio et al. 2013). "relaxed": TFP's
        RelaxedBernoulli in (0, 1), of which the gate drawn is the rounding (Maddison et al. 2017; Jang et al. 2017).

        Args:
          draw: from `draw`.
          seed: that of `draw`.
        """
        if self.gate_gradient == "straight_through":
            keep_probability = self.keep_probability()
            return draw._replace(gate=draw.gate + (keep_probability - tf.stop_gradient(keep_probability)))
        if self.gate_gradient == "relaxed":
            return draw._replace(gate=self._relaxed_gate(seed))
        return draw

    def _relaxed_gate(self, seed):
        logits = -tf.convert_to_tensor(self.log_dropout_rate)
        (gate_seed,) = tfp.random.split_seed(seed, n=1, salt="relaxed_gate")
        return tfd.RelaxedBernoulli(self.gate_temperature, logits=logits).sample(seed=gate_seed)

    def call(self, draw):
        """The sample tau of `draw` at the current parameters, float32 of the noise's shape; gradients flow to both variables."""
        gate, noise = draw  # by position: Keras hands a loaded Functional model's NamedTuple on as a list
        return self.posterior().reparameterize(gate, noise)

    def compute_output_shape(self, draw_shape):
        """`shape`, whatever the draw's."""
        del draw_shape
        return self.shape

    def kl_divergence(self, draw, prior_gap):
        """KL of posterior and annealed prior given the gates of `draw`, summed over all parameters (Eq. 17, 18), in nats.

        Args:
          draw: a `distributions.Draw` of `shape`; only its gate matters.
          prior_gap: scalar, (1 - lambda)^2.

        Returns:
          float32 scalar.
        """
        posterior = self.posterior().given(draw.gate)
        prior = AnnealedSemiImplicitARDPrior.sharing(posterior, tf.cast(prior_gap, tf.float32))
        return tf.reduce_sum(tfd.kl_divergence(posterior, prior))

    def keep_probability(self):
        """P(gate = 1) = 1 / (1 + delta), float32 of `shape`."""
        return self.posterior().keep_probability

    def expected_sample(self):
        """Mean of tau over gates and noise, gamma / (1 + delta), float32 of `shape`: for inference without draws."""
        return self.posterior().mean()

    def get_config(self):
        """Constructor arguments as JSON types."""
        config = super().get_config()
        del config["dtype"]  # not a choice
        return {
            **config,
            "shape": list(self.shape),
            "initial_log_dropout_rate": self.initial_log_dropout_rate,
            "mixing": self.mixing,
            "gate_gradient": self.gate_gradient,
            "gate_temperature": self.gate_temperature,
            "groups": None if self.groups is None else list(self.groups),
        }

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
        if self.gate_gradient not in GATE_GRADIENTS:
            raise ConfigError(
                f"unknown gate_gradient.{nearest(self.gate_gradient, GATE_GRADIENTS)} Expected one of {', '.join(GATE_GRADIENTS)}. "
                f"Received: gate_gradient={self.gate_gradient!r}"
            )
        if not self.gate_temperature > 0.0:
            raise ConfigError(f"gate_temperature must be above 0. Received: gate_temperature={self.gate_temperature}")
        if not self.shape or min(self.shape) < 1:
            raise ConfigError(f"shape must have at least one axis, every one of at least 1. Received: shape={self.shape}")
        if not math.isfinite(self.initial_log_dropout_rate):
            raise ConfigError(
                f"initial_log_dropout_rate must be finite. Received: initial_log_dropout_rate={self.initial_log_dropout_rate}"
            )
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
