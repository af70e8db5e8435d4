"""The losses: all weighting of terms against each other lives here."""

import keras
import numpy as np
import tensorflow as tf


def class_weights(kind, labels, classes):
    """What an example of each class is multiplied by.

    Args:
      kind: "none", or "balanced": n / (classes * n_c) for a class with n_c of the n images (scikit-learn's formula), so that every class
        weighs the same and the mean over the images is 1.
      labels: int `[n]`, of the training images.
      classes: number of classes.

    Returns:
      None for "none", else float32 `[classes]`.
    """
    if kind == "none":
        return None
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32)


def cross_entropy(labels, logits, label_smoothing=0.0, weights=None):
    """Mean over the batch, in nats.

    Args:
      labels: int `[batch]`.
      logits: float `[batch, classes]`.
      label_smoothing: share of the target that is spread evenly over all classes.
      weights: float `[classes]` that an example's term is multiplied by, that of its label; None for 1. The sum is divided by the size
        of the batch, not by the batch's weights: an example weighs the same whichever batch it is in.

    Returns:
      float32 scalar.
    """
    logits = tf.cast(logits, tf.float32)
    if label_smoothing:
        classes = logits.shape[-1]
        targets = tf.one_hot(labels, classes) * (1.0 - label_smoothing) + label_smoothing / classes
        terms = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
    else:
        terms = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    return tf.reduce_mean(terms if weights is None else terms * tf.gather(weights, labels))


def architecture_loss(labels, logits, kl_divergence, kl_weight, weights=None, *, expected_cost=0.0, cost_scale=0.0):
    """What the architecture step minimises (Eq. 5): batch-mean cross-entropy + kl_weight * KL, + cost_scale * expected_cost.

    The last term is not the paper's, and 0 unless it is asked for.

    Args:
      labels, logits: of the architecture half; see `cross_entropy`, also for `weights`.
      kl_divergence: scalar, in nats, summed over both cell types' operations and edges (Eq. 14), each parameter set once.
      kl_weight: 1 / (number of images) is the negative ELBO an image, as the paper writes it; see METHOD.md section 2.
      expected_cost: scalar, the expected cost of the deployed network as a share of its budget.
      cost_scale: at least 0.
    """
    loss = cross_entropy(labels, logits, weights=weights) + kl_weight * kl_divergence
    return loss + cost_scale * expected_cost if cost_scale else loss


def training_loss(labels, logits, auxiliary_logits=None, *, auxiliary_weight=0.0, label_smoothing=0.0, weights=None):
    """What the training of an evaluation network minimises: cross-entropy + auxiliary_weight * the auxiliary head's."""
    loss = cross_entropy(labels, logits, label_smoothing, weights)
    if auxiliary_logits is None:
        return loss
    return loss + auxiliary_weight * cross_entropy(labels, auxiliary_logits, label_smoothing, weights)


def accuracy(labels, logits):
    """Share of the batch whose largest logit is the label's, float32 scalar."""
    return tf.reduce_mean(keras.metrics.sparse_categorical_accuracy(labels, logits))
