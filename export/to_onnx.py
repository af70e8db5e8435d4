"""ONNX of opset 17 (tf2onnx converts 11 to 18; 18 adds a transpose)."""

import onnx
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
      AgreementError: where the conversion gave something that no ONNX runtime takes; nothing is written.
    """
    serve = logits_function(model)
    proto, _ = tf2onnx.convert.from_function(
        serve, input_signature=serve.input_signature, opset=OPSET, inputs_as_nchw=["image"] if layout == "nchw" else None
    )
    check_onnx(proto)
    onnx.save(proto, str(path))


def check_onnx(proto):
    """Raises `AgreementError` unless a `ModelProto` is valid and holds standard operations only.

    tf2onnx only logs what it cannot convert and returns the TensorFlow operation under its own name (STACK.md section 4).
    """
    foreign = sorted({f"{node.domain}.{node.op_type}" for node in _nodes(proto.graph) if node.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise AgreementError(f"the ONNX model must hold standard operations only. Received: {', '.join(foreign)}")
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise AgreementError(f"the conversion must give a valid ONNX model. Received: {' '.join(str(error).split())[:300]}") from error


def _nodes(graph):
    """All nodes of a `GraphProto`, those of subgraphs included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _nodes(subgraph)
