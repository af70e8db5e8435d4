"""The architecture's gradient of a bilevel problem: how the validation loss depends on the architecture parameters."""

import tensorflow as tf


def first_order(loss, variables):
    """The gradient at the current weights, as if they did not depend on the architecture (DARTS' first-order approximation).

    Args:
      loss: function without arguments to `(scalar loss, anything)`.
      variables: Keras variables to differentiate with respect to; nothing else is recorded.

    Returns:
      `(loss, anything, gradients)`; gradients are a list of tensors, zeros for variables that the loss does not reach.
    """
    tensors = [variable.value for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensors)
        value, extra = loss()
    return value, extra, tape.gradient(value, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)
