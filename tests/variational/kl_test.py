import importlib

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import tensorflow as tf
import tensorflow_probability as tfp

from sivdnas_tf.variational import kl
from sivdnas_tf.variational.distributions import AnnealedSemiImplicitARDPrior, SemiImplicitPosterior

tfd = tfp.distributions

# A grid of gamma x log delta x prior_gap, without their zeros and extremes, which have tests of their own.
WEIGHT = np.array([-3.0, -0.1, 0.5, 2.0])[:, None, None]
LOG_RATE = np.linspace(-8.0, 8.0, 9)[:, None]
GAP = np.array([1e-3, 0.25, 0.95, 1.0])
DOMAIN = np.linspace(-20.0, 20.0, 41)  # of log delta, all of which float32 must stand


def conditionals(weight=WEIGHT, log_rate=LOG_RATE, prior_gap=GAP, gate=1.0, precision=None):
    posterior = SemiImplicitPosterior(weight, log_rate).given(gate)
    return posterior, AnnealedSemiImplicitARDPrior.sharing(posterior, prior_gap, precision)


def normals(weight, log_rate, prior_gap, precision):
    """The two Gaussians of a kept weight, as TFP's own distributions."""
    scale = np.abs(weight) * np.exp(0.5 * log_rate)
    return tfd.Normal(weight, scale), tfd.Normal((1.0 - np.sqrt(prior_gap)) * weight, precision**-0.5)


def gradient(function, *arguments):
    tensors = [tf.convert_to_tensor(argument) for argument in arguments]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return tape.gradient(value, tensors, unconnected_gradients="zero")


# The closed form.


def test_closed_form_is_tfps_kl_of_normals_at_the_optimal_precision():
    precision = kl.optimal_precision(WEIGHT, LOG_RATE, GAP)
    expected = tfd.kl_divergence(*normals(WEIGHT, LOG_RATE, GAP, precision))
    np.testing.assert_allclose(np.broadcast_to(kl.kl_divergence_closed_form(LOG_RATE, GAP), expected.shape), expected, rtol=1e-9)


@pytest.mark.parametrize("log_rate", [-6.0, -1.0, 2.0])
@pytest.mark.parametrize("prior_gap", [0.1, 1.0])
def test_closed_form_is_the_integral(log_rate, prior_gap):
    posterior, prior = conditionals(-1.5, np.float64(log_rate), prior_gap)
    loc, scale = float(posterior.mean()), float(posterior.stddev())
    tau = np.linspace(loc - 12.0 * scale, loc + 12.0 * scale, 4001)
    log_q, log_p = posterior.log_prob(tau).numpy(), prior.log_prob(tau).numpy()
    integral = scipy.integrate.simpson(np.exp(log_q) * (log_q - log_p), x=tau)
    np.testing.assert_allclose(kl.kl_divergence_closed_form(log_rate, prior_gap), integral, rtol=1e-6)


@pytest.mark.parametrize("log_rate", [-4.0, 0.0])
def test_closed_form_is_the_monte_carlo_mean(log_rate):
    posterior, prior = conditionals(2.0, np.float64(log_rate), 0.5)
    tau = posterior.sample(200_000, seed=[1, 2])
    log_ratio = (posterior.log_prob(tau) - prior.log_prob(tau)).numpy()
    tolerance = 5.0 * log_ratio.std() / np.sqrt(len(log_ratio))
    expected = kl.kl_divergence_closed_form(np.float64(log_rate), 0.5).numpy()
    assert tolerance < 0.05 * expected  # or the comparison says nothing
    assert abs(log_ratio.mean() - expected) < tolerance


def test_closed_form_is_never_negative_and_falls_as_delta_grows():
    divergence = kl.kl_divergence_closed_form(np.linspace(-20.0, 20.0, 401)[:, None], GAP).numpy()
    assert np.all(divergence >= 0.0)
    assert np.all(np.diff(divergence, axis=0) < 0.0)


def test_closed_form_at_prior_gap_one_is_the_plain_ard_kl():
    np.testing.assert_allclose(kl.kl_divergence_closed_form(DOMAIN, 1.0), 0.5 * np.log1p(np.exp(-DOMAIN)), rtol=1e-12)


def test_closed_form_in_its_limits():
    # delta -> 0: 1/2 (log prior_gap - log delta); delta -> infinity: prior_gap / (2 delta)
    np.testing.assert_allclose(kl.kl_divergence_closed_form(np.full(4, -40.0), GAP), 0.5 * (np.log(GAP) + 40.0), rtol=1e-12)
    np.testing.assert_allclose(kl.kl_divergence_closed_form(np.full(4, 30.0), GAP), 0.5 * GAP * np.exp(-30.0), rtol=1e-12)


def test_closed_form_is_zero_for_a_dropped_weight():
    gate = np.array([0.0, 1.0, 0.0])
    divergence = kl.kl_divergence_closed_form(np.array([-3.0, 0.0, 3.0]), 1.0, gate)
    np.testing.assert_array_equal(divergence == 0.0, gate == 0.0)
    by_log_rate = gradient(lambda log_rate: kl.kl_divergence_closed_form(log_rate, 1.0, gate), np.array([-3.0, 0.0, 3.0]))[0]
    np.testing.assert_array_equal(by_log_rate == 0.0, gate == 0.0)


@pytest.mark.parametrize("prior_gap", [0.05, 1.0])
def test_gradient_of_the_closed_form_is_the_finite_difference(prior_gap):
    step = 1e-5
    difference = (kl.kl_divergence_closed_form(DOMAIN + step, prior_gap) - kl.kl_divergence_closed_form(DOMAIN - step, prior_gap)) / (
        2.0 * step
    )
    by_log_rate = gradient(lambda log_rate: kl.kl_divergence_closed_form(log_rate, prior_gap), DOMAIN)[0]
    np.testing.assert_allclose(by_log_rate, difference, rtol=1e-5, atol=1e-10)
    np.testing.assert_allclose(by_log_rate, -0.5 * prior_gap / (prior_gap + np.exp(DOMAIN)), rtol=1e-9)


@pytest.mark.parametrize("prior_gap", [1.0, 0.95**135, 1e-25])
def test_closed_form_is_finite_and_exact_in_float32(prior_gap):
    log_rate = DOMAIN.astype(np.float32)
    divergence = kl.kl_divergence_closed_form(log_rate, prior_gap)
    assert divergence.dtype == tf.float32
    np.testing.assert_allclose(divergence, 0.5 * np.log1p(prior_gap * np.exp(-DOMAIN)), rtol=2e-5)
    by_log_rate = gradient(lambda log_rate: kl.kl_divergence_closed_form(log_rate, prior_gap), log_rate)[0]
    np.testing.assert_allclose(by_log_rate, -0.5 * prior_gap / (prior_gap + np.exp(DOMAIN)), rtol=2e-5)


def test_closed_form_without_a_gap_is_zero_with_zero_gradients():
    log_rate = DOMAIN.astype(np.float32)
    np.testing.assert_array_equal(kl.kl_divergence_closed_form(log_rate, 0.0), np.zeros(len(DOMAIN)))
    for result in gradient(kl.kl_divergence_closed_form, log_rate, np.float32(0.0)):
        np.testing.assert_array_equal(result, np.zeros(result.shape))


def test_a_negative_gap_is_loud():
    assert np.isnan(kl.kl_divergence_closed_form(0.0, -0.1))


# Eq. 9 and 10.


def test_divergence_at_a_precision_is_tfps_kl_of_normals():
    for precision in (0.01, 1.0, 30.0):
        expected = tfd.kl_divergence(*normals(WEIGHT, LOG_RATE, GAP, np.float64(precision)))
        np.testing.assert_allclose(kl.kl_divergence_at_precision(WEIGHT, LOG_RATE, GAP, precision), expected, rtol=1e-9)


@pytest.mark.parametrize(("weight", "log_rate", "prior_gap"), [(1.0, -5.0, 1.0), (-0.3, 0.0, 0.2), (4.0, 2.0, 0.0)])
def test_optimal_precision_minimises_the_divergence(weight, log_rate, prior_gap):
    def divergence(log_precision):
        return float(kl.kl_divergence_at_precision(np.float64(weight), log_rate, prior_gap, np.exp(log_precision)))

    expected = float(kl.optimal_precision(np.float64(weight), log_rate, prior_gap))
    found = scipy.optimize.minimize_scalar(divergence, bounds=(-15.0, 15.0), method="bounded", options={"xatol": 1e-9})
    np.testing.assert_allclose(found.x, np.log(expected), atol=1e-6)
    np.testing.assert_allclose(found.fun, kl.kl_divergence_closed_form(np.float64(log_rate), prior_gap), atol=1e-12)
    np.testing.assert_allclose(expected, 1.0 / (weight**2 * (prior_gap + np.exp(log_rate))), rtol=1e-12)


def test_divergence_at_a_precision_of_a_dropped_weight_is_zero_without_nan():
    weight, log_rate, gate = np.array([0.0, 1.0, 1.0]), np.zeros(3), np.array([0.0, 0.0, 1.0])
    divergence = kl.kl_divergence_at_precision(weight, log_rate, 0.5, 2.0, gate)
    np.testing.assert_array_equal(divergence == 0.0, gate == 0.0)
    for result in gradient(lambda w, d: kl.kl_divergence_at_precision(w, d, 0.5, 2.0, gate), weight, log_rate):
        assert np.all(np.isfinite(result)) and np.all(result[:2] == 0.0)
    assert kl.kl_divergence_at_precision(0.0, 0.0, 0.5, 2.0) == np.inf


def test_divergence_at_a_precision_is_finite_in_float32():
    weight, log_rate = np.ones(len(DOMAIN), np.float32), DOMAIN.astype(np.float32)
    np.testing.assert_allclose(
        kl.kl_divergence_at_precision(weight, log_rate, 0.5, 1.0), kl.kl_divergence_at_precision(1.0, DOMAIN, 0.5, 1.0), rtol=1e-5
    )
    for result in gradient(lambda w, d: kl.kl_divergence_at_precision(w, d, 0.5, 1.0), weight, log_rate):
        assert np.all(np.isfinite(result))


# As registered with TFP.


def test_registered_divergence_is_the_closed_form():
    posterior, prior = conditionals()
    expected = np.broadcast_to(kl.kl_divergence_closed_form(LOG_RATE, GAP), (4, 9, 4))
    np.testing.assert_array_equal(tfd.kl_divergence(posterior, prior), expected)
    np.testing.assert_array_equal(posterior.kl_divergence(prior), expected)


@pytest.mark.parametrize("weight", [0.0, 1e-30, -1.0, 1e6])
def test_registered_divergence_is_the_same_for_any_weight(weight):
    weight = np.full(len(DOMAIN), weight, np.float32)

    def divergence(weight, log_rate):
        return tfd.kl_divergence(*conditionals(weight, log_rate, 0.5))

    by_weight, by_log_rate = gradient(divergence, weight, DOMAIN.astype(np.float32))
    np.testing.assert_array_equal(
        divergence(tf.constant(weight), tf.constant(DOMAIN, tf.float32)),
        kl.kl_divergence_closed_form(DOMAIN.astype(np.float32), 0.5),
    )
    np.testing.assert_array_equal(by_weight, np.zeros(len(DOMAIN)))
    assert np.all(np.isfinite(by_log_rate))


def test_registered_divergence_of_dropped_weights_is_zero():
    gate = np.array([0, 1, 0])
    posterior, prior = conditionals(np.ones(3), np.zeros(3), 1.0, gate)
    np.testing.assert_array_equal(tfd.kl_divergence(posterior, prior) == 0.0, gate == 0)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_registered_divergence_at_an_explicit_precision_is_equation_9(gate):
    posterior, prior = conditionals(precision=3.0, gate=gate)
    expected = gate * kl.kl_divergence_at_precision(WEIGHT, LOG_RATE, GAP, 3.0)
    np.testing.assert_allclose(tfd.kl_divergence(posterior, prior), expected, rtol=1e-12)
    if gate:
        assert np.all(tfd.kl_divergence(posterior, prior) >= tfd.kl_divergence(*conditionals()))


@pytest.mark.parametrize("precision", [None, 0.7])
def test_registered_divergence_of_separate_parameters_is_that_of_general_gaussians(precision):
    posterior = SemiImplicitPosterior(np.array([1.0, -2.0]), np.array([0.0, -3.0])).given(np.ones(2))
    prior = AnnealedSemiImplicitARDPrior(np.array([0.5, 3.0]), np.array([-1.0, 1.0]), 0.25, np.ones(2), precision)
    expected = tfd.kl_divergence(tfd.Normal(posterior.mean(), posterior.stddev()), tfd.Normal(prior.mean(), prior.stddev()))
    np.testing.assert_allclose(tfd.kl_divergence(posterior, prior), expected, rtol=1e-12)
    assert np.all(expected > 1.05 * kl.kl_divergence_closed_form(np.array([0.0, -3.0]), 0.25))


def test_equal_but_separate_weights_have_the_gradients_of_general_gaussians():
    def divergence(weight, prior_weight):
        posterior = SemiImplicitPosterior(weight, np.float64(-1.0)).given(1.0)
        return tfd.kl_divergence(posterior, AnnealedSemiImplicitARDPrior(prior_weight, np.float64(-1.0), 0.25, 1.0))

    np.testing.assert_allclose(divergence(2.0, 2.0), kl.kl_divergence_closed_form(-1.0, 0.25), rtol=1e-6)
    step = 1e-5
    difference = [
        (divergence(np.float64(2.0) + step, 2.0) - divergence(np.float64(2.0) - step, 2.0)) / (2.0 * step),
        (divergence(2.0, np.float64(2.0) + step) - divergence(2.0, np.float64(2.0) - step)) / (2.0 * step),
    ]
    assert abs(difference[0]) > 0.1
    np.testing.assert_allclose(gradient(divergence, np.float64(2.0), np.float64(2.0)), difference, rtol=1e-6)


def test_separate_gates_that_disagree_are_infinitely_far_apart():
    posterior = SemiImplicitPosterior(np.ones(4, np.float32), np.zeros(4, np.float32)).given([1, 1, 0, 0])
    prior = AnnealedSemiImplicitARDPrior(np.ones(4, np.float32), np.zeros(4, np.float32), 0.5, [1, 0, 1, 0])
    divergence = tfd.kl_divergence(posterior, prior)
    np.testing.assert_allclose(divergence[0], kl.kl_divergence_closed_form(0.0, 0.5), rtol=1e-6)
    np.testing.assert_array_equal(divergence[1:], [np.inf, np.inf, 0.0])


def test_gradients_of_general_gaussians_are_not_nan_where_gates_or_weights_are_zero():
    gate = tf.constant([0.0, 1.0])

    def divergence(weight, log_rate):
        posterior = SemiImplicitPosterior(weight, log_rate).given(gate)
        return tfd.kl_divergence(posterior, AnnealedSemiImplicitARDPrior(1.0 * weight, log_rate, 0.5, gate))

    for result in gradient(divergence, np.array([1.0, 0.0], np.float32), np.zeros(2, np.float32)):
        np.testing.assert_array_equal(result, np.zeros(2))


@pytest.mark.parametrize(("posterior_gate", "prior_gate"), [(None, None), (1.0, None), (None, 1.0)])
def test_registered_divergence_needs_both_gates(posterior_gate, prior_gate):
    posterior = SemiImplicitPosterior(1.0, 0.0, posterior_gate)
    prior = AnnealedSemiImplicitARDPrior(1.0, 0.0, 0.5, prior_gate)
    with pytest.raises(ValueError, match=r"need a gate.*Received: gate="):
        tfd.kl_divergence(posterior, prior)


def test_registered_divergence_of_independents_is_the_sum():
    posterior, prior = conditionals(np.ones(3), np.linspace(-1.0, 1.0, 3), 0.5, [1, 0, 1])
    expected = np.sum(tfd.kl_divergence(posterior, prior))
    np.testing.assert_allclose(tfd.kl_divergence(tfd.Independent(posterior, 1), tfd.Independent(prior, 1)), expected)


def test_registered_divergence_in_a_graph():
    compute = tf.function(lambda log_rate, gap: tfd.kl_divergence(*conditionals(tf.ones(9), log_rate, gap, tf.ones(9, tf.int32))))
    log_rate = LOG_RATE[:, 0].astype(np.float32)
    np.testing.assert_allclose(compute(log_rate, tf.constant(0.5)), kl.kl_divergence_closed_form(log_rate, 0.5), rtol=1e-6)


def test_reloading_the_module_keeps_the_divergence_registered(monkeypatch):
    importlib.reload(kl)
    posterior, prior = conditionals()
    np.testing.assert_allclose(tfd.kl_divergence(posterior, prior)[0], kl.kl_divergence_closed_form(LOG_RATE, GAP), rtol=1e-12)
    # What is registered runs the module's present code, not that of the first import.
    monkeypatch.setattr(kl, "_conditional_kl", lambda posterior, prior: tf.constant(-7.0))
    assert tfd.kl_divergence(posterior, prior) == -7.0
