"""Stochastic depth for the paths of an evaluation network: one schedule a model, a layer a path."""

import keras
import tensorflow as tf

_PACKAGE = "sivdnas_tf"


@keras.saving.register_keras_serializable(_PACKAGE)
class DropPathSchedule(keras.layers.Layer):
    """The one place where a model's drop-path rate and step number live; its outputs feed every `DropPath`.

    The training loop assigns both. As variables of the model they are saved and restored with it, and the masks, keyed by the step,
    need no generator state.
    """

    def build(self, input_shape):
        """Makes the two scalars."""
        del input_shape
        self.rate = self.add_weight(name="rate", shape=(), initializer="zeros", trainable=False)
        self.step = self.add_weight(name="step", shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs):
        """Returns `(rate, step)`, scalars; `inputs` only gives the layer a place in the graph."""
        del inputs
        return tf.convert_to_tensor(self.rate), tf.convert_to_tensor(self.step)

    def compute_output_spec(self, inputs):
        """Two scalars."""
        del inputs
        return keras.KerasTensor((), "float32"), keras.KerasTensor((), "int32")


@keras.saving.register_keras_serializable(_PACKAGE)
class DropPath(keras.layers.Layer):
    """Zeroes its input for whole examples at random in training, and rescales the rest: stochastic depth for a path of a cell.

    Args:
      index: of this path in the network: paths are dropped independently.
      seed: of the masks; with the step, the index and the replica it decides them.
    """

    def __init__(self, index, seed=0, **kwargs):
        super().__init__(**kwargs)
        self.index, self.seed = index, seed

    def call(self, inputs, rate, step, training=None):
        """Maps `[batch, height, width, channels]` to the same shape; `rate` and `step` come from a `DropPathSchedule`."""
        if not training:
            return inputs
        context = tf.distribute.get_replica_context()
        replica = context.replica_id_in_sync_group if context else 0
        seed = tf.constant([self.seed, 0], tf.int32)
        for salt in (self.index, step, replica):
            seed = tf.random.experimental.stateless_fold_in(seed, salt)
        keep = 1.0 - tf.cast(rate, tf.float32)
        kept = tf.random.stateless_uniform([tf.shape(inputs)[0], 1, 1, 1], seed) < keep
        return inputs * tf.cast(tf.cast(kept, tf.float32) / keep, inputs.dtype)

    def compute_output_spec(self, inputs, rate, step, training=None):
        """The shape and type of the input."""
        del rate, step, training
        return keras.KerasTensor(inputs.shape, inputs.dtype)

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "index": self.index, "seed": self.seed}
