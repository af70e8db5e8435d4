"""What edges share, phases, and samples as batch-norm scales change nothing: a mixed operation is the weighted sum of its operations."""

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.layers.mixed_operation import MixedOperation, empty_sums, to_phases, total
from sivdnas_tf.search_space import DARTS_PRIMITIVES, EVALUATION_OPERATIONS

CHANNELS, BATCH = 4, 3
MIXED = {stride: MixedOperation(DARTS_PRIMITIVES, CHANNELS, stride) for stride in (1, 2)}
EVERY_OTHER = np.arange(len(DARTS_PRIMITIVES)) % 2 == 0
# A size of odd phases, one without phases (stride 1 only: factorized reduce takes even sizes), and the smallest.
CASES = [(1, 6), (1, 5), (1, 2), (2, 6), (2, 4)]


def samples():
    return tf.constant(np.random.default_rng(1).normal(size=len(DARTS_PRIMITIVES)).astype(np.float32))


def images(resolution):
    return tf.constant(np.random.default_rng(2).normal(size=(BATCH, resolution, resolution, CHANNELS)).astype(np.float32))


def variables(mixed):
    return [list(template.trainable_variables) for template in mixed.templates]


def plain(mixed, image, factors, gates):
    """The sum as Eq. 12 writes it, each operation on its own."""
    return tf.add_n([factors[index] * mixed.templates[index](image) for index in np.flatnonzero(gates)])


def mixed_sum(mixed, image, factors, gates, gradients_to="all", edges=1):
    """The mixed operation, summed over as many edges alike."""
    sums = empty_sums(image[:, :: mixed.stride, :: mixed.stride, :])
    weights = [[tf.convert_to_tensor(variable) for variable in own] for own in variables(mixed)]
    begun = mixed.beginnings(image, tf.constant(gates))
    for _ in range(edges):
        sums, begun = mixed.add(sums, begun, factors, tf.constant(gates), weights, gradients_to)
    return total(sums)


def with_gradients(function, mixed, image, factors, gates):
    """The output and the gradients of a projection of it to image, factors and all weights."""
    weights = [variable.value for own in variables(mixed) for variable in own]

    @tf.function(autograph=False)
    def compute():
        with tf.GradientTape() as tape:
            tape.watch([image, factors])
            output = function(mixed, image, factors, gates)
            direction = tf.random.stateless_normal(output.shape, [3, 4])
            value = tf.reduce_sum(output * direction)
        return output, tape.gradient(value, [image, factors, *weights], unconnected_gradients=tf.UnconnectedGradients.ZERO)

    output, gradients = compute()
    return [output.numpy(), *(tf.convert_to_tensor(gradient).numpy() for gradient in gradients)]


@pytest.mark.parametrize("gates", [np.ones(7, bool), EVERY_OTHER, ~EVERY_OTHER], ids=["all", "every other", "the others"])
@pytest.mark.parametrize(("stride", "resolution"), CASES)
def test_values_and_gradients_are_those_of_the_weighted_sum(stride, resolution, gates):
    arguments = MIXED[stride], images(resolution), samples(), gates
    for shared, alone in zip(with_gradients(mixed_sum, *arguments), with_gradients(plain, *arguments), strict=True):
        np.testing.assert_allclose(shared, alone, atol=2e-4 * max(1.0, np.abs(alone).max()))


@pytest.mark.parametrize(("stride", "resolution"), CASES)
def test_edges_that_leave_a_node_add_up_their_gradients_to_it(stride, resolution):
    def twice(mixed, image, factors, gates):
        return mixed_sum(mixed, image, factors, gates, edges=2)

    def plain_twice(mixed, image, factors, gates):
        return 2.0 * plain(mixed, image, factors, gates)

    arguments = MIXED[stride], images(resolution), samples(), EVERY_OTHER
    for chained, alone in zip(with_gradients(twice, *arguments), with_gradients(plain_twice, *arguments), strict=True):
        np.testing.assert_allclose(chained, alone, atol=2e-4 * max(1.0, np.abs(alone).max()))


@pytest.mark.parametrize("gradients_to", ["weights", "samples"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_gradient_that_is_not_asked_for_is_zero_and_changes_no_other(stride, gradients_to):
    def asked(mixed, image, factors, gates):
        return mixed_sum(mixed, image, factors, gates, gradients_to)

    arguments = MIXED[stride], images(6), samples(), np.ones(7, bool)
    output, of_image, of_samples, *of_weights = with_gradients(asked, *arguments)
    expected, expected_of_image, expected_of_samples, *expected_of_weights = with_gradients(mixed_sum, *arguments)
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_allclose(of_image, expected_of_image, rtol=1e-4, atol=1e-4)
    if gradients_to == "weights":
        assert not np.any(of_samples)
        np.testing.assert_allclose(np.concatenate(of_weights, None), np.concatenate(expected_of_weights, None), rtol=1e-3, atol=1e-3)
    else:
        assert not np.any(np.concatenate(of_weights, None))
        np.testing.assert_allclose(of_samples, expected_of_samples, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_nothing_is_added_where_every_gate_is_off(stride):
    off = np.zeros(len(DARTS_PRIMITIVES), bool)
    assert not np.any(mixed_sum(MIXED[stride], images(6), samples(), off))


@pytest.mark.parametrize(("stride", "resolution"), CASES)
def test_samples_of_examples_scale_each_of_them(stride, resolution):
    mixed, image = MIXED[stride], images(resolution)
    factors = tf.constant(np.random.default_rng(4).normal(size=(BATCH, len(DARTS_PRIMITIVES))).astype(np.float32))

    def plain_examples(mixed, image, factors, gates):
        terms = [factors[:, index, None, None, None] * mixed.templates[index](image) for index in np.flatnonzero(gates)]
        return tf.add_n(terms)

    arguments = mixed, image, factors, EVERY_OTHER
    for shared, alone in zip(with_gradients(mixed_sum, *arguments), with_gradients(plain_examples, *arguments), strict=True):
        np.testing.assert_allclose(shared, alone, rtol=1e-3, atol=1e-4)


def test_pools_that_no_edge_needs_are_not_computed():
    begun = MIXED[1].beginnings(images(6), tf.constant(EVERY_OTHER))  # max pool needed, average pool not
    assert np.any(begun["max"]) and not np.any(begun["average"])


def test_every_operation_of_an_evaluation_can_be_mixed():
    for stride in (1, 2):
        mixed = MixedOperation(EVALUATION_OPERATIONS, CHANNELS, stride)
        factors, gates = tf.ones(len(EVALUATION_OPERATIONS)), np.ones(len(EVALUATION_OPERATIONS), bool)
        shared, alone = mixed_sum(mixed, images(6), factors, gates), plain(mixed, images(6), factors, gates)
        np.testing.assert_allclose(shared, alone, atol=1e-4)


def test_phases_are_the_images_of_every_second_pixel():
    image = images(6)
    phases = to_phases(image)
    assert phases.shape == (4 * BATCH, 3, 3, CHANNELS)
    expected = [image[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    np.testing.assert_array_equal(phases, tf.concat(expected, axis=0))
    np.testing.assert_array_equal(total({"image": tf.zeros_like(image), "phases": phases}), image)
