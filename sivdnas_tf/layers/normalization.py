"""Batch normalisation as search and evaluation have it, on TensorFlow's fused kernel. Images are `[batch, height, width, channels]`."""

import keras
import tensorflow as tf

NORMALIZATIONS = ("batch_statistics", "batch", "synchronized_batch")
_EPSILON = 1e-5
_PACKAGE = "sivdnas_tf"


def make_normalization(kind, name, affine=True):
    """Batch normalisation of one of `NORMALIZATIONS`.

    Args:
      kind: "batch_statistics" (search: the batch's own statistics, no affine parameters unless asked for), "batch" or
        "synchronized_batch" (evaluation: Keras' layer with PyTorch's momentum and epsilon; statistics a replica, or over all of them).
      name: of the layer.
      affine: whether a scale and an offset are learnt.
    """
    if kind == "batch_statistics":
        return BatchStatisticsNormalization(affine=affine, name=name)
    if kind not in NORMALIZATIONS:
        raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}. Received: {kind!r}")
    return BatchNormalization(
        momentum=0.9, epsilon=_EPSILON, center=affine, scale=affine, synchronized=kind == "synchronized_batch", name=name
    )


@keras.saving.register_keras_serializable(_PACKAGE)
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer for images, trained by TensorFlow's fused kernel where a replica's batch gives the statistics.

    The same values, moving averages included; Keras' own computation is a dozen elementwise operations, forward and backward.
    """

    def call(self, inputs, training=None, mask=None):
        """Maps `[batch, height, width, channels]` to the same shape."""
        if not training or not self.trainable or self.synchronized:
            return super().call(inputs, training=training, mask=mask)
        channels = inputs.shape[-1]
        normalised, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32) if self.scale else tf.ones([channels]),
            offset=tf.cast(self.beta, tf.float32) if self.center else tf.zeros([channels]),
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) // channels, tf.float32)
        # The kernel gives the unbiased variance, as PyTorch's moving average has it; Keras' has the biased one.
        for moving, value in ((self.moving_mean, mean), (self.moving_variance, variance * (count - 1.0) / count)):
            moving.assign(moving * self.momentum + tf.cast(value, moving.dtype) * (1.0 - self.momentum))
        return normalised


@keras.saving.register_keras_serializable(_PACKAGE)
class BatchStatisticsNormalization(keras.layers.Layer):
    """Normalises each channel by the mean and variance of the batch at hand, in training and in inference alike.

    The search's normalisation: candidate operations then carry no moving averages, so that one that is skipped in a step is left
    exactly as it was (ARCHITECTURE.md, decision 5). Runs TensorFlow's fused kernel; Keras' own layer is a dozen elementwise ones.

    Args:
      affine: whether a scale (initially 1) and an offset (initially 0) a channel are learnt.
    """

    def __init__(self, affine=False, **kwargs):
        super().__init__(**kwargs)
        self.affine = affine

    def build(self, input_shape):
        """Makes the affine parameters, if any."""
        if self.affine:
            self.scale = self.add_weight(name="scale", shape=(input_shape[-1],), initializer="ones")
            self.offset = self.add_weight(name="offset", shape=(input_shape[-1],), initializer="zeros")

    def call(self, inputs, factor=1.0):
        """Maps `[batch, height, width, channels]` to the same shape.

        `factor`, a scalar, multiplies the result: within the kernel's own scale it costs nothing, and its gradient little.
        """
        channels = inputs.shape[-1]
        factor = tf.cast(factor, tf.float32)
        scale = factor * tf.cast(self.scale, tf.float32) if self.affine else tf.fill([channels], factor)
        offset = factor * tf.cast(self.offset, tf.float32) if self.affine else tf.zeros([channels])
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=tf.zeros([0]), variance=tf.zeros([0]), epsilon=_EPSILON, is_training=True
        ).y

    def compute_output_shape(self, input_shape):
        """The shape of the input."""
        return input_shape

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "affine": self.affine}
