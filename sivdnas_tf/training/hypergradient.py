"""The architecture's gradient of a bilevel problem: how the validation loss depends on the architecture parameters."""

import keras
import tensorflow as tf


def first_order(loss, variables, scale=None):
    """The gradient at the current weights, as if they did not depend on the architecture (DARTS' first-order approximation).

    Args:
      loss: function without arguments to `(scalar loss, anything)`.
      variables: Keras variables to differentiate with respect to; nothing else is recorded.
      scale: what the gradients are multiplied by from the start, so that they do not underflow in float16; None for 1.

    Returns:
      `(loss, anything, gradients)`; gradients are a list of tensors, zeros for variables that the loss does not reach.
    """
    tensors = [variable.value for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(tensors)
        value, extra = loss()
    gradients = tape.gradient(value, tensors, output_gradients=scale, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    return value, extra, gradients


def second_order(validation_loss, training_loss, variables, weights, *, learning_rate, step, average=lambda tensors: tensors, radius=0.01):
    """The gradient through one step of the weights (DARTS, Eq. 6 to 8), by a finite difference for the Hessian-vector product.

    With w' = step(w, d/dw training_loss) the weights one step ahead and v = d/dw' validation_loss(a, w'),

        gradient = d/da validation_loss(a, w') - learning_rate * [d/da training_loss(a, w + e v) - d/da training_loss(a, w - e v)] / 2e

    where e = radius / |v|. The weights themselves are never assigned: the losses see others in a `keras.StatelessScope`, so they must read
    `weights` as Keras variables.

    Args:
      validation_loss, training_loss: functions without arguments to `(scalar loss, anything)`; training_loss is called three times.
      variables: Keras variables a to differentiate with respect to.
      weights: Keras variables w.
      learning_rate: how far `step` moves a weight against its gradient.
      step: function of a list of gradients to the list of weights one step ahead.
      average: of a list of tensors over the replicas: what is averaged is a gradient to the weights, so that all take the same step.
      radius: of the difference, in the norm of the weights.

    Returns:
      As `first_order`, with the loss and the extra of validation_loss at w'.
    """
    tensors = [tf.convert_to_tensor(weight) for weight in weights]
    _, _, slopes = first_order(training_loss, weights)
    with keras.StatelessScope(state_mapping=list(zip(weights, step(average(slopes)), strict=True))):
        value, extra, gradients = first_order(validation_loss, [*variables, *weights])
    direct, direction = gradients[: len(variables)], average(gradients[len(variables) :])
    # A direction of 0 leaves nothing to correct: the two losses are then the same, whatever the distance.
    distance = radius / tf.maximum(tf.linalg.global_norm(direction), 1e-12)
    moved = []
    for sign in (1.0, -1.0):
        there = [tensor + sign * distance * towards for tensor, towards in zip(tensors, direction, strict=True)]
        with keras.StatelessScope(state_mapping=list(zip(weights, there, strict=True))):
            moved.append(first_order(training_loss, variables)[2])
    implicit = [(ahead - behind) / (2.0 * distance) for ahead, behind in zip(*moved, strict=True)]
    return value, extra, [gradient - learning_rate * mixed for gradient, mixed in zip(direct, implicit, strict=True)]
