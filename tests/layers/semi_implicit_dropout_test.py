import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import SearchConfig
from sivdnas_tf.errors import ConfigError
from sivdnas_tf.layers.semi_implicit_dropout import MIXINGS, SemiImplicitDropout
from sivdnas_tf.search_space import get_search_space
from sivdnas_tf.training.distribution import make_strategy
from sivdnas_tf.variational.distributions import Draw, SemiImplicitPosterior, step_seed
from sivdnas_tf.variational.kl import kl_divergence_closed_form

SPACE = get_search_space("darts")
NODES = tuple(node for _, node in SPACE.edges)
SEED = tf.constant([1, 2])


def operations(**kwargs):
    return SemiImplicitDropout((14, 7), **kwargs)


def edges(**kwargs):
    return SemiImplicitDropout((14,), groups=NODES, **kwargs)


def randomised(layer):
    """The layer with parameters away from their initial values."""
    generator = np.random.default_rng(0)
    layer.weight.assign(generator.normal(0.5, 1.0, layer.shape))
    layer.log_dropout_rate.assign(generator.normal(-0.5, 1.0, layer.shape))
    return layer


# Parameters and configuration.


@pytest.mark.parametrize("make", [operations, edges])
@pytest.mark.parametrize("mixing", MIXINGS)
def test_weights_losses_and_seeds_are_counted(make, mixing):
    layer = make(mixing=mixing, name="normal")
    layer(layer.draw(SEED))
    assert [variable.path for variable in layer.trainable_variables] == ["normal/weight", "normal/log_dropout_rate"]
    assert {tuple(variable.shape) for variable in layer.variables} == {layer.shape}
    assert len(layer.variables) == 2 and not layer.non_trainable_variables and not layer.losses
    assert layer.count_params() == 2 * np.prod(layer.shape)


@pytest.mark.parametrize(
    ("mixing", "initial", "mixed"),
    [("identity", 1.0, 1.0), ("average", 1.0, 1.0 / 7.0), ("sigmoid", 0.0, 0.5), ("softmax", 0.0, 1.0 / 7.0)],
)
def test_initial_values(mixing, initial, mixed):
    layer = operations(mixing=mixing)
    np.testing.assert_array_equal(layer.weight, np.full((14, 7), initial))
    np.testing.assert_allclose(layer.mixing_weights(), np.full((14, 7), mixed), rtol=1e-6)
    np.testing.assert_array_equal(layer.log_dropout_rate, np.full((14, 7), -5.0))
    np.testing.assert_array_equal(edges(initial_log_dropout_rate=-3.0).log_dropout_rate, np.full(14, -3.0))


@pytest.mark.parametrize("layer", [operations(mixing="sigmoid"), edges(mixing="softmax", initial_log_dropout_rate=-3.0, name="e")])
def test_config_round_trip(layer):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(copy) is SemiImplicitDropout
    assert copy.get_config() == layer.get_config()
    randomised(layer)
    copy.set_weights(layer.get_weights())
    np.testing.assert_array_equal(copy(copy.draw(SEED)), layer(layer.draw(SEED)))


def test_a_saved_model_keeps_the_parameters(tmp_path):
    layer = randomised(operations(mixing="softmax"))
    inputs = [keras.Input((7,), batch_size=14, dtype="float32") for _ in range(2)]
    model = keras.Model(inputs, layer(Draw(*inputs)))
    model.save(tmp_path / "model.keras")
    draw = layer.draw(SEED)
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(list(draw)), layer(draw))


def test_mixings_are_those_of_the_configuration():
    field = next(field for field in dataclasses.fields(SearchConfig) if field.name == "mixing")
    assert field.metadata["choices"] == MIXINGS and field.default == operations().mixing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixing": "softmaks"}, "unknown mixing. Did you mean 'softmax'.*Received: mixing='softmaks'"),
        ({"shape": ()}, "at least one axis.*Received: shape="),
        ({"shape": (3, 0)}, "at least 1.*Received: shape="),
        ({"initial_log_dropout_rate": float("nan")}, "must be finite.*Received: initial_log_dropout_rate=nan"),
        ({"groups": (2, 2)}, "one integer for each.*Received: 2 groups"),
        ({"shape": (2, 7), "groups": (2, 2)}, "1-D shape.*Received: 2 groups"),
        ({"mixing": "softmax"}, "softmax over edges needs groups.*Received: groups=None"),
        ({"mixing": "average"}, "average over edges needs groups.*Received: groups=None"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SemiImplicitDropout(**{"shape": (3,), **arguments})


# Mixing.


@pytest.mark.parametrize("make", [operations, edges])
def test_identity_and_sigmoid(make):
    layer = randomised(make())
    np.testing.assert_array_equal(layer.mixing_weights(), layer.weight)
    layer = randomised(make(mixing="sigmoid"))
    np.testing.assert_allclose(layer.mixing_weights(), 1.0 / (1.0 + np.exp(-layer.weight.numpy())), rtol=1e-6)


def test_an_average_divides_by_the_operations_of_an_edge_and_by_the_edges_of_a_node():
    layer = randomised(operations(mixing="average"))
    np.testing.assert_allclose(layer.mixing_weights(), layer.weight.numpy() / 7, rtol=1e-6)
    layer = randomised(edges(mixing="average"))
    into = np.array([len(SPACE.edges_into(node)) for _, node in SPACE.edges])
    assert set(into) == {2, 3, 4, 5}
    np.testing.assert_allclose(layer.mixing_weights(), layer.weight.numpy() / into, rtol=1e-6)
    layer = SemiImplicitDropout((4,), mixing="average", groups=(9, -1, 9, 9))
    np.testing.assert_allclose(layer.mixing_weights(), [1 / 3, 1, 1 / 3, 1 / 3], rtol=1e-6)


def test_softmax_of_operations_sums_to_one_on_every_edge():
    layer = randomised(operations(mixing="softmax"))
    np.testing.assert_allclose(layer.mixing_weights().numpy().sum(-1), np.ones(14), rtol=1e-6)
    np.testing.assert_allclose(layer.mixing_weights()[3], keras.ops.softmax(layer.weight[3]), rtol=1e-6)


def test_softmax_of_edges_sums_to_one_on_every_node():
    layer = randomised(edges(mixing="softmax"))
    mixed = layer.mixing_weights().numpy()
    for node in SPACE.nodes:
        into = list(SPACE.edges_into(node))
        np.testing.assert_allclose(mixed[into].sum(), 1.0, rtol=1e-6)
        np.testing.assert_allclose(mixed[into], keras.ops.softmax(layer.weight.numpy()[into]), rtol=1e-6)


def test_groups_may_be_any_integers_in_any_order():
    layer = SemiImplicitDropout((4,), mixing="softmax", groups=(9, -1, 9, 9))
    layer.weight.assign([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(layer.mixing_weights().numpy()[[0, 2, 3]], keras.ops.softmax(np.array([1.0, 3.0, 4.0])), rtol=1e-6)
    assert layer.mixing_weights()[1] == 1.0


@pytest.mark.parametrize("largest", [-1e4, 0.0, 1e4])
def test_softmax_of_edges_stands_large_weights(largest):
    layer = SemiImplicitDropout((4,), mixing="softmax", groups=(2, 2, 3, 3))
    layer.weight.assign([largest, largest - 1.0, -largest, -largest])
    with tf.GradientTape() as tape:
        mixed = layer.mixing_weights()
        first = mixed[0]
    np.testing.assert_allclose(mixed, [1.0 / (1.0 + np.exp(-1.0)), 1.0 / (1.0 + np.e), 0.5, 0.5], rtol=1e-3)
    product = mixed[0] * mixed[1]
    np.testing.assert_allclose(tape.gradient(first, layer.weight.value), [product, -product, 0.0, 0.0], rtol=1e-5, atol=1e-7)


# Draws and samples.


@pytest.mark.parametrize("make", [operations, edges])
def test_a_draw_holds_gates_and_noise(make):
    layer = make(initial_log_dropout_rate=0.0)
    draw = layer.draw(SEED)
    assert isinstance(draw, Draw)
    assert draw.gate.shape == draw.noise.shape == layer.shape
    assert draw.gate.dtype == draw.noise.dtype == tf.float32
    assert set(np.unique(draw.gate)) == {0.0, 1.0}
    assert len(np.unique(draw.noise)) == draw.noise.shape.num_elements()


def test_a_draw_is_fixed_by_its_seed():
    layer = operations(initial_log_dropout_rate=0.0)
    draws = [layer.draw(step_seed(0, step, purpose)) for step, purpose in ((4, "a"), (4, "a"), (5, "a"), (4, "b"))]
    layer.weight.assign(layer.weight * 3.0)  # the weights have no part in it
    draws.append(layer.draw(step_seed(0, 4, "a")))
    for same in (draws[1], draws[4]):
        np.testing.assert_array_equal(same.gate, draws[0].gate)
        np.testing.assert_array_equal(same.noise, draws[0].noise)
    for other in (draws[2], draws[3]):
        assert np.any(other.gate != draws[0].gate)
        assert np.all(other.noise != draws[0].noise)


def test_gates_are_drawn_at_the_current_rates():
    layer = operations()
    layer.log_dropout_rate.assign(np.tile(np.where(np.arange(7) < 3, -30.0, 30.0), (14, 1)))
    np.testing.assert_array_equal(layer.draw(SEED).gate, np.tile(np.arange(7) < 3, (14, 1)))


def test_gate_frequency_follows_the_keep_probability():
    layer = SemiImplicitDropout((20_000,), initial_log_dropout_rate=1.0)
    keep = 1.0 / (1.0 + np.e)
    np.testing.assert_allclose(layer.keep_probability(), np.full(20_000, keep), rtol=1e-6)
    assert abs(np.mean(layer.draw(SEED).gate) - keep) < 5.0 * np.sqrt(keep * (1.0 - keep) / 20_000)


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("make", [operations, edges])
def test_a_sample_is_the_reparameterised_draw(make, mixing):
    layer = randomised(make(mixing=mixing))
    gate, noise = draw = layer.draw(SEED)
    expected = layer.mixing_weights() * gate * (1.0 + np.exp(0.5 * layer.log_dropout_rate.numpy()) * noise)
    sample = layer(draw)
    assert sample.dtype == tf.float32
    np.testing.assert_allclose(sample, expected, rtol=1e-5)
    np.testing.assert_allclose(sample, layer.posterior().sample(seed=SEED), rtol=1e-6)


def test_a_sample_passes_gradients_to_both_parameters_of_what_is_kept():
    layer = randomised(operations())
    draw = layer.draw(SEED)
    with tf.GradientTape() as tape:
        sample = layer(draw)
    for gradient in tape.gradient(sample, [variable.value for variable in layer.trainable_variables]):
        np.testing.assert_array_equal(gradient != 0.0, draw.gate == 1.0)


# Gates that pass gradient.


def gate_gradient(layer, function):
    """The draw, its differentiable gate, and the gradient of `function(gate)` to the log dropout rates."""
    draw, rates = layer.draw(SEED), layer.log_dropout_rate.value
    with tf.GradientTape() as tape:
        tape.watch(rates)
        own = layer.differentiable(draw, SEED)
        value = function(own.gate)
    np.testing.assert_array_equal(own.noise, draw.noise)
    return draw, own.gate, tape.gradient(value, rates)


def test_a_gate_passes_no_gradient_by_default():
    draw, gate, gradient = gate_gradient(randomised(operations()), tf.reduce_sum)
    np.testing.assert_array_equal(gate, draw.gate)
    assert gradient is None


def test_straight_through_is_the_gate_drawn_with_the_gradient_of_its_probability():
    layer = randomised(operations(gate_gradient="straight_through"))
    slope = np.random.default_rng(3).normal(size=layer.shape).astype(np.float32)
    draw, gate, gradient = gate_gradient(layer, lambda gate: tf.reduce_sum(slope * gate))
    np.testing.assert_allclose(gate, draw.gate, atol=1e-6)
    keep = layer.keep_probability().numpy()
    np.testing.assert_allclose(gradient, -slope * keep * (1.0 - keep), rtol=1e-5)
    np.testing.assert_array_equal(draw.gate, randomised(operations()).draw(SEED).gate)  # nothing else about the draw changes


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_a_relaxed_gate_rounds_to_the_gate_drawn_and_follows_the_rate(temperature):
    layer = randomised(operations(gate_gradient="relaxed", gate_temperature=temperature))
    draw, gate, gradient = gate_gradient(layer, tf.reduce_sum)
    np.testing.assert_array_equal(tf.round(gate), draw.gate)
    assert np.asarray(gate).min() > 0.0 and np.asarray(gate).max() <= 1.0
    gate = np.asarray(gate)
    np.testing.assert_allclose(gradient, -gate * (1.0 - gate) / temperature, rtol=1e-4, atol=1e-6)


def test_gates_of_a_relaxation_have_the_keep_probability():
    layer = randomised(SemiImplicitDropout((20_000, 3), gate_gradient="relaxed", gate_temperature=0.3))
    layer.log_dropout_rate.assign(np.tile([-1.0, 0.0, 2.0], (20_000, 1)))
    frequency = tf.reduce_mean(layer.draw(SEED).gate, axis=0)
    np.testing.assert_allclose(frequency, layer.keep_probability()[0], atol=5 * 0.5 / np.sqrt(20_000))


def test_noise_of_several_places_shares_the_gates():
    layer, noise_seed = randomised(operations()), tf.constant([3, 4])
    draw = layer.draw(SEED, (5, 2), noise_seed)
    np.testing.assert_array_equal(draw.gate, layer.draw(SEED).gate)
    assert draw.noise.shape == (5, 2, 14, 7)
    assert len({float(value) for value in tf.reshape(draw.noise, [-1])}) > 950  # of 980: all its own
    np.testing.assert_array_equal(draw.noise, layer.draw(tf.constant([8, 9]), (5, 2), noise_seed).noise)
    expected = layer.mixing_weights() * draw.gate * (1.0 + tf.exp(0.5 * layer.log_dropout_rate.value) * draw.noise)
    np.testing.assert_allclose(layer(draw), expected, rtol=1e-5)


def test_one_draw_serves_two_updates():
    layer = randomised(operations())
    draw = layer.draw(SEED)
    before = layer(draw)
    layer.weight.assign(2.0 * layer.weight)
    np.testing.assert_allclose(layer(draw), 2.0 * before, rtol=1e-6)


def test_a_vanishing_rate_gives_the_mixing_weights():
    layer = operations(mixing="softmax", initial_log_dropout_rate=-40.0)
    np.testing.assert_allclose(layer(layer.draw(SEED)), layer.mixing_weights(), rtol=1e-6)
    np.testing.assert_allclose(layer.expected_sample(), layer.mixing_weights(), rtol=1e-6)


def test_expected_sample_is_the_mean_of_samples():
    layer = randomised(SemiImplicitDropout((5,), mixing="sigmoid"))
    samples = layer.posterior().sample(100_000, seed=SEED).numpy()
    tolerance = 5.0 * samples.std(0) / np.sqrt(len(samples))
    assert np.all(tolerance < 0.2 * layer.expected_sample())
    np.testing.assert_array_less(np.abs(samples.mean(0) - layer.expected_sample()), tolerance)
    np.testing.assert_allclose(layer.expected_sample(), layer.mixing_weights() * layer.keep_probability(), rtol=1e-6)


def test_posterior_is_the_distribution():
    layer = randomised(edges())
    assert isinstance(layer.posterior(), SemiImplicitPosterior)
    assert layer.posterior().batch_shape == (14,) and layer.posterior().gate is None


# KL.


@pytest.mark.parametrize("mixing", MIXINGS)
@pytest.mark.parametrize("make", [operations, edges])
def test_divergence_is_the_closed_form_summed_over_kept_parameters(make, mixing):
    layer = randomised(make(mixing=mixing))
    draw = layer.draw(SEED)
    expected = np.sum(draw.gate * 0.5 * np.log1p(0.7 * np.exp(-layer.log_dropout_rate.numpy())))
    for prior_gap in (0.7, np.float64(0.7), tf.Variable(0.7), keras.Variable(0.7)):
        divergence = layer.kl_divergence(draw, prior_gap)
        assert divergence.shape == () and divergence.dtype == tf.float32
        np.testing.assert_allclose(divergence, expected, rtol=1e-5)


def test_divergence_reaches_the_dropout_rates_and_not_the_weights():
    layer = randomised(operations(mixing="softmax"))
    draw = layer.draw(SEED)
    with tf.GradientTape() as tape:
        divergence = layer.kl_divergence(draw, 1.0)
    by_weight, by_log_rate = tape.gradient(
        divergence, [variable.value for variable in layer.trainable_variables], unconnected_gradients="zero"
    )
    np.testing.assert_array_equal(by_weight, np.zeros((14, 7)))
    np.testing.assert_array_equal(by_log_rate < 0.0, draw.gate == 1.0)


def test_divergence_is_zero_without_a_gap_or_without_gates():
    layer = randomised(operations())
    assert layer.kl_divergence(layer.draw(SEED), 0.0) == 0.0
    assert layer.kl_divergence(Draw(tf.zeros((14, 7)), tf.ones((14, 7))), 1.0) == 0.0


def test_minimising_the_divergence_raises_the_dropout_rates():
    layer = operations()
    optimizer = keras.optimizers.Adam(0.5)
    for step in range(20):
        draw = layer.draw(step_seed(0, step, "operations"))
        with tf.GradientTape() as tape:
            loss = layer.kl_divergence(draw, 1.0)
        variables = [layer.log_dropout_rate]
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
    expected = kl_divergence_closed_form(layer.log_dropout_rate.numpy(), 1.0)
    assert np.all(layer.log_dropout_rate > 0.0) and np.all(expected < kl_divergence_closed_form(-5.0, 1.0))
    np.testing.assert_array_equal(layer.weight, np.ones((14, 7)))


# Where it runs.


def test_graph_and_eager_agree():
    layer = randomised(edges(mixing="softmax"))

    @tf.function
    def compute(step, prior_gap):
        draw = layer.draw(step_seed(0, step, "edges"))
        return draw.gate, draw.noise, layer(draw), layer.kl_divergence(draw, prior_gap)

    arguments = tf.Variable(3, dtype=tf.int64), tf.constant(0.5)
    for graph, eager in zip(compute(*arguments), compute.python_function(*arguments), strict=True):
        np.testing.assert_allclose(graph, eager, rtol=1e-5)


def test_float32_under_a_bfloat16_policy():
    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__(dtype="mixed_bfloat16")
            self.dropout = randomised(edges(mixing="softmax"))

        def call(self, x):
            draw = self.dropout.draw(SEED)
            self.results = (
                draw,
                self.dropout(draw),
                self.dropout.mixing_weights(),
                self.dropout.keep_probability(),
                self.dropout.kl_divergence(draw, 0.5),
            )
            return x

    outer = Outer()
    outer(tf.ones([1, 2]))
    reference = outer.dropout
    expected = (
        reference.draw(SEED),
        reference(reference.draw(SEED)),
        reference.mixing_weights(),
        reference.keep_probability(),
        reference.kl_divergence(reference.draw(SEED), 0.5),
    )
    for result, value in zip(tf.nest.flatten(outer.results), tf.nest.flatten(expected), strict=True):
        assert result.dtype == tf.float32
        np.testing.assert_array_equal(result, value)


def test_float32_under_a_global_bfloat16_policy():
    expected = randomised(edges())
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        layer = randomised(edges())
    finally:
        keras.config.set_dtype_policy(policy)
    sample = layer(layer.draw(SEED))
    assert sample.dtype == tf.float32
    np.testing.assert_array_equal(sample, expected(expected.draw(SEED)))


def test_replicas_draw_the_same_and_agree_with_a_single_device():
    strategy = make_strategy("mirrored")
    with strategy.scope():
        layer = operations(initial_log_dropout_rate=0.0)

    @tf.function
    def step(number):
        def replica():
            draw = layer.draw(step_seed(7, number, "operations"))
            return draw.gate, draw.noise, layer(draw), layer.kl_divergence(draw, 0.5)

        return [strategy.experimental_local_results(result) for result in strategy.run(replica)]

    single = operations(initial_log_dropout_rate=0.0)
    draw = single.draw(step_seed(7, 3, "operations"))
    expected = (*draw, single(draw), single.kl_divergence(draw, 0.5))
    results = step(tf.constant(3))
    assert strategy.num_replicas_in_sync == 2
    for replicas, value in zip(results, expected, strict=True):
        assert len(replicas) == 2
        np.testing.assert_array_equal(*replicas)
        np.testing.assert_allclose(replicas[0], value, rtol=1e-6)
