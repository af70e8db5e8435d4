"""Stems and heads of the networks (quark0/darts `cnn/model.py`, `model_search.py`; EVALUATION_NETWORK.md)."""

import keras

from sivdnas_tf.errors import ConfigError
from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.normalization import make_normalization

_AUXILIARY_CHANNELS = (128, 768)


def _strided_conv(channels, in_channels, stride, number):
    """A 3x3 convolution that pads one pixel on each side at any stride."""
    if stride == 1:
        return [blocks.conv(channels, (3, 3), in_channels, padding="same", name=f"conv_{number}")]
    return [
        keras.layers.ZeroPadding2D(1, name=f"pad_{number}"),
        blocks.conv(channels, (3, 3), in_channels, strides=stride, name=f"conv_{number}"),
    ]


@keras.saving.register_keras_serializable("sivdnas_tf")
class Stem(blocks.Chain):
    """The layers before the first cell, or a part of them; always with affine batch-norm.

    Args:
      part: "cifar" (3x3 convolution and batch-norm; no ReLU; NAS-Bench-201's too), "imagenet_0" (two strided convolutions, to a quarter of
        the resolution) or "imagenet_1" (ReLU and one strided convolution, to an eighth).
      channels: of the output.
      normalization: one of `layers.normalization.NORMALIZATIONS`.
    """

    def __init__(self, part, channels, normalization="batch", **kwargs):
        super().__init__(**kwargs)
        self.part, self.channels, self.normalization = part, channels, normalization

    def make_steps(self, input_shape):
        """The layers of the part, not yet built."""
        channels, in_channels = self.channels, input_shape[-1]
        if self.part == "cifar":
            return [*_strided_conv(channels, in_channels, 1, 1), self._norm(1)]
        if self.part == "imagenet_0":
            first = [*_strided_conv(channels // 2, in_channels, 2, 1), self._norm(1), keras.layers.ReLU(name="relu")]
            return [*first, *_strided_conv(channels, channels // 2, 2, 2), self._norm(2)]
        return [keras.layers.ReLU(name="relu"), *_strided_conv(channels, in_channels, 2, 1), self._norm(1)]

    def _norm(self, number):
        return make_normalization(self.normalization, f"norm_{number}")

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "part": self.part, "channels": self.channels, "normalization": self.normalization}


def build_stem(plan, normalization):
    """A function from images to the tensors that cell 0 reads, for a `NetworkPlan`; builds its layers when called."""

    def stem(images):
        if plan.network != "imagenet":
            output = Stem("cifar", plan.stem_channels[0], normalization, name="stem")(images)
            return (output,) * len(plan.stem_channels)
        output_0 = Stem("imagenet_0", plan.stem_channels[0], normalization, name="stem_0")(images)
        return output_0, Stem("imagenet_1", plan.stem_channels[1], normalization, name="stem_1")(output_0)

    return stem


def auxiliary_pool(resolution):
    """`(window, stride)` in pixels of the average pool that brings `resolution` to 2x2: (5, 3) at 8 and (5, 2) at 7, as the reference."""
    if resolution < 2:
        raise ConfigError(f"an auxiliary head needs at least 2x2 pixels at the last cells. Received: {resolution}x{resolution}")
    window = min(resolution - 1, max(5, -(-resolution // 2)))
    return window, resolution - window


@keras.saving.register_keras_serializable("sivdnas_tf")
class AuxiliaryHead(blocks.Chain):
    """Classifier on an inner cell, for training only: ReLU, pool to 2x2, 1x1 and 2x2 convolutions, dense.

    Args:
      network: "cifar" or "imagenet": the latter has no batch-norm after its second convolution.
      classes: of the classifier.
      normalization: one of `layers.normalization.NORMALIZATIONS`.
    """

    def __init__(self, network, classes, normalization="batch", **kwargs):
        super().__init__(**kwargs)
        self.network, self.classes, self.normalization = network, classes, normalization

    def make_steps(self, input_shape):
        """The layers, not yet built."""
        window, stride = auxiliary_pool(input_shape[1])
        first, second = _AUXILIARY_CHANNELS
        last_norm = [make_normalization(self.normalization, "norm_2")] if self.network == "cifar" else []
        return [
            keras.layers.ReLU(name="relu_1"),
            keras.layers.AveragePooling2D(window, strides=stride, name="pool"),
            blocks.conv(first, (1, 1), input_shape[-1], name="conv_1"),
            make_normalization(self.normalization, "norm_1"),
            keras.layers.ReLU(name="relu_2"),
            blocks.conv(second, (2, 2), first, name="conv_2"),
            *last_norm,
            keras.layers.ReLU(name="relu_3"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(self.classes, kernel_initializer=blocks.fan_in_uniform(second), name="classifier"),
        ]

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "network": self.network, "classes": self.classes, "normalization": self.normalization}


@keras.saving.register_keras_serializable("sivdnas_tf")
class Classifier(blocks.Chain):
    """Global average pooling and a dense layer: `[batch, n, n, channels]` to logits `[batch, classes]`, always float32.

    Args:
      classes: of the classifier.
      normalization: of `layers.normalization.NORMALIZATIONS`, for affine batch-norm and ReLU before the pooling (NAS-Bench-201); None for
        neither.
    """

    def __init__(self, classes, normalization=None, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.normalization = classes, normalization

    def make_steps(self, input_shape):
        """The layers, not yet built."""
        initializer = blocks.fan_in_uniform(input_shape[-1])
        before = [] if self.normalization is None else [make_normalization(self.normalization, "norm"), keras.layers.ReLU(name="relu")]
        return [
            *before,
            keras.layers.GlobalAveragePooling2D(name="pool"),
            keras.layers.Dense(self.classes, kernel_initializer=initializer, dtype="float32", name="dense"),
        ]

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "classes": self.classes, "normalization": self.normalization}


def build_classifier(plan, normalization):
    """The `Classifier` of a `NetworkPlan`, not yet built."""
    return Classifier(plan.classes, normalization if plan.network == "nasbench201" else None, name="classifier")
