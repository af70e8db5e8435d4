"""KL divergence of the semi-implicit posterior from its annealed ARD prior (SI-VDNAS, Eq. 9-11, 17, 18), registered with TFP.

The printed Eq. 9 has "2 eta gamma^2"; only "1/2 eta gamma^2" is the KL of two Gaussians and leads to the printed Eq. 10 and 11.
"""

import contextlib

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow_probability.python.internal import dtype_util

from sivdnas_tf.variational.distributions import AnnealedSemiImplicitARDPrior, SemiImplicitPosterior, optimal_scale

tfd = tfp.distributions


def kl_divergence_closed_form(log_dropout_rate, prior_gap, gate=None):
    """KL at the optimal precision: gate * 1/2 log(1 + prior_gap / delta) (Eq. 11, 17, 18), independent of gamma.

    Computed as 1/2 softplus(log prior_gap - log delta), whose value and gradient neither overflow for small delta nor vanish to
    rounding for large delta. At prior_gap = 0 it and its gradient are 0 (prior_gap is scheduled, not learnt: its own gradient
    there, 1 / (2 delta), is given as 0 too).

    Args:
      log_dropout_rate: log delta, floating-point.
      prior_gap: (1 - lambda)^2 >= 0; a negative one gives nan.
      gate: zeros and ones, or None for ones.

    Returns:
      Tensor of the shape the arguments broadcast to, in nats.
    """
    log_dropout_rate, prior_gap, gate = _as_tensors(log_dropout_rate, prior_gap, gate)
    is_zero = tf.equal(prior_gap, 0.0)
    log_ratio = tf.math.log(tf.where(is_zero, tf.ones_like(prior_gap), prior_gap)) - log_dropout_rate
    kl = 0.5 * tf.where(is_zero, 0.0, tf.nn.softplus(log_ratio))
    return kl if gate is None else gate * kl


def kl_divergence_at_precision(weight, log_dropout_rate, prior_gap, precision, gate=None):
    """KL at any precision: gate * (-1/2 log(eta gamma^2 delta) + 1/2 eta gamma^2 [prior_gap + delta] - 1/2) (Eq. 9, corrected).

    Args:
      weight: gamma, floating-point; at 0 the posterior is an atom and the KL infinite.
      log_dropout_rate: log delta.
      prior_gap: (1 - lambda)^2 >= 0.
      precision: eta > 0.
      gate: zeros and ones, or None for ones.

    Returns:
      Tensor of the shape the arguments broadcast to, in nats.
    """
    weight, log_dropout_rate, prior_gap, precision, gate = _as_tensors(weight, log_dropout_rate, prior_gap, precision, gate)
    if gate is not None:
        weight = tf.where(gate > 0.0, weight, 1.0)  # a dropped weight of 0 would give 0 * inf
    log_ratio = tf.math.log(precision) + 2.0 * tf.math.log(tf.abs(weight)) + log_dropout_rate
    expected_square = precision * tf.square(weight) * (prior_gap + tf.exp(log_dropout_rate))
    kl = 0.5 * (expected_square - log_ratio - 1.0)
    return kl if gate is None else gate * kl


def optimal_precision(weight, log_dropout_rate, prior_gap):
    """eta* = 1 / (gamma^2 * [prior_gap + delta]), the precision of the smallest KL (empirical Bayes, Eq. 10).

    Args:
      weight: gamma, floating-point; at 0 the result is infinite.
      log_dropout_rate: log delta.
      prior_gap: (1 - lambda)^2 >= 0.

    Returns:
      Tensor of the shape the arguments broadcast to.
    """
    return 1.0 / tf.square(optimal_scale(*_as_tensors(weight, log_dropout_rate, prior_gap)))


def _as_tensors(*values):
    dtype = dtype_util.common_dtype(values, dtype_hint=tf.float32)
    return [value if value is None else tf.convert_to_tensor(value, dtype) for value in values]


def _conditional_kl(posterior, prior):
    """KL[q(tau | gate) || p(tau | gate)]: in closed form for the parameters they share, of two general Gaussians otherwise."""
    if posterior.gate is None or prior.gate is None:
        raise ValueError(
            "the KL divergence is that of the conditionals, which need a gate, the same for both: use `.given(gate)`. "
            f"Received: gate={posterior.gate} of {posterior.name}, gate={prior.gate} of {prior.name}"
        )
    # Identity, not equality: parameters that happen to be equal but are separate have other gradients.
    if any(getattr(posterior, name) is not getattr(prior, name) for name in ("weight", "log_dropout_rate", "gate")):
        return _gaussian_or_atom_kl(posterior, prior)
    if prior.precision is None:
        kl = kl_divergence_closed_form(posterior.log_dropout_rate, prior.prior_gap, posterior.gate)
    else:
        kl = kl_divergence_at_precision(posterior.weight, posterior.log_dropout_rate, prior.prior_gap, prior.precision, posterior.gate)
    return kl + tf.zeros_like(posterior.weight)  # of the batch shape, which counts the weight's


def _gaussian_or_atom_kl(posterior, prior):
    """KL of N(loc, scale^2) distributions that share nothing; a scale of 0 is an atom, singular to all but itself."""
    locs = [distribution.mean() for distribution in (posterior, prior)]
    scales = [distribution.stddev() for distribution in (posterior, prior)]
    is_gaussian = [scale > 0.0 for scale in scales]
    gaussians = [tfd.Normal(loc, tf.where(positive, scale, 1.0)) for loc, scale, positive in zip(locs, scales, is_gaussian, strict=True)]
    same_atom = tf.logical_not(is_gaussian[0]) & tf.logical_not(is_gaussian[1]) & tf.equal(*locs)
    singular = tf.where(same_atom, tf.zeros([], posterior.dtype), float("inf"))
    return tf.where(is_gaussian[0] & is_gaussian[1], tfd.kl_divergence(*gaussians), singular)


def _registered_kl(posterior, prior, name=None):
    with tf.name_scope(name or "kl_semi_implicit_posterior_annealed_prior"):
        return _conditional_kl(posterior, prior)


# RegisterKL raises where the pair is already registered, as on a reload of this module. What stays registered then is the first
# `_registered_kl`, which looks `_conditional_kl` up in this module and so runs the reloaded one.
with contextlib.suppress(ValueError):
    tfd.RegisterKL(SemiImplicitPosterior, AnnealedSemiImplicitARDPrior)(_registered_kl)
