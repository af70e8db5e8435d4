"""The semi-implicit posterior and its annealed ARD prior as TensorFlow Probability distributions (SI-VDNAS, Sections 3.1 and 3.2).

Symbols: gamma is a `weight` (w of an operation or phi of an edge), delta > 0 its dropout rate, stored as its logarithm, and
Phi its `gate`, 1 = kept, with P(gate = 1) = keep_probability = 1 / (1 + delta). Import `sivdnas_tf.variational.kl` as well to
register the KL divergence of the two.
"""

import zlib
from typing import NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import dtype_util, tensor_util

tfd = tfp.distributions


class Draw(NamedTuple):
    """What one step draws for a set of architecture parameters; tensors of the parameters' shape.

    Attributes:
      gate: 1 = kept, 0 = dropped; passes no gradient.
      noise: standard normal, independent of the gate; with leading axes, where several places share the gate.
    """

    gate: tf.Tensor
    noise: tf.Tensor


def step_seed(seed, step, purpose):
    """A stateless seed fixed by its arguments alone: the same in every replica and after a resume, without generator state.

    Args:
      seed: int32 scalar, the run's seed.
      step: integer scalar, tensor or variable.
      purpose: what the random numbers are for: a string, or an integer scalar. Draws that must be independent of each other need
        different purposes.

    Returns:
      int32 tensor of shape [2], for TFP's `seed=` and for `tf.random.stateless_*`.
    """
    if isinstance(purpose, str):
        purpose = zlib.crc32(purpose.encode()) & 0x7FFFFFFF  # Python's own hash of a string differs between processes
    seed = tf.stack([tf.cast(seed, tf.int32), 0])
    for data in (step, purpose):  # as int32: an int64 step would give an int64 seed, which TFP refuses
        seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(data, tf.int32))
    return seed


def optimal_scale(weight, log_dropout_rate, prior_gap):
    """Standard deviation of the prior at its optimal precision, 1 / sqrt(eta*) = |gamma| sqrt(prior_gap + delta) (Eq. 10).

    Args:
      weight, log_dropout_rate, prior_gap: gamma, log delta and (1 - lambda)^2; floating-point tensors that broadcast.

    Returns:
      Tensor of the broadcast shape.
    """
    return tf.abs(weight) * tf.sqrt(prior_gap + tf.exp(log_dropout_rate))


class _GatedGaussian(tfd.Distribution):
    """N(m * gate, s^2 * gate) given a gate; without one, the mixture of both gates: an atom at 0 and N(m, s^2).

    Subclasses give m = `_kept_loc()` and s = `_kept_scale()`. A scale of 0, whether by the gate or by the weight, never reaches a
    density: log_prob, stddev and their gradients stay free of nan.
    """

    def __init__(self, weight, log_dropout_rate, gate, dtype, validate_args, allow_nan_stats, parameters, name):
        self._weight = tensor_util.convert_nonref_to_tensor(weight, dtype=dtype, name="weight")
        self._log_dropout_rate = tensor_util.convert_nonref_to_tensor(log_dropout_rate, dtype=dtype, name="log_dropout_rate")
        self._gate = gate if gate is None or tensor_util.is_ref(gate) else tf.cast(gate, dtype, name="gate")
        super().__init__(
            dtype=dtype,
            # No gradient passes through the draw of a gate; given the gate, all of it passes.
            reparameterization_type=tfd.NOT_REPARAMETERIZED if gate is None else tfd.FULLY_REPARAMETERIZED,
            validate_args=validate_args,
            allow_nan_stats=allow_nan_stats,
            parameters=parameters,
            name=name,
        )

    @property
    def weight(self):
        """gamma."""
        return self._weight

    @property
    def log_dropout_rate(self):
        """log delta."""
        return self._log_dropout_rate

    @property
    def gate(self):
        """The gate that is conditioned on, or None."""
        return self._gate

    @property
    def keep_probability(self):
        """P(gate = 1) = 1 / (1 + delta) = sigmoid(-log delta), of the shape of `log_dropout_rate`."""
        return tf.sigmoid(-tf.convert_to_tensor(self.log_dropout_rate))

    @property
    def gate_distribution(self):
        """Bernoulli over gates, one a batch member, of this distribution's dtype."""
        logits = tf.broadcast_to(-tf.convert_to_tensor(self.log_dropout_rate), self.batch_shape_tensor())
        return tfd.Bernoulli(logits=logits, dtype=self.dtype)

    def given(self, gate):
        """The same distribution conditioned on `gate`: zeros and ones that broadcast with the parameters."""
        # Hands on the tensors already read, so that the KL can tell that they are shared.
        return self.copy(weight=self.weight, log_dropout_rate=self.log_dropout_rate, gate=gate)

    def draw(self, seed, sample_shape=()):
        """Draws gates, without gradient (or takes the gate conditioned on), and noise from independent halves of a seed.

        Args:
          seed: int32 of shape [2] (stateless, see `step_seed`), or any other seed TFP takes.
          sample_shape: 1-D, of the draws of each batch member.

        Returns:
          A `Draw` of shape `sample_shape + batch_shape`.
        """
        gate_seed, noise_seed = tfp.random.split_seed(seed, n=2, salt="semi_implicit_draw")
        shape = tf.concat([tf.cast(sample_shape, tf.int32), self.batch_shape_tensor()], axis=0)
        noise = tf.random.stateless_normal(shape, noise_seed, dtype=self.dtype)
        if self.gate is None:
            return Draw(tf.stop_gradient(self.gate_distribution.sample(sample_shape, seed=gate_seed)), noise)
        return Draw(tf.broadcast_to(self.gate, shape), noise)

    def reparameterize(self, gate, noise):
        """The sample of a draw, with gradients to the parameters: gate * (m + s * noise).

        Args:
          gate: zeros and ones.
          noise: standard normal, of the same shape.

        Returns:
          Tensor of the shape that gate, noise and parameters broadcast to.
        """
        return gate * (self._kept_loc() + self._kept_scale() * noise)

    def _event_shape_tensor(self):
        return tf.constant([], dtype=tf.int32)

    def _event_shape(self):
        return tf.TensorShape([])

    def _sample_n(self, n, seed=None):
        return self.reparameterize(*self.draw(seed, [n]))

    def _mean(self):
        gate_mean = self.keep_probability if self.gate is None else self.gate
        return self._broadcast(gate_mean * self._kept_loc())

    def _variance(self):
        variance = tf.square(self._kept_scale())
        if self.gate is not None:
            return self._broadcast(self.gate * variance)
        keep, drop = self.keep_probability, tf.sigmoid(self.log_dropout_rate)
        return self._broadcast(keep * variance + keep * drop * tf.square(self._kept_loc()))

    def _stddev(self):
        if self.gate is not None:
            return self._broadcast(self.gate * self._kept_scale())
        variance = self._variance()
        positive = variance > 0.0  # sqrt at 0 has an infinite derivative
        return tf.where(positive, tf.sqrt(tf.where(positive, variance, 1.0)), 0.0)

    def _log_prob(self, value):
        if self.gate is None:
            raise ValueError(
                f"{type(self).__name__} without a gate has an atom at 0, hence no density: log_prob needs the conditional, "
                "use `.given(gate)`. Received: gate=None"
            )
        loc, scale = self.gate * self._kept_loc(), self.gate * self._kept_scale()
        is_gaussian = scale > 0.0
        safe_scale = tf.where(is_gaussian, scale, 1.0)
        # Standardised before the density: Normal(loc, scale) divides value and loc apart, and cancels badly where delta is tiny.
        standard_normal = tfd.Normal(tf.zeros([], self.dtype), 1.0)
        log_density = standard_normal.log_prob((value - loc) / safe_scale) - tf.math.log(safe_scale)
        log_atom = tf.where(tf.equal(value, loc), tf.zeros([], self.dtype), -float("inf"))
        return tf.where(is_gaussian, log_density, log_atom)

    def _broadcast(self, statistic):
        return tf.broadcast_to(statistic, self.batch_shape_tensor())

    def _default_event_space_bijector(self):
        return tfp.bijectors.Identity(validate_args=self.validate_args)

    def _parameter_control_dependencies(self, is_init):
        return self._assertions(
            is_init, (self.gate, lambda gate: tf.debugging.assert_equal(gate * (1.0 - gate), tf.zeros_like(gate), "gate must be 0 or 1"))
        )

    def _assertions(self, is_init, *checks):
        """TFP's rule: with `validate_args`, tensors are checked once, in the constructor, and variables at every use."""
        if not self.validate_args:
            return []
        return [check(value) for value, check in checks if value is not None and is_init != tensor_util.is_ref(value)]


class SemiImplicitPosterior(_GatedGaussian):
    """q(tau) of tau = gamma * xi, xi the multiplicative noise of semi-implicit variational dropout (Eq. 3, 4, 15, 16).

    Given a gate, `q(tau | gate) = N(gamma * gate, gamma^2 * gate * delta)`, whose atom at 0 (gate 0, or gamma 0) has log_prob 0 at 0
    and -inf elsewhere. Without a gate, the mixture over `gate ~ Bernoulli(1 / (1 + delta))`:

        mean(tau)     = gamma / (1 + delta)
        variance(tau) = gamma^2 * [delta / (1 + delta) + delta / (1 + delta)^2]

    which has no density: log_prob raises `ValueError`. A gradient of a sample is the one given its gate.

        posterior = SemiImplicitPosterior(weight, log_dropout_rate)
        gate, noise = posterior.draw(step_seed(seed, step, "operations"))
        tau = posterior.reparameterize(gate, noise)  # gamma * gate * (1 + sqrt(delta) * noise)

    Args:
      weight: gamma, floating-point tensor of any sign.
      log_dropout_rate: log delta; shapes broadcast to the batch shape, events are scalars. Values and gradients are finite in
        [-20, 20] in float32.
      gate: None, or zeros and ones of any dtype.

    A `tf.Variable` is read at every use; everything else, Keras' variables too, once, here: construct within the gradient tape.
    """

    def __init__(self, weight, log_dropout_rate, gate=None, validate_args=False, allow_nan_stats=True, name="SemiImplicitPosterior"):
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            dtype = dtype_util.common_dtype([weight, log_dropout_rate], dtype_hint=tf.float32)
            super().__init__(weight, log_dropout_rate, gate, dtype, validate_args, allow_nan_stats, parameters, name)

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        del dtype, num_classes
        names = ("weight", "log_dropout_rate", "gate")
        return {name: tfp.util.ParameterProperties(is_preferred=name != "gate") for name in names}

    def _kept_loc(self):
        return tf.convert_to_tensor(self.weight)

    def _kept_scale(self):
        return tf.abs(self.weight) * tf.exp(0.5 * self.log_dropout_rate)

    def reparameterize(self, gate, noise):
        """The sample of a draw, with gradients to gamma and log delta: gamma * gate * (1 + sqrt(delta) * noise).

        The scale keeps gamma's sign here, as the paper's tau = gamma * xi does; the distribution is the same with |gamma|.

        Args:
          gate: zeros and ones.
          noise: standard normal, of the same shape.

        Returns:
          Tensor of the shape that gate, noise and parameters broadcast to.
        """
        return self.weight * gate * (1.0 + tf.exp(0.5 * self.log_dropout_rate) * noise)


class AnnealedSemiImplicitARDPrior(_GatedGaussian):
    """p(tau), which shares the posterior's gate: p(tau | gate) = N(lambda * gamma * gate, gate / eta) (Eq. 6).

    lambda = 1 - sqrt(prior_gap), and eta is the precision, by default the optimal one of Eq. 10. As in the posterior, a gate of 0
    leaves an atom at 0, and without a gate the distribution is the mixture over gates, without density.

    Args:
      weight: gamma, floating-point tensor.
      log_dropout_rate: log delta.
      prior_gap: (1 - lambda)^2 >= 0, annealed from 1 (the plain ARD prior around 0) towards 0; shapes broadcast to the batch shape.
      gate: the posterior's, zeros and ones; or None.
      precision: eta > 0, or None for `1 / (gamma^2 * (prior_gap + delta))`.

    Variables are read as `SemiImplicitPosterior` reads them.
    """

    def __init__(
        self,
        weight,
        log_dropout_rate,
        prior_gap,
        gate=None,
        precision=None,
        validate_args=False,
        allow_nan_stats=True,
        name="AnnealedSemiImplicitARDPrior",
    ):
        parameters = dict(locals())
        with tf.name_scope(name) as name:
            dtype = dtype_util.common_dtype([weight, log_dropout_rate, prior_gap, precision], dtype_hint=tf.float32)
            self._prior_gap = tensor_util.convert_nonref_to_tensor(prior_gap, dtype=dtype, name="prior_gap")
            self._precision = tensor_util.convert_nonref_to_tensor(precision, dtype=dtype, name="precision")
            super().__init__(weight, log_dropout_rate, gate, dtype, validate_args, allow_nan_stats, parameters, name)

    @classmethod
    def sharing(cls, posterior, prior_gap, precision=None, **kwargs):
        """The prior of the very parameters and gate that `posterior` holds: the pair whose KL has the closed form (Eq. 11)."""
        return cls(posterior.weight, posterior.log_dropout_rate, prior_gap, posterior.gate, precision, **kwargs)

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        del num_classes

        def positive():
            return tfp.bijectors.Softplus(low=dtype_util.eps(dtype))

        return {
            "weight": tfp.util.ParameterProperties(),
            "log_dropout_rate": tfp.util.ParameterProperties(),
            "prior_gap": tfp.util.ParameterProperties(default_constraining_bijector_fn=positive),
            "gate": tfp.util.ParameterProperties(is_preferred=False),
            "precision": tfp.util.ParameterProperties(default_constraining_bijector_fn=positive, is_preferred=False),
        }

    @property
    def prior_gap(self):
        """(1 - lambda)^2."""
        return self._prior_gap

    @property
    def precision(self):
        """eta as it was given; None where it is the optimal one."""
        return self._precision

    def _kept_loc(self):
        return (1.0 - tf.sqrt(self.prior_gap)) * self.weight

    def _kept_scale(self):
        if self.precision is not None:
            return tf.math.rsqrt(tf.convert_to_tensor(self.precision))
        return optimal_scale(self.weight, self.log_dropout_rate, self.prior_gap)

    def _parameter_control_dependencies(self, is_init):
        return super()._parameter_control_dependencies(is_init) + self._assertions(
            is_init,
            (self.prior_gap, lambda gap: tf.debugging.assert_non_negative(gap, "prior_gap must not be negative")),
            (self.precision, lambda precision: tf.debugging.assert_positive(precision, "precision must be positive")),
        )
