"""TFLite in float32."""

import pathlib
import tempfile

import tensorflow as tf

from export.saved_model import write_saved_model


def write_tflite(model, path):
    """Writes a float32 TFLite model for one image a call, with the signature "serving_default": image -> logits.

    Converted from a SavedModel: from a concrete function the converter would silently give NaN, as its variables are not frozen
    (STACK.md section 4). A batch of one lets dilated convolutions and their batch-norm fold.

    Args:
      model: the Keras model of `freeze`.
      path: file to write.
    """
    with tempfile.TemporaryDirectory() as directory:
        write_saved_model(model, directory, batch_size=1)
        converter = tf.lite.TFLiteConverter.from_saved_model(directory)
        pathlib.Path(path).write_bytes(converter.convert())
