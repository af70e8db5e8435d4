"""The Keras layer that owns one set of architecture parameters: weights (w or phi), dropout rates, draws and KL (SI-VDNAS, Section 3)."""

import math

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from sivdnas_tf.errors import ConfigError, nearest
from sivdnas_tf.layers.mixing_weights import MIXINGS, MixingWeights
from sivdnas_tf.variational import kl  # noqa: F401  (registers the divergence that tfd.kl_divergence looks up)
from sivdnas_tf.variational.distributions import AnnealedSemiImplicitARDPrior, SemiImplicitPosterior

tfd = tfp.distributions

__all__ = ["GATE_GRADIENTS", "MIXINGS", "GaussianDropout", "SemiImplicitDropout"]

GATE_GRADIENTS = ("none", "straight_through", "relaxed")


@keras.saving.register_keras_serializable(package="sivdnas_tf")
class SemiImplicitDropout(MixingWeights):
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
        # Before what checks them and builds by them.
        self.initial_log_dropout_rate = float(initial_log_dropout_rate)
        self.gate_gradient, self.gate_temperature = gate_gradient, float(gate_temperature)
        super().__init__(shape, mixing=mixing, groups=groups, name=name, trainable=trainable)

    def build(self, input_shape=None):
        """Creates the two variables, at construction: nothing about them depends on an input."""
        super().build(input_shape)
        self.log_dropout_rate = self._add_parameter("log_dropout_rate", self.initial_log_dropout_rate)

    @property
    def dropout_rate_variables(self):
        """The log dropout rates: a list of one variable."""
        return [self.log_dropout_rate]

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

    def kl_divergence(self, draw, prior_gap, centered=False):
        """KL of posterior and annealed prior given the gates of `draw`, summed over all parameters (Eq. 17, 18), in nats.

        Args:
          draw: a `distributions.Draw` of `shape`; only its gate matters.
          prior_gap: scalar, (1 - lambda)^2.
          centered: whether the gradient to the log dropout rates is centred, over the last axis or over the members of each group: the same
            value, but no pull on all of them together.

        Returns:
          float32 scalar.
        """
        rates = tf.convert_to_tensor(self.log_dropout_rate)
        if centered:
            means = self._mean(rates)
            rates = rates - means + tf.stop_gradient(means)
        posterior = SemiImplicitPosterior(self.mixing_weights(), rates).given(draw.gate)
        prior = AnnealedSemiImplicitARDPrior.sharing(posterior, tf.cast(prior_gap, tf.float32))
        return tf.reduce_sum(tfd.kl_divergence(posterior, prior))

    def _mean(self, values):
        """Over the last axis, or over the members of each group; of `shape`, or of a shape that broadcasts to it."""
        if self.groups is None:
            return tf.reduce_mean(values, axis=-1, keepdims=True)
        names, segments = np.unique(self.groups, return_inverse=True)
        return tf.gather(tf.math.unsorted_segment_mean(values, segments, len(names)), segments)

    def keep_probability(self):
        """P(gate = 1) = 1 / (1 + delta), float32 of `shape`."""
        return self.posterior().keep_probability

    def expected_sample(self):
        """Mean of tau over gates and noise, gamma / (1 + delta), float32 of `shape`: for inference without draws."""
        return self.posterior().mean()

    def parameters(self):
        """`(weights, log dropout rates)` as NumPy arrays of `shape`."""
        return self.weight.numpy(), self.log_dropout_rate.numpy()

    def get_config(self):
        """Constructor arguments as JSON types."""
        return {
            **super().get_config(),
            "initial_log_dropout_rate": self.initial_log_dropout_rate,
            "gate_gradient": self.gate_gradient,
            "gate_temperature": self.gate_temperature,
        }

    def _check_arguments(self):
        super()._check_arguments()
        if self.gate_gradient not in GATE_GRADIENTS:
            raise ConfigError(
                f"unknown gate_gradient.{nearest(self.gate_gradient, GATE_GRADIENTS)} Expected one of {', '.join(GATE_GRADIENTS)}. "
                f"Received: gate_gradient={self.gate_gradient!r}"
            )
        if not self.gate_temperature > 0.0:
            raise ConfigError(f"gate_temperature must be above 0. Received: gate_temperature={self.gate_temperature}")
        if not math.isfinite(self.initial_log_dropout_rate):
            raise ConfigError(
                f"initial_log_dropout_rate must be finite. Received: initial_log_dropout_rate={self.initial_log_dropout_rate}"
            )


@keras.saving.register_keras_serializable(package="sivdnas_tf")
class GaussianDropout(SemiImplicitDropout):
    """Weights with multiplicative Gaussian noise and no gates: tau = gamma * (1 + sqrt(delta) * noise), Phi = 1 (H-VDNAS, V-VDNAS).

    keep_probability still is 1 / (1 + delta): not of a gate, but what a derivation holds against a threshold, or ranks by. With prior_gap 1
    (lambda = 0) the KL divergence is that of automatic relevance determination, 1/2 log(1 + 1/delta). Arguments as `SemiImplicitDropout`;
    without gates, gate_gradient is "none".
    """

    def draw(self, seed, noise_shape=(), noise_seed=None):
        """Noise as `SemiImplicitDropout.draw`, and gates of 1."""
        return super().draw(seed, noise_shape, noise_seed)._replace(gate=tf.ones(self.shape))

    def expected_sample(self):
        """gamma, float32 of `shape`: the noise has mean 0."""
        return self.mixing_weights()

    def _check_arguments(self):
        super()._check_arguments()
        if self.gate_gradient != "none":
            raise ConfigError(f"without gates, gate_gradient must be 'none'. Received: gate_gradient={self.gate_gradient!r}")
