"""The losses: all weighting of terms against each other lives here."""

import keras
import tensorflow as tf


def cross_entropy(labels, logits, label_smoothing=0.0):
    """Mean over the batch, in nats.

    Args:
      labels: int `[batch]`.
      logits: float `[batch, classes]`.
      label_smoothing: share of the target that is spread evenly over all classes.

    Returns:
      float32 scalar.
    """
    logits = tf.cast(logits, tf.float32)
    if not label_smoothing:
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1.0 - label_smoothing) + label_smoothing / classes
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, logits))


def architecture_loss(labels, logits, kl_divergence, kl_weight):
    """What the architecture step minimises (Eq. 5): batch-mean cross-entropy + kl_weight * KL.

    Args:
      labels, logits: of the architecture half; see `cross_entropy`.
      kl_divergence: scalar, in nats, summed over both cell types' operations and edges (Eq. 14), each parameter set once.
      kl_weight: 1 / (number of images) is the negative ELBO an image, as the paper writes it; see METHOD.md section 2.
    """
    return cross_entropy(labels, logits) + kl_weight * kl_divergence


def training_loss(labels, logits, auxiliary_logits=None, *, auxiliary_weight=0.0, label_smoothing=0.0):
    """What the training of an evaluation network minimises: cross-entropy + auxiliary_weight * the auxiliary head's."""
    loss = cross_entropy(labels, logits, label_smoothing)
    if auxiliary_logits is None:
        return loss
    return loss + auxiliary_weight * cross_entropy(labels, auxiliary_logits, label_smoothing)


def accuracy(labels, logits):
    """Share of the batch whose largest logit is the label's, float32 scalar."""
    return tf.reduce_mean(keras.metrics.sparse_categorical_accuracy(labels, logits))
