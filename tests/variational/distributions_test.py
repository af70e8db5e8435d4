import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from sivdnas_tf.variational.distributions import (
    AnnealedSemiImplicitARDPrior,
    SemiImplicitPosterior,
    optimal_scale,
    step_seed,
)

tfd = tfp.distributions

N_SAMPLES = 200_000
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0, 1.5])
LOG_RATES = np.array([-5.0, -1.0, 0.0, 1.0, 3.0])
RATES = np.exp(LOG_RATES)
DOMAIN = np.linspace(-20.0, 20.0, 41)  # of log delta, all of which float32 must stand


def posterior(dtype=np.float64, **kwargs):
    return SemiImplicitPosterior(WEIGHTS.astype(dtype), LOG_RATES.astype(dtype), **kwargs)


def prior(prior_gap=0.5, dtype=np.float64, **kwargs):
    return AnnealedSemiImplicitARDPrior(WEIGHTS.astype(dtype), LOG_RATES.astype(dtype), prior_gap, **kwargs)


def assert_moments(samples, mean, variance):
    """Sample moments against exact ones, to 5 standard errors of each estimator, which must be small enough to notice an error."""
    centred = samples - samples.mean(0)
    mean_error = samples.std(0) / np.sqrt(len(samples))
    variance_error = np.sqrt(np.maximum((centred**4).mean(0) - samples.var(0) ** 2, 0.0) / len(samples))
    assert np.all(5.0 * variance_error <= 0.1 * variance)
    np.testing.assert_array_less(np.abs(samples.mean(0) - mean), 5.0 * mean_error + 1e-12)
    np.testing.assert_array_less(np.abs(samples.var(0) - variance), 5.0 * variance_error + 1e-12)


# Draws and moments of the posterior.


def test_gate_frequency_is_one_over_one_plus_delta():
    gate, _ = posterior().draw([1, 2], [N_SAMPLES])
    keep = 1.0 / (1.0 + RATES)
    assert set(np.unique(gate)) == {0.0, 1.0}
    standard_error = np.sqrt(keep * (1.0 - keep) / N_SAMPLES)
    np.testing.assert_array_less(np.abs(gate.numpy().mean(0) - keep), 5.0 * standard_error)
    np.testing.assert_allclose(posterior().keep_probability, keep, rtol=1e-12)
    np.testing.assert_allclose(posterior().gate_distribution.mean(), keep, rtol=1e-12)


def test_moments_are_the_formulas():
    mean, variance = WEIGHTS / (1.0 + RATES), WEIGHTS**2 * (RATES / (1.0 + RATES) + RATES / (1.0 + RATES) ** 2)
    np.testing.assert_allclose(posterior().mean(), mean, rtol=1e-12)
    np.testing.assert_allclose(posterior().variance(), variance, rtol=1e-12)
    np.testing.assert_allclose(posterior().stddev(), np.sqrt(variance), rtol=1e-12)


def test_moments_are_those_of_the_samples():
    samples = posterior().sample(N_SAMPLES, seed=[3, 4]).numpy()
    assert_moments(samples, posterior().mean().numpy(), posterior().variance().numpy())


def test_moments_given_the_gate_are_those_of_the_samples():
    gate = np.array([1, 1, 0, 1, 1])
    conditional = posterior().given(gate)
    samples = conditional.sample(N_SAMPLES, seed=[5, 6]).numpy()
    np.testing.assert_allclose(conditional.mean(), WEIGHTS * gate)
    np.testing.assert_allclose(conditional.variance(), WEIGHTS**2 * gate * RATES)
    np.testing.assert_allclose(conditional.stddev(), np.abs(WEIGHTS) * gate * np.sqrt(RATES))
    assert np.all(samples[:, 2] == 0.0)
    assert_moments(samples, conditional.mean().numpy(), conditional.variance().numpy())


def test_moments_are_finite_in_float32():
    for distribution in (
        SemiImplicitPosterior(1.0, DOMAIN.astype(np.float32)),
        AnnealedSemiImplicitARDPrior(1.0, DOMAIN.astype(np.float32), 0.5),
    ):
        for statistic in (distribution.mean(), distribution.variance(), distribution.stddev()):
            assert np.all(np.isfinite(statistic))
    np.testing.assert_allclose(
        SemiImplicitPosterior(1.0, DOMAIN.astype(np.float32)).variance(), SemiImplicitPosterior(1.0, DOMAIN).variance(), rtol=1e-5
    )


def test_a_vanishing_rate_gives_the_plain_weights():
    tau = SemiImplicitPosterior(WEIGHTS, -40.0).sample(100, seed=[0, 0])
    np.testing.assert_allclose(tau, np.tile(WEIGHTS, (100, 1)), rtol=1e-7)


def test_sample_is_the_reparameterised_draw():
    draw = posterior().draw([7, 8], [3, 2])
    np.testing.assert_array_equal(posterior().sample([3, 2], seed=[7, 8]), posterior().reparameterize(*draw))
    np.testing.assert_allclose(posterior().reparameterize(*draw), WEIGHTS * draw.gate * (1.0 + np.sqrt(RATES) * draw.noise), rtol=1e-12)


def test_gate_and_noise_are_independent():
    gate, noise = (tensor.numpy() for tensor in SemiImplicitPosterior(1.0, 0.0).draw([9, 9], [N_SAMPLES]))
    kept = noise[gate == 1.0]
    assert abs(kept.mean()) < 5.0 / np.sqrt(len(kept))
    assert abs(kept.var() - 1.0) < 5.0 * np.sqrt(2.0 / len(kept))


def test_members_of_a_broadcast_batch_have_their_own_gates():
    gate, _ = SemiImplicitPosterior(np.ones(64, np.float32), 0.0).draw([0, 1])
    assert gate.shape == (64,)
    assert 0.0 < np.mean(gate) < 1.0


def test_draw_given_a_gate_keeps_it():
    gate = [1.0, 0.0, 1.0, 0.0, 1.0]
    np.testing.assert_array_equal(posterior(gate=gate).draw([0, 1], [2]).gate, [gate, gate])


def test_a_stateless_seed_fixes_the_sample():
    samples = [posterior().sample(seed=tf.constant([11, 12])).numpy() for _ in range(2)]
    np.testing.assert_array_equal(*samples)
    assert np.all(samples[0] != posterior().given(np.ones(5)).sample(seed=[11, 13]).numpy())


# Gradients.


def test_gradients_of_a_sample_are_the_pathwise_ones():
    weight, log_rate = tf.constant(WEIGHTS), tf.constant(LOG_RATES)
    gate, noise = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), np.array([0.3, -1.0, -2.0, 0.7, 1.1])
    with tf.GradientTape() as tape:
        tape.watch([weight, log_rate])
        tau = SemiImplicitPosterior(weight, log_rate).reparameterize(gate, noise)
    by_weight, by_log_rate = tape.gradient(tau, [weight, log_rate])
    np.testing.assert_allclose(by_weight, gate * (1.0 + np.sqrt(RATES) * noise), rtol=1e-12)
    np.testing.assert_allclose(by_log_rate, 0.5 * WEIGHTS * gate * np.sqrt(RATES) * noise, rtol=1e-12)


@pytest.mark.parametrize("gate", [0.0, 1.0])
def test_gradients_of_a_sample_are_finite_in_float32(gate):
    weight, log_rate = tf.ones(len(DOMAIN)), tf.constant(DOMAIN, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch([weight, log_rate])
        tau = SemiImplicitPosterior(weight, log_rate).reparameterize(tf.fill(weight.shape, gate), tf.fill(weight.shape, -3.0))
    assert np.all(np.isfinite(tau))
    for gradient in tape.gradient(tau, [weight, log_rate]):
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0.0) == (gate == 1.0)


def test_a_draw_passes_no_gradient():
    log_rate = tf.constant(LOG_RATES)
    with tf.GradientTape() as tape:
        tape.watch(log_rate)
        gate, noise = SemiImplicitPosterior(WEIGHTS, log_rate).draw([1, 2])
    assert tape.gradient([gate, noise], log_rate) is None


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("weight", [0.0, -1.5])
def test_gradients_of_statistics_are_never_nan(conditional, weight):
    weight, log_rate = tf.fill([4], weight), tf.constant([-20.0, -5.0, 0.0, 20.0])
    gate = tf.constant([0.0, 1.0, 0.0, 1.0]) if conditional else None
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([weight, log_rate])
        distribution = SemiImplicitPosterior(weight, log_rate, gate)
        statistics = [distribution.mean(), distribution.variance(), distribution.stddev(), distribution.sample(seed=[0, 1])]
    for statistic in statistics:
        for gradient in tape.gradient(statistic, [weight, log_rate], unconnected_gradients="zero"):
            assert np.all(np.isfinite(gradient))


# Densities.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_prob_of_a_kept_weight_is_the_gaussians(dtype):
    value = np.array([0.9, -1.0, 2.0, 0.0, -4.0], dtype)
    expected = tfd.Normal(WEIGHTS, np.abs(WEIGHTS) * np.sqrt(RATES)).log_prob(value.astype(np.float64))
    log_prob = posterior(dtype).given(np.ones(5)).log_prob(value)
    assert log_prob.dtype == dtype
    np.testing.assert_allclose(log_prob, expected, rtol=1e-5 if dtype == np.float32 else 1e-12)


def test_log_prob_keeps_its_digits_where_delta_is_tiny():
    noise = np.float32(1.5)
    for dtype, tolerance in ((np.float64, 1e-9), (np.float32, 1e-5)):
        distribution = SemiImplicitPosterior(dtype(1.0), dtype(-20.0), gate=1.0)
        value = distribution.reparameterize(dtype(1.0), dtype(noise))
        # The value itself is rounded: what it says about the noise is exact only in terms of that rounded value.
        standardised = (np.float64(value) - 1.0) / np.exp(-10.0)
        expected = -0.5 * standardised**2 - 0.5 * np.log(2.0 * np.pi) + 10.0
        np.testing.assert_allclose(distribution.log_prob(value), expected, rtol=tolerance)


def test_a_dropped_weight_is_an_atom_at_zero():
    conditional = posterior().given(np.zeros(5))
    np.testing.assert_array_equal(conditional.log_prob(0.0), np.zeros(5))
    np.testing.assert_array_equal(conditional.log_prob(1e-30), np.full(5, -np.inf))
    np.testing.assert_array_equal(conditional.prob([[0.0], [1.0]]), [[1.0] * 5, [0.0] * 5])


def test_a_weight_of_zero_is_an_atom_at_zero():
    conditional = SemiImplicitPosterior(0.0, 0.0, gate=1.0)
    np.testing.assert_array_equal(conditional.log_prob([0.0, 0.1]), [0.0, -np.inf])
    np.testing.assert_array_equal(conditional.sample(3, seed=[0, 1]), np.zeros(3))


@pytest.mark.parametrize("make", [SemiImplicitPosterior, lambda *args, gate: AnnealedSemiImplicitARDPrior(*args, 0.5, gate)])
def test_gradients_of_log_prob_are_never_nan(make):
    # gate 0, weight 0, both, neither; at the atom and beside it
    weight = tf.constant([[1.0, 0.0, 0.0, 1.0]] * 2)
    gate = tf.constant([0.0, 1.0, 0.0, 1.0])
    value = tf.constant([[0.0] * 4, [0.7] * 4])
    log_rate = tf.fill([2, 4], -1.0)
    with tf.GradientTape() as tape:
        tape.watch([weight, log_rate, value])
        log_prob = make(weight, log_rate, gate=gate).log_prob(value)
    for gradient in tape.gradient(log_prob, [weight, log_rate, value]):
        assert np.all(np.isfinite(gradient))
        assert np.all(gradient[:, :3] == 0.0) and np.all(gradient[1, 3] != 0.0)


@pytest.mark.parametrize("marginal", [posterior(), prior()])
def test_the_mixture_has_no_density(marginal):
    with pytest.raises(ValueError, match=r"use `\.given\(gate\)`.*Received: gate=None"):
        marginal.log_prob(np.zeros(5))


# The prior.


@pytest.mark.parametrize("prior_gap", [0.0, 0.3, 1.0])
def test_prior_given_the_gate_is_the_gaussian_at_the_optimal_precision(prior_gap):
    gate = np.array([1, 0, 1, 1, 1])
    conditional = prior(prior_gap, gate=gate)
    loc, variance = (1.0 - np.sqrt(prior_gap)) * WEIGHTS, WEIGHTS**2 * (prior_gap + RATES)
    np.testing.assert_allclose(conditional.mean(), loc * gate, atol=1e-15)
    np.testing.assert_allclose(conditional.variance(), variance * gate)
    np.testing.assert_allclose(conditional.stddev(), np.sqrt(variance) * gate)
    value = np.array([0.4, 0.0, -0.3, 2.0, 1.0])
    expected = np.where(gate == 1, tfd.Normal(loc, np.sqrt(variance)).log_prob(value), 0.0)
    np.testing.assert_allclose(conditional.log_prob(value), expected)
    np.testing.assert_allclose(optimal_scale(WEIGHTS, LOG_RATES, prior_gap), np.sqrt(variance))


def test_prior_with_an_explicit_precision():
    precision = np.array([0.5, 1.0, 4.0, 2.0, 10.0])
    conditional = prior(0.25, gate=np.ones(5), precision=precision)
    np.testing.assert_allclose(conditional.mean(), 0.5 * WEIGHTS)
    np.testing.assert_allclose(conditional.variance(), 1.0 / precision)
    np.testing.assert_allclose(conditional.log_prob(0.7), tfd.Normal(0.5 * WEIGHTS, precision**-0.5).log_prob(0.7))
    assert_moments(conditional.sample(N_SAMPLES, seed=[1, 5]).numpy(), 0.5 * WEIGHTS, 1.0 / precision)


def test_prior_with_an_explicit_precision_is_no_atom_at_weight_zero():
    conditional = AnnealedSemiImplicitARDPrior(0.0, 0.0, 0.5, gate=1.0, precision=4.0)
    np.testing.assert_allclose(conditional.log_prob(0.3), tfd.Normal(0.0, 0.5).log_prob(0.3), rtol=1e-6)


@pytest.mark.parametrize("precision", [None, 2.0])
def test_moments_of_the_prior_mixture_are_those_of_its_samples(precision):
    mixture = prior(0.25, precision=precision)
    assert_moments(mixture.sample(N_SAMPLES, seed=[2, 5]).numpy(), mixture.mean().numpy(), mixture.variance().numpy())


def test_sharing_takes_the_very_tensors_of_the_posterior():
    conditional = posterior().given([1, 0, 1, 1, 0])
    shared = AnnealedSemiImplicitARDPrior.sharing(conditional, 0.5)
    assert all(getattr(shared, name) is getattr(conditional, name) for name in ("weight", "log_dropout_rate", "gate"))


# As TFP distributions.


@pytest.mark.parametrize("distribution", [posterior(), prior()])
def test_reparameterization_is_declared_honestly(distribution):
    assert distribution.reparameterization_type == tfd.NOT_REPARAMETERIZED
    assert distribution.given(np.ones(5)).reparameterization_type == tfd.FULLY_REPARAMETERIZED


@pytest.mark.parametrize("make", [posterior, prior])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shapes_and_dtypes(make, dtype):
    distribution = make(dtype=dtype)
    assert isinstance(distribution, tfd.Distribution)
    assert distribution.dtype == dtype and distribution.batch_shape == (5,) and distribution.event_shape == ()
    assert distribution.sample([2, 3], seed=[0, 1]).shape == (2, 3, 5)
    assert {tensor.dtype for tensor in (distribution.sample(seed=[0, 1]), distribution.mean(), distribution.variance())} == {
        tf.as_dtype(dtype)
    }
    gated = distribution.given(tf.ones([4, 1], tf.int32))
    assert gated.batch_shape == (4, 5) and gated[1, 2:].batch_shape == (3,)
    assert gated.mean().shape == gated.stddev().shape == gated.sample(seed=[0, 1]).shape == gated.log_prob(0.0).shape == (4, 5)
    np.testing.assert_array_equal(gated[1, 2:].mean(), gated.mean()[1, 2:])


@pytest.mark.parametrize("gate", [None, np.ones(3)])
def test_statistics_have_the_batch_shape_that_only_the_rates_have(gate):
    log_rate = np.zeros((2, 3))
    for distribution in (
        SemiImplicitPosterior(np.ones(3), log_rate, gate),
        AnnealedSemiImplicitARDPrior(np.ones(3), log_rate, 0.5, gate, precision=1.0),
    ):
        assert distribution.batch_shape == (2, 3)
        for statistic in (distribution.mean(), distribution.variance(), distribution.stddev(), distribution.sample(seed=[0, 1])):
            assert statistic.shape == (2, 3)


@pytest.mark.parametrize("distribution", [posterior(), prior()])
def test_parameter_properties_name_every_tensor_parameter(distribution):
    tensors = {name for name, value in distribution.parameters.items() if name not in ("validate_args", "allow_nan_stats", "name")}
    assert set(distribution.parameter_properties()) == tensors


def test_independent_sums_the_batch():
    conditional = posterior().given(np.ones(5))
    np.testing.assert_allclose(tfd.Independent(conditional, 1).log_prob(np.zeros(5)), np.sum(conditional.log_prob(np.zeros(5))))


def test_eager_and_graph_agree():
    @tf.function
    def compute(weight, log_rate, seed):
        distribution = SemiImplicitPosterior(weight, log_rate)
        gate, noise = distribution.draw(seed)
        tau = distribution.reparameterize(gate, noise)
        assert tau.shape == (5,)
        return gate, tau, distribution.given(gate).log_prob(tau), distribution.variance()

    arguments = tf.constant(WEIGHTS), tf.constant(LOG_RATES), tf.constant([1, 2])
    for graph, eager in zip(compute(*arguments), compute.python_function(*arguments), strict=True):
        np.testing.assert_allclose(graph, eager, rtol=1e-12)


def test_a_variable_is_read_at_every_use():
    log_rate = tf.Variable(LOG_RATES)
    distribution = SemiImplicitPosterior(WEIGHTS, log_rate)
    with tf.GradientTape() as tape:
        mean = distribution.mean()
    np.testing.assert_allclose(tape.gradient(mean, log_rate), -WEIGHTS * RATES / (1.0 + RATES) ** 2, rtol=1e-12)
    log_rate.assign(log_rate + 1.0)
    np.testing.assert_allclose(distribution.mean(), WEIGHTS / (1.0 + np.e * RATES), rtol=1e-12)


def test_inside_a_keras_layer_gradients_reach_its_variables():
    class Sampler(keras.layers.Layer):
        def build(self, _):
            self.gamma = self.add_weight(shape=(3,), initializer="ones", name="gamma")
            self.log_rate = self.add_weight(shape=(3,), initializer="zeros", name="log_rate")

        def call(self, x):
            return x * SemiImplicitPosterior(self.gamma, self.log_rate).given([1, 0, 1]).sample(seed=[0, 1])

    layer = Sampler()
    model = keras.Sequential([keras.Input((3,)), layer])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(tf.ones([2, 3])))
    gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
    assert len(gradients) == 2
    assert all(np.array_equal(gradient != 0.0, [True, False, True]) for gradient in gradients)


def test_arguments_are_validated_on_request():
    with pytest.raises(tf.errors.InvalidArgumentError, match="gate must be 0 or 1"):
        posterior(gate=[0.5] * 5, validate_args=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="prior_gap must not be negative"):
        prior(-0.1, validate_args=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="precision must be positive"):
        prior(0.5, precision=0.0, validate_args=True)
    gate = tf.Variable([1.0] * 5, dtype=tf.float64)
    checked = posterior(gate=gate, validate_args=True)
    gate.assign([0.0, 1.0, 2.0, 0.0, 1.0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="gate must be 0 or 1"):
        checked.mean()
    assert np.all(np.isfinite(prior(0.5, gate=np.ones(5), precision=1.0, validate_args=True).mean()))


# Seeds.


def test_step_seed_is_fixed_by_seed_step_and_purpose():
    seed = step_seed(3, 5, "operations")
    assert seed.shape == (2,) and seed.dtype == tf.int32
    variable = tf.Variable(5, dtype=tf.int64)
    for same in (
        step_seed(3, variable, "operations"),
        step_seed(tf.constant(3), keras.Variable(5, dtype="int64"), "operations"),
        tf.function(lambda step: step_seed(3, step, "operations"))(variable),
    ):
        assert same.dtype == tf.int32
        np.testing.assert_array_equal(same, seed)


def test_step_seed_is_the_same_in_every_process_and_version():
    # A run resumed by another process, or by a later release, must go on with the same draws.
    np.testing.assert_array_equal(step_seed(0, 0, "operations"), [-1496990542, 672420680])


def test_step_seeds_differ_between_seeds_steps_and_purposes():
    seeds = {
        tuple(step_seed(seed, step, purpose).numpy())
        for seed in (0, 1, 2**31 - 1)
        for step in range(10)
        for purpose in ("operations", "edges", 0, tf.constant(1))
    }
    assert len(seeds) == 3 * 10 * 4
    draws = {posterior().draw(seed).noise.numpy().tobytes() for seed in seeds}
    assert len(draws) == len(seeds)
