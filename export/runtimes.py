"""Each exported format in its own runtime: `load(artifact format, path)` gives a function from images to logits."""

import warnings

import numpy as np
import onnxruntime
import tensorflow as tf


def _load_saved_model(path):
    loaded = tf.saved_model.load(str(path))
    function = loaded.signatures["serving_default"]

    def run(images):
        return function(image=tf.constant(images))["logits"].numpy()

    run.keep_alive = loaded  # the signature alone does not hold its variables
    return run


def _load_onnx(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shape = session.get_inputs()[0].shape

    def run(images):
        # Images are square with few channels: the axis of the channels tells the layout.
        if shape[1] == images.shape[3] and shape[3] != images.shape[3]:
            images = images.transpose(0, 3, 1, 2)
        return session.run(["logits"], {"image": np.ascontiguousarray(images)})[0]

    return run


def _load_tflite(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ai-edge-litert announces another interpreter at import
        from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    signature = interpreter.get_signature_runner("serving_default")

    def run(images):
        return np.concatenate([signature(image=image[np.newaxis])["logits"] for image in images])

    run.keep_alive = interpreter
    return run


_LOADERS = {"saved_model": _load_saved_model, "onnx": _load_onnx, "tflite": _load_tflite}
FORMATS = tuple(_LOADERS)


def load(artifact_format, path):
    """The artifact in its runtime (TensorFlow, onnxruntime, ai-edge-litert).

    Args:
      artifact_format: one of `FORMATS`.
      path: file, or SavedModel directory.

    Returns:
      A function from float32 images `[n, resolution, resolution, channels]` to logits `[n, classes]`, NumPy both.
    """
    return _LOADERS[artifact_format](path)
