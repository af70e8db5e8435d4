"""Each exported format in its own runtime: TensorFlow, onnxruntime, ai-edge-litert."""

import contextlib
import dataclasses
import inspect
import typing
import warnings

import numpy as np
import onnxruntime
import tensorflow as tf
from google.protobuf.message import DecodeError
from onnxruntime.capi import onnxruntime_pybind11_state

from sivdnas_tf.errors import AgreementError
from sivdnas_tf.quiet import quiet

SIGNATURE = "serving_default"
LAYOUTS = ("nhwc", "nchw")
# onnxruntime's errors have no base class of their own.
_ONNXRUNTIME_ERRORS = tuple(
    value for _, value in inspect.getmembers(onnxruntime_pybind11_state, inspect.isclass) if issubclass(value, Exception)
)
_FAILURES = (*_ONNXRUNTIME_ERRORS, OSError, ValueError, RuntimeError, KeyError, DecodeError, tf.errors.OpError)


@dataclasses.dataclass(frozen=True, eq=False)
class Runtime:
    """An artifact, loaded.

    Attributes:
      input, output: `{"name", "shape", "dtype"}` as the runtime reports them, of the input also "layout"; a size of None is free.
      call: function of float32 images `[n, resolution, resolution, channels]` to logits `[n, classes]`, NumPy both.
      owner: what must live as long as `call`.
    """

    input: dict
    output: dict
    call: typing.Callable = dataclasses.field(repr=False)
    owner: object = dataclasses.field(default=None, repr=False)

    def run(self, images):
        """Logits of float32 images `[n, resolution, resolution, channels]`; raises `AgreementError` where the runtime fails."""
        with failures_named("fails in its runtime"):
            return np.asarray(self.call(images))


@contextlib.contextmanager
def failures_named(what):
    """Turns what a runtime raises into an `AgreementError`."""
    try:
        yield
    except _FAILURES as error:
        text = " ".join(str(error).split())[:300]
        raise AgreementError(f"the artifact {what}. Received: {type(error).__name__}: {text}") from error


@contextlib.contextmanager
def full_float32():
    """Keeps a GPU from rounding the factors of float32 products to TensorFloat-32's 10 bits: artifacts are compared in float32."""
    enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(enabled)


def load(artifact_format, path, layout="nhwc", threads=None):
    """Loads an artifact in its runtime.

    Args:
      artifact_format: one of `FORMATS`.
      path: file, or SavedModel directory.
      layout: one of `LAYOUTS`, of the artifact's input. Whoever calls the `Runtime` gives images as "nhwc" all the same.
      threads: of TFLite's interpreter; None is its own choice.

    Returns:
      A `Runtime`.

    Raises:
      AgreementError: where the runtime does not take the artifact.
    """
    with failures_named("cannot be loaded in its runtime"), quiet():
        if artifact_format == "tflite":
            return _load_tflite(str(path), layout, threads)
        return _LOADERS[artifact_format](str(path), layout)


def _load_saved_model(path, layout):
    loaded = tf.saved_model.load(path)
    function = loaded.signatures[SIGNATURE]
    image, logits = function.structured_input_signature[1]["image"], function.structured_outputs["logits"]

    def call(images):
        with full_float32():
            return function(image=tf.constant(_laid_out(images, layout)))["logits"].numpy()

    tensors = [{"name": name, "shape": tensor.shape.as_list(), "dtype": tensor.dtype.name} for name, tensor in _named(image, logits)]
    return Runtime({**tensors[0], "layout": layout}, tensors[1], call, owner=loaded)  # a signature does not hold its variables


def _load_onnx(path, layout):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,), (logits,) = session.get_inputs(), session.get_outputs()

    def call(images):
        return session.run([logits.name], {image.name: _laid_out(images, layout)})[0]

    def described(tensor):
        shape = [size if isinstance(size, int) else None for size in tensor.shape]
        return {"name": tensor.name, "shape": shape, "dtype": _ONNX_DTYPES.get(tensor.type, tensor.type)}

    return Runtime({**described(image), "layout": layout}, described(logits), call)


_ONNX_DTYPES = {"tensor(float)": "float32"}


def _load_tflite(path, layout, threads=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ai-edge-litert announces another interpreter at import
        from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    signature = interpreter.get_signature_runner(SIGNATURE)
    details = _named(signature.get_input_details()["image"], signature.get_output_details()["logits"])

    def call(images):
        # The signature takes one image.
        return np.concatenate([signature(image=image[np.newaxis])["logits"] for image in _laid_out(images, layout)])

    tensors = [
        {"name": name, "shape": [int(size) if size > 0 else None for size in detail["shape_signature"]], "dtype": detail["dtype"].__name__}
        for name, detail in details
    ]
    return Runtime({**tensors[0], "layout": layout}, tensors[1], call, owner=interpreter)


def _named(image, logits):
    return [("image", image), ("logits", logits)]


def _laid_out(images, layout):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if layout == "nchw" else images)


_LOADERS = {"saved_model": _load_saved_model, "onnx": _load_onnx, "tflite": _load_tflite}
FORMATS = tuple(_LOADERS)
