import keras
import numpy as np
import tensorflow as tf

from sivdnas_tf.training import hypergradient

# A bilevel problem with a known solution. Inner: w*(a) minimises 1/2 |w - M a|^2, so w* = M a.
# Outer: L(a, w) = 1/2 |w - t|^2 + 1/2 c |a|^2.
# At w = w*(a) the first-order gradient is c a; the true one adds M^T (M a - t), which the approximation leaves out.
M = np.array([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]], np.float32)
TARGET = np.array([1.0, -2.0, 0.5], np.float32)
C = 0.3


def bilevel():
    a = keras.Variable(np.array([0.7, -1.2], np.float32), name="a")
    w = keras.Variable(M @ a.numpy(), name="w")

    def outer():
        value = 0.5 * tf.reduce_sum(tf.square(w.value - TARGET)) + 0.5 * C * tf.reduce_sum(tf.square(a.value))
        return value, {"w": w.value + 0.0}

    return a, w, outer


def test_first_order_gradient_is_the_partial_derivative():
    a, _, outer = bilevel()
    value, extra, gradients = hypergradient.first_order(outer, [a])
    w_star = M @ a.numpy()
    np.testing.assert_allclose(value, 0.5 * np.sum((w_star - TARGET) ** 2) + 0.5 * C * np.sum(a.numpy() ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], C * a.numpy(), rtol=1e-6)
    np.testing.assert_allclose(extra["w"], w_star)
    omitted = M.T @ (w_star - TARGET)
    assert np.abs(omitted).min() > 0.1  # the approximation is one here


def test_descent_with_inner_steps_ends_at_the_first_order_fixed_point():
    a, w, outer = bilevel()
    for _ in range(100):
        _, _, gradients = hypergradient.first_order(outer, [a])
        a.assign(a.value - 0.5 * gradients[0])
        w.assign(M @ a.numpy())
    # c a = 0, not the bilevel solution (M^T M + c I)^-1 M^T t.
    np.testing.assert_allclose(a, 0.0, atol=1e-5)
    assert np.abs(np.linalg.solve(M.T @ M + C * np.eye(2), M.T @ TARGET)).max() > 0.1


def test_a_mixed_term_is_differentiated_at_the_current_weights():
    a, w = keras.Variable([2.0], name="a"), keras.Variable([5.0], name="w")
    _, _, (of_a, of_w) = hypergradient.first_order(lambda: (tf.reduce_sum(tf.square(a.value) * w.value), None), [a, w])
    np.testing.assert_allclose((of_a, of_w), [[20.0], [4.0]])


def test_variables_that_the_loss_does_not_reach_get_zeros():
    a, unused = keras.Variable([2.0], name="a"), keras.Variable(np.ones((2, 3), np.float32), name="unused")
    _, _, gradients = hypergradient.first_order(lambda: (tf.reduce_sum(a.value), None), [unused, a])
    np.testing.assert_array_equal(gradients[0], np.zeros((2, 3)))
    np.testing.assert_array_equal(gradients[1], [1.0])


def test_graph_and_eager_agree():
    a, _, outer = bilevel()
    eager = hypergradient.first_order(outer, [a])[2]
    graph = tf.function(lambda: hypergradient.first_order(outer, [a])[2])()
    np.testing.assert_allclose(graph[0], eager[0], rtol=1e-6)


# Second order. The inner loss is quadratic, 1/2 (w - M a)^T H (w - M a), so that a step of it and all derivatives are known.
H = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 3.0]], np.float32)


def unrolled_bilevel():
    a, w, outer = bilevel()
    w.assign([0.3, -0.8, 1.1])  # not the inner solution: a step moves it

    def inner():
        gap = (w.value - tf.linalg.matvec(M, a.value))[:, None]
        return 0.5 * tf.squeeze(tf.matmul(gap, H @ gap, transpose_a=True)), None

    return a, w, outer, inner


def test_second_order_gradient_is_that_through_one_step():
    a, w, outer, inner = unrolled_bilevel()
    rate, before = 0.1, w.numpy()

    def step(gradients):
        return [w.value - rate * gradients[0]]

    value, extra, gradients = hypergradient.second_order(outer, inner, [a], [w], learning_rate=rate, step=step)
    ahead = before - rate * H @ (before - M @ a.numpy())
    # d w' / d a = rate * H M, so that the outer loss at w' adds rate * M^T H (w' - t).
    expected = C * a.numpy() + rate * M.T @ H @ (ahead - TARGET)
    np.testing.assert_allclose(extra["w"], ahead, rtol=1e-6)
    np.testing.assert_allclose(value, 0.5 * np.sum((ahead - TARGET) ** 2) + 0.5 * C * np.sum(a.numpy() ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradients[0], expected, rtol=1e-3)
    assert np.abs(expected - C * a.numpy()).min() > 0.05  # the correction is not small here
    np.testing.assert_array_equal(w.numpy(), before)  # bit for bit


def test_second_order_descent_ends_at_the_bilevel_solution():
    a, w, outer, inner = unrolled_bilevel()
    rate = 0.3

    def step(gradients):
        return [w.value - rate * gradients[0]]

    for _ in range(400):
        _, _, gradients = hypergradient.second_order(outer, inner, [a], [w], learning_rate=rate, step=step)
        a.assign(a.value - 0.2 * gradients[0])
        w.assign(M @ a.numpy())
    # At the inner solution w' = w: the fixed point has c a + rate M^T H (M a - t) = 0.
    solution = np.linalg.solve(rate * M.T @ H @ M + C * np.eye(2), rate * M.T @ H @ TARGET)
    np.testing.assert_allclose(a, solution, rtol=2e-3)


def test_second_order_gradient_is_finite_where_the_validation_loss_ignores_the_weights():
    a, w, _, inner = unrolled_bilevel()
    _, _, gradients = hypergradient.second_order(
        lambda: (tf.reduce_sum(tf.square(a.value)), None),
        inner,
        [a],
        [w],
        learning_rate=0.1,
        step=lambda slopes: [w.value - 0.1 * slopes[0]],
    )
    np.testing.assert_allclose(gradients[0], 2.0 * a.numpy(), rtol=1e-5)
