"""The building blocks of DARTS cells as Keras layers (quark0/darts `cnn/operations.py`; EVALUATION_NETWORK.md).

Images are `[batch, height, width, channels]`. Strided blocks pad as the reference does, on both sides: Keras' 'same' pads an even
size on the bottom and right only, which gives other values and shifts ported weights. Convolutions have no bias.
"""

import keras
import tensorflow as tf

from sivdnas_tf.layers.depthwise import DepthwiseConv2D
from sivdnas_tf.layers.normalization import make_normalization

_PACKAGE = "sivdnas_tf"


def fan_in_uniform(fan_in):
    """Uniform in ±1/sqrt(fan_in): how the reference's convolutions start. A new object a call: Keras' initializers repeat themselves."""
    limit = fan_in**-0.5
    return keras.initializers.RandomUniform(-limit, limit)


def conv(channels, kernel, in_channels, *, strides=1, padding="valid", name):
    """A convolution without bias; `kernel` is a pair of pixels."""
    return keras.layers.Conv2D(
        channels,
        kernel,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=fan_in_uniform(kernel[0] * kernel[1] * in_channels),
        name=name,
    )


def depthwise_conv(kernel, *, stride=1, padding="same", dilation=1, name):
    """A depthwise convolution without bias; `kernel` is one side in pixels."""
    return DepthwiseConv2D(
        kernel,
        strides=stride,
        padding=padding,
        dilation_rate=dilation,
        use_bias=False,
        depthwise_initializer=fan_in_uniform(kernel * kernel),
        name=name,
    )


def subsample(images, offset=0):
    """Every second pixel of `[batch, n, n, channels]`, from pixel (`offset`, `offset`).

    As a pool of one pixel: a strided slice gives the same, much slower, its gradient included (CPU, oneDNN).
    """
    if offset:
        images = tf.slice(images, [0, offset, offset, 0], [-1, -1, -1, -1])  # its gradient is a padding; that of `[1:]` is not
    return tf.nn.avg_pool2d(images, 1, strides=2, padding="VALID")


class Chain(keras.layers.Layer):
    """A layer that applies its `steps`, made by `make_steps(input_shape)`, one after the other.

    The last `n - first_step` of them alone, and a `factor` for the output, are for the supernet, where several operations begin alike.
    """

    def build(self, input_shape):
        """Makes and builds the steps."""
        self.steps = self.make_steps(input_shape)
        for step in self.steps:
            step.build(input_shape)
            input_shape = step.compute_output_shape(input_shape)

    def call(self, inputs, training=None, first_step=0, factor=None):
        """Maps `[batch, height, width, channels]` to `[batch, height', width', channels']`.

        Args:
          inputs: what the first step takes, or the step of number `first_step`.
          training: for batch-norm with moving averages, and for how a depthwise convolution computes its gradient.
          first_step: number of steps that are left out.
          factor: scalar for the output of a last step that is a `BatchStatisticsNormalization`.
        """
        *steps, last = self.steps[first_step:]
        for step in steps:
            inputs = self._apply(step, inputs, training)
        return self._apply(last, inputs, training) if factor is None else last(inputs, factor=factor)

    def _apply(self, step, inputs, training):
        takes_training = isinstance(step, (keras.layers.BatchNormalization, DepthwiseConv2D))
        return step(inputs, training=training) if takes_training else step(inputs)

    def compute_output_shape(self, input_shape):
        """Shape after all steps."""
        for step in self.steps if self.built else self.make_steps(input_shape):
            input_shape = step.compute_output_shape(input_shape)
        return input_shape


@keras.saving.register_keras_serializable(_PACKAGE)
class Subsample(keras.layers.Layer):
    """Every second pixel, from pixel (`offset`, `offset`)."""

    def __init__(self, offset=0, **kwargs):
        super().__init__(**kwargs)
        self.offset = offset

    def call(self, inputs):
        """Maps `[batch, n, n, channels]` to `[batch, ceil((n - offset) / 2), …, channels]`."""
        return subsample(inputs, self.offset)

    def compute_output_shape(self, input_shape):
        """Half the height and width, rounded as `call` says."""
        halved = [None if size is None else (size - self.offset + 1) // 2 for size in input_shape[1:3]]
        return (input_shape[0], *halved, input_shape[3])

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "offset": self.offset}


@keras.saving.register_keras_serializable(_PACKAGE)
class ReLUConvBN(Chain):
    """ReLU, convolution, batch-norm: a DARTS cell's 1x1 preprocessing, NAS-Bench-201's convolutions.

    Args:
      channels: of the output.
      normalization: one of `layers.normalization.NORMALIZATIONS`.
      kernel: side of the kernel in pixels, odd; the image is padded by half of it on each side.
      stride: 1 or 2.
      affine: whether batch-norm has affine parameters; None leaves them out in a search.
    """

    def __init__(self, channels, normalization="batch", kernel=1, stride=1, affine=None, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.normalization, self.kernel, self.stride, self.affine = channels, normalization, kernel, stride, affine

    def make_steps(self, input_shape):
        """The layers, not yet built."""
        size = (self.kernel, self.kernel)
        if self.stride == 1:
            padding = "same" if self.kernel > 1 else "valid"
            convolution = [conv(self.channels, size, input_shape[-1], padding=padding, name="conv")]
        else:
            padding = [keras.layers.ZeroPadding2D(self.kernel // 2, name="pad")] if self.kernel > 1 else []
            convolution = [*padding, conv(self.channels, size, input_shape[-1], strides=self.stride, name="conv")]
        affine = self.normalization != "batch_statistics" if self.affine is None else self.affine
        return [keras.layers.ReLU(name="relu"), *convolution, make_normalization(self.normalization, "norm", affine=affine)]

    def get_config(self):
        """Arguments of the constructor."""
        own = {"channels": self.channels, "kernel": self.kernel, "stride": self.stride, "affine": self.affine}
        return {**super().get_config(), "normalization": self.normalization, **own}


class _Halving(keras.layers.Layer):
    """A layer from an even resolution to half of it.

    Args:
      channels: of the output.
      normalization: one of `layers.normalization.NORMALIZATIONS`.
    """

    def __init__(self, channels, normalization="batch", **kwargs):
        super().__init__(**kwargs)
        self.channels, self.normalization = channels, normalization

    def _check_even(self, input_shape, name):
        if any(size is not None and size % 2 for size in input_shape[1:3]):
            raise ValueError(f"{name} halves even sizes. Received: input_shape={input_shape}")

    def compute_output_shape(self, input_shape):
        """Half the resolution, `channels` channels."""
        halved = [None if size is None else size // 2 for size in input_shape[1:3]]
        return (input_shape[0], *halved, self.channels)

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "channels": self.channels, "normalization": self.normalization}


@keras.saving.register_keras_serializable(_PACKAGE)
class ResidualReduction(_Halving):
    """NAS-Bench-201's block between stages: half the resolution, twice the width (`ResNetBasicblock` of D-X-Y/AutoDL-Projects).

    The sum of two ReLU, 3x3 convolution, batch-norm (the first of stride 2), and of a 2x2 average pool with a 1x1 convolution. Batch-norm
    is affine in a search too, as there.

    Args:
      channels: of the output.
      normalization: one of `layers.normalization.NORMALIZATIONS`.
    """

    def build(self, input_shape):
        """Makes the convolutions."""
        self._check_even(input_shape, "residual reduction")
        options = {"normalization": self.normalization, "kernel": 3, "affine": True}
        self.first = ReLUConvBN(self.channels, stride=2, name="first", **options)
        self.second = ReLUConvBN(self.channels, name="second", **options)
        self.pool = keras.layers.AveragePooling2D(2, name="pool")
        self.shortcut = conv(self.channels, (1, 1), input_shape[-1], name="shortcut")
        halved = self.compute_output_shape(input_shape)
        for layer, shape in ((self.first, input_shape), (self.second, halved), (self.pool, input_shape)):
            layer.build(shape)
        self.shortcut.build((*halved[:3], input_shape[-1]))

    def call(self, inputs, training=None):
        """Maps `[batch, 2m, 2m, c]` to `[batch, m, m, channels]`."""
        return self.second(self.first(inputs, training=training), training=training) + self.shortcut(self.pool(inputs))


class _ConvOperation(Chain):
    """A candidate operation with convolutions: channels stay as they are, `stride` is 1 or 2.

    Args:
      kernel: side of the depthwise kernel in pixels.
      stride: 1 or 2.
      normalization: one of `layers.normalization.NORMALIZATIONS`.
    """

    def __init__(self, kernel, stride=1, normalization="batch", **kwargs):
        super().__init__(**kwargs)
        self.kernel, self.stride, self.normalization = kernel, stride, normalization

    def _norm(self, name):
        return make_normalization(self.normalization, name, affine=self.normalization != "batch_statistics")

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "kernel": self.kernel, "stride": self.stride, "normalization": self.normalization}


@keras.saving.register_keras_serializable(_PACKAGE)
class SepConv(_ConvOperation):
    """Separable convolution, applied twice: ReLU, depthwise, pointwise, batch-norm; the first depthwise has the stride."""

    def make_steps(self, input_shape):
        """The layers, not yet built."""
        return [*self._half(input_shape[-1], 1, self.stride), *self._half(input_shape[-1], 2, 1)]

    def _half(self, channels, number, stride):
        if stride == 1:
            depthwise = [depthwise_conv(self.kernel, name=f"depthwise_{number}")]
        else:
            depthwise = [
                keras.layers.ZeroPadding2D(self.kernel // 2, name=f"pad_{number}"),
                depthwise_conv(self.kernel, stride=stride, padding="valid", name=f"depthwise_{number}"),
            ]
        return [
            keras.layers.ReLU(name=f"relu_{number}"),
            *depthwise,
            conv(channels, (1, 1), channels, name=f"pointwise_{number}"),
            self._norm(f"norm_{number}"),
        ]


@keras.saving.register_keras_serializable(_PACKAGE)
class DilConv(_ConvOperation):
    """Dilated separable convolution, applied once: ReLU, depthwise with dilation 2, pointwise, batch-norm.

    At stride 2 a kernel of dilation 2 reads every second pixel only: the same values as subsampling first and convolving without
    dilation, which every runtime has a kernel for (and which TensorFlow's profiler counts right).
    """

    def make_steps(self, input_shape):
        """The layers, not yet built."""
        if self.stride == 1:
            depthwise = [depthwise_conv(self.kernel, dilation=2, name="depthwise")]
        else:
            depthwise = [Subsample(name="subsample"), depthwise_conv(self.kernel, name="depthwise")]
        return [
            keras.layers.ReLU(name="relu"),
            *depthwise,
            conv(input_shape[-1], (1, 1), input_shape[-1], name="pointwise"),
            self._norm("norm"),
        ]


@keras.saving.register_keras_serializable(_PACKAGE)
class ConvPair(_ConvOperation):
    """Full convolution factored into a row and a column (`conv_7x1_1x7`): ReLU, 1xk, kx1, batch-norm."""

    def make_steps(self, input_shape):
        """The layers, not yet built."""
        pad, kernel, stride, channels = self.kernel // 2, self.kernel, self.stride, input_shape[-1]
        return [
            keras.layers.ReLU(name="relu"),
            keras.layers.ZeroPadding2D((0, pad), name="pad_row"),
            conv(channels, (1, kernel), channels, strides=(1, stride), name="conv_row"),
            keras.layers.ZeroPadding2D((pad, 0), name="pad_column"),
            conv(channels, (kernel, 1), channels, strides=(stride, 1), name="conv_column"),
            self._norm("norm"),
        ]


@keras.saving.register_keras_serializable(_PACKAGE)
class Pool(Chain):
    """3x3 pooling that pads by one pixel; padding counts neither as a maximum nor in an average.

    At stride 2 it is the stride-1 pool, subsampled: TensorFlow's own 'same' would place the windows one pixel further on.

    Args:
      kind: "max" or "average".
      stride: 1 or 2.
      normalization: one of `layers.normalization.NORMALIZATIONS`, without affine parameters unless it is an evaluation's; None for no
        batch-norm, as the reference evaluates.
    """

    def __init__(self, kind, stride=1, normalization=None, **kwargs):
        super().__init__(**kwargs)
        if kind not in ("max", "average"):
            raise ValueError(f"kind of pool must be 'max' or 'average'. Received: {kind!r}")
        self.kind, self.stride, self.normalization = kind, stride, normalization

    def make_steps(self, input_shape):
        """The layers, not yet built."""
        del input_shape
        layer = keras.layers.MaxPooling2D if self.kind == "max" else keras.layers.AveragePooling2D
        steps = [layer(3, strides=1, padding="same", name="pool")]
        if self.stride == 2:
            steps.append(Subsample(name="subsample"))
        if self.normalization:
            steps.append(make_normalization(self.normalization, "norm", affine=self.normalization != "batch_statistics"))
        return steps

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "kind": self.kind, "stride": self.stride, "normalization": self.normalization}


@keras.saving.register_keras_serializable(_PACKAGE)
class FactorizedReduce(_Halving):
    """Halves an even resolution without losing pixels: ReLU, two 1x1 convolutions of stride 2, the second shifted by one pixel, batch-norm.

    Args:
      channels: of the output; even.
      normalization: one of `layers.normalization.NORMALIZATIONS`.
    """

    def build(self, input_shape):
        """Makes both convolutions and the batch-norm."""
        self._check_even(input_shape, "factorized reduce")
        self.relu = keras.layers.ReLU(name="relu")
        self.shift = Subsample(offset=1, name="shift")
        self.even = Subsample(name="even")
        self.conv_1 = conv(self.channels // 2, (1, 1), input_shape[-1], name="conv_1")
        self.conv_2 = conv(self.channels // 2, (1, 1), input_shape[-1], name="conv_2")
        self.norm = make_normalization(self.normalization, "norm", affine=self.normalization != "batch_statistics")
        # Those without weights too: under a strategy, `fit` calls a model that has an unbuilt layer on what it takes for the images.
        for layer in (self.relu, self.even, self.shift, self.conv_1, self.conv_2):
            layer.build(input_shape)
        self.norm.build(self.compute_output_shape(input_shape))

    def call(self, inputs, training=None, shifted=None, factor=None):
        """Maps `[batch, 2m, 2m, c]` to `[batch, m, m, channels]`.

        Args:
          inputs: the image; with `shifted`, its pixels (0, 0), (0, 2), … after ReLU.
          training: for batch-norm with moving averages.
          shifted: its pixels (1, 1), (1, 3), … after ReLU, where the supernet has both already.
          factor: as for a `Chain`.
        """
        if shifted is None:
            inputs = self.relu(inputs)
            # A 1x1 convolution of stride 2 reads every second pixel: taking those first is the same and cheaper.
            inputs, shifted = self.even(inputs), self.shift(inputs)
        halves = keras.ops.concatenate([self.conv_1(inputs), self.conv_2(shifted)], axis=-1)
        if factor is not None:
            return self.norm(halves, factor=factor)
        return self.norm(halves, training=training) if isinstance(self.norm, keras.layers.BatchNormalization) else self.norm(halves)


@keras.saving.register_keras_serializable(_PACKAGE)
class Zero(keras.layers.Layer):
    """The operation `none`: zeros of the shape that an operation of this stride would give.

    The input times 0, as the reference has it: what `none` reads is then in the graph, as `profiling.costs` counts it.
    """

    def __init__(self, stride=1, **kwargs):
        super().__init__(**kwargs)
        self.stride = stride

    def call(self, inputs):
        """Maps `[batch, n, n, channels]` to zeros `[batch, ceil(n / stride), …, channels]`."""
        return 0.0 * inputs[:, :: self.stride, :: self.stride, :]

    def compute_output_shape(self, input_shape):
        """Height and width divided by the stride, rounded up."""
        strided = [None if size is None else -(-size // self.stride) for size in input_shape[1:3]]
        return (input_shape[0], *strided, input_shape[3])

    def get_config(self):
        """Arguments of the constructor."""
        return {**super().get_config(), "stride": self.stride}
