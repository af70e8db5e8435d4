"""The ONNX file by itself: version, operations, and what is refused."""

import keras
import onnx
import pytest

from export.to_onnx import check_onnx, write_onnx
from sivdnas_tf.errors import AgreementError


def test_version_operations_and_batch_of_a_written_file(exported):
    proto = onnx.load(exported.directory / "model.onnx")
    check_onnx(proto)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 17
    operations = [node.op_type for node in proto.graph.node]
    assert "BatchNormalization" not in operations and "Conv" in operations
    (image,) = proto.graph.input
    (logits,) = proto.graph.output
    for value in (image, logits):
        assert value.type.tensor_type.shape.dim[0].WhichOneof("value") == "dim_param"  # any batch size
    assert (image.name, logits.name) == ("image", "logits")


def test_what_the_converter_cannot_convert_is_an_error(tmp_path):
    image = keras.Input((8, 8, 4), name="image")
    # TensorFlow's CPU kernel of a grouped convolution hides in a call that tf2onnx leaves as it is.
    outputs = keras.layers.Conv2D(4, 3, groups=2)(image)
    model = keras.Model(image, keras.layers.Identity(name="logits")(keras.layers.GlobalAveragePooling2D()(outputs)))
    with pytest.raises(AgreementError, match="StatefulPartitionedCall"):
        write_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def graph_of(nodes, outputs=("y",)):
    def value(name):
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])

    return onnx.helper.make_graph(nodes, "graph", [value("x")], [value(name) for name in outputs])


def test_operations_of_another_domain_are_refused_wherever_they_stand():
    foreign = onnx.helper.make_node("FusedThing", ["x"], ["y"], domain="com.vendor")
    branch = onnx.helper.make_graph([foreign], "branch", [], [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])])
    condition = onnx.helper.make_node("Constant", [], ["c"], value=onnx.helper.make_tensor("c", onnx.TensorProto.BOOL, [], [True]))
    hidden = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.vendor", 1)]
    for nodes in ([foreign], [condition, hidden]):
        with pytest.raises(AgreementError, match=r"com\.vendor\.FusedThing"):
            check_onnx(onnx.helper.make_model(graph_of(nodes), opset_imports=opsets))


def test_a_standard_model_passes_and_an_invalid_one_does_not():
    opsets = [onnx.helper.make_opsetid("", 17)]
    check_onnx(onnx.helper.make_model(graph_of([onnx.helper.make_node("Relu", ["x"], ["y"])]), opset_imports=opsets))
    with pytest.raises(AgreementError, match="valid ONNX model"):
        check_onnx(onnx.helper.make_model(graph_of([onnx.helper.make_node("Relu", ["nowhere"], ["y"])]), opset_imports=opsets))
