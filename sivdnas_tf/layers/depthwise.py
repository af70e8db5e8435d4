"""Depthwise convolution whose filter gradient is fast on a CPU."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="sivdnas_tf")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """Keras' layer; in training on a CPU, the gradient to a 5x5 filter is computed faster (`_depthwise_5x5`)."""

    def call(self, inputs, training=None):
        """As Keras' layer. `training` changes no value, only how gradients are computed: other graphs get the plain operation."""
        plain = (self.strides, self.padding, self.dilation_rate, self.data_format) == ((1, 1), "same", (1, 1), "channels_last")
        plain = plain and self.depth_multiplier == 1 and not self.use_bias and self.activation is keras.activations.linear
        if training and plain and self.kernel_size == (5, 5) and not tf.config.list_logical_devices("GPU"):
            # Identities, so that within a `tf.cond` the gradient finds tensors of the branch and not of the graph around it.
            return _depthwise_5x5(tf.identity(inputs), tf.identity(tf.cast(self.kernel, inputs.dtype)))
        return super().call(inputs)


@tf.custom_gradient
def _depthwise_5x5(images, kernel):
    """Depthwise convolution of stride 1 that pads by 2; its filter gradient is computed as that of two filters of three columns.

    The CPU kernel of the filter gradient is far slower for more than three columns (`benchmarks/filter_gradient.py`), and for padding of
    its own beyond one pixel: so the two see images that are padded already.
    """
    common = {"strides": [1, 1, 1, 1]}

    def gradient(upstream):
        channels = kernel.shape[2]
        columns = [
            tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=tf.pad(images, [[0, 0], [2, 2], sides, [0, 0]]),
                filter_sizes=[5, 3, channels, 1],
                out_backprop=upstream,
                padding="VALID",
                **common,
            )
            for sides in ([2, 0], [0, 2])
        ]
        of_images = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
            input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, padding="SAME", **common
        )
        return of_images, tf.concat([columns[0], columns[1][:, 1:]], axis=1)  # both have the middle column

    return tf.raw_ops.DepthwiseConv2dNative(input=images, filter=kernel, padding="SAME", **common), gradient
