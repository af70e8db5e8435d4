"""ONNX of opset 17 (tf2onnx converts 11 to 18; 18 adds a transpose)."""

import onnx
import tensorflow as tf
import tf2onnx

from export.saved_model import logits_function
from sivdnas_tf.errors import AgreementError

OPSET = 17
_STANDARD_DOMAINS = ("", "ai.onnx")


def write_onnx(model, path, layout="nhwc"):
    """Writes an ONNX model with input "image" (any batch size) and output "logits".

    Args:
      model: the Keras model of `freeze`.
      path: file to write.
      layout: of the input: "nhwc" as in TensorFlow, or "nchw".

    Raises:
      AgreementError: where the converter left operations that no ONNX runtime knows (tf2onnx only logs those).
    """
    serve = logits_function(model)
    proto, _ = tf2onnx.convert.from_function(
        serve,
        input_signature=[tf.TensorSpec(spec.shape, spec.dtype, name="image") for spec in serve.input_signature],
        opset=OPSET,
        inputs_as_nchw=["image"] if layout == "nchw" else None,
    )
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in proto.graph.node if node.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise AgreementError(f"the ONNX model must hold standard operations only. Received: {', '.join(foreign)}")
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, str(path))
