"""Every evaluation operation at either stride, alone in a network, gives the same in TensorFlow, ONNX and TFLite."""

import keras
import numpy as np
import onnx
import pytest

from export import runtimes
from export.to_onnx import write_onnx
from export.to_tflite import write_tflite
from sivdnas_tf.layers.operations import candidate_operation
from sivdnas_tf.quiet import quiet
from sivdnas_tf.search_space import EVALUATION_OPERATIONS

_SIZE, _CHANNELS = 8, 4


def one_operation(operation, stride):
    """A deployed model that flattens what the operation gives: every pixel is an output. Batch-norm is not at its initial values."""
    images = keras.Input((_SIZE, _SIZE, _CHANNELS), name="image")
    outputs = candidate_operation(operation, channels=_CHANNELS, stride=stride, name="operation")(images)
    model = keras.Model(images, keras.layers.Identity(name="logits")(keras.layers.Flatten()(outputs)))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
        elif variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0.0, 0.5, variable.shape))
    model.trainable = False
    return model


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operation", EVALUATION_OPERATIONS)
def test_operation_is_the_same_in_every_runtime(operation, stride, tmp_path):
    model = one_operation(operation, stride)
    images = np.random.default_rng(1).normal(0.0, 1.0, (3, _SIZE, _SIZE, _CHANNELS)).astype(np.float32)
    expected = model(images, training=False).numpy()
    assert expected.shape == (3, (_SIZE // stride) ** 2 * _CHANNELS) and (np.ptp(expected) > 0.1) == (operation != "none")
    with quiet((1, 2)):
        write_tflite(model, tmp_path / "model.tflite")
        for layout in runtimes.LAYOUTS:
            write_onnx(model, tmp_path / f"{layout}.onnx", layout)
    loaded = {layout: runtimes.load("onnx", tmp_path / f"{layout}.onnx", layout) for layout in runtimes.LAYOUTS}
    loaded["tflite"] = runtimes.load("tflite", tmp_path / "model.tflite")
    for name, runtime in loaded.items():
        np.testing.assert_allclose(runtime.run(images), expected, rtol=0, atol=2e-5, err_msg=name)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(tmp_path / "nhwc.onnx").graph.node}
