"""The mixed operation of a search edge: every candidate operation, computed where its gate is on, weighted and summed.

A supernet has a hundred edges of five kinds, and what a search waits for is decided here:

- One function is traced for all edges of a kind, and takes an edge's weights as arguments: tracing every operation of every edge
  takes minutes.
- An operation whose gate is off is not computed (`tf.cond`).
- What the edges that leave a node have in common (`MixedOperation.beginnings`) is computed once a node: ReLU, pools with their
  batch-norm, subsampling, and the split into phases for dilated convolutions.
- A convolution of dilation 2 on an image of even size is four undilated ones, on its phases: the images of every second pixel. The
  phases are made once a node, their sum is put together once a node.
- The sample that weights an operation is the scale of its last batch-norm.
"""

import keras
import tensorflow as tf

from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.operations import candidate_operation


def empty_sums(like):
    """Sums to start from, a dict of zeros: "image" shaped as `like`, and for an even size "phases", shaped as `to_phases(like)`."""
    sums = {"image": tf.zeros_like(like)}
    if _has_phases(like):
        batch, (height, width, channels) = tf.shape(like)[0], like.shape[1:]
        sums["phases"] = tf.zeros([4 * batch, height // 2, width // 2, channels], like.dtype)
    return sums


def total(sums):
    """The node's tensor: the sum of what was added to the image and to its phases."""
    if "phases" not in sums:
        return sums["image"]
    return sums["image"] + tf.raw_ops.BatchToSpaceND(input=sums["phases"], block_shape=[2, 2], crops=[[0, 0], [0, 0]])


def to_phases(image):
    """The four images of every second pixel of `[batch, n, n, channels]`, n even: `[4 * batch, n / 2, n / 2, channels]`."""
    return tf.raw_ops.SpaceToBatchND(input=image, block_shape=[2, 2], paddings=[[0, 0], [0, 0]])


def _has_phases(image):
    return image.shape[1] % 2 == 0 and image.shape[2] % 2 == 0


class MixedOperation:
    """The candidate operations of all search edges of one width and stride.

    Not a Keras layer, so that the templates' own variables are nobody's weights.

    Args:
      primitives: names of the candidate operations, in the order of the samples.
      channels: of input and output.
      stride: 1 or 2.
    """

    def __init__(self, primitives, channels, stride):
        self.stride = stride
        self.templates = [self._template(primitive, channels, stride) for primitive in primitives]
        # On the phases of an image a dilated convolution is what it is at stride 2: undilated, with the same weights.
        self._on_phases = {
            index: self._template(primitives[index], channels, 2)
            for index, template in enumerate(self.templates)
            if isinstance(template, blocks.DilConv) and stride == 1
        }
        # _noinline keeps the graph optimizer from expanding the function at each of its hundred calls.
        self._add = tf.function(self._add_gated, autograph=False, experimental_attributes={"_noinline": True})
        self._begin = tf.function(self._beginnings, autograph=False, experimental_attributes={"_noinline": True})

    @staticmethod
    def _template(primitive, channels, stride):
        layer = candidate_operation(
            primitive, channels=channels, stride=stride, normalization="batch_statistics", pool_normalization="batch_statistics"
        )
        layer.build((None, None, None, channels))
        return layer

    def beginnings(self, image, needed):
        """What the operations of all edges that leave a node start from.

        Args:
          image: `[batch, n, n, channels]`, the node.
          needed: [P], bool: whether any of these edges computes the primitive.

        Returns:
          A dict of tensors: "image"; "relu"; the pools "max" and "average", normalised, zeros where not needed; at stride 1 and for an
          even n, "phases" of "relu"; at stride 2, "even" and "shifted", the halves of "relu" that a factorized reduce takes.
        """
        return self._begin(image, needed)

    def _beginnings(self, image, needed):
        relu = tf.nn.relu(image)
        result = {"image": image, "relu": relu}
        if self.stride == 2:
            result |= {"even": blocks.subsample(relu), "shifted": blocks.subsample(relu, offset=1)}
        elif self._on_phases and _has_phases(image):
            result["phases"] = to_phases(relu)
        for index, template in enumerate(self.templates):
            if isinstance(template, blocks.Pool):
                result[template.kind] = _pooled(template, image, needed[index])
        return result

    def add(self, sums, beginnings, samples, gates, weights):
        """Adds what the operations of one edge give to the sums of the node that it enters.

        Args:
          sums: see `empty_sums`; of the node's size.
          beginnings: see `beginnings`, of the node that the edge leaves.
          samples: [P], what multiplies each operation's output, or [batch, P] for each example's.
          gates: [P], bool: which are computed.
          weights: a list of tensors a primitive, as in the templates' `trainable_variables`.

        Returns:
          The new sums.
        """
        own = {name: value for name, value in sums.items() if name == "image" or name in beginnings}
        return {**sums, **self._add(own, beginnings, samples, gates, weights)}

    def _add_gated(self, sums, beginnings, samples, gates, weights):
        sums = dict(sums)
        for index, template in enumerate(self.templates):
            name = "phases" if index in self._on_phases and "phases" in beginnings else "image"

            def added(index=index, template=template, before=sums[name]):
                return before + self._weighted(index, template, beginnings, samples[..., index], weights[index])

            # Adding inside the branch: an operation that is off leaves no tensor of zeros behind.
            sums[name] = tf.cond(gates[index], added, lambda before=sums[name]: before)
        return sums

    def _weighted(self, index, template, beginnings, sample, weights):
        """An operation's output times its sample; the phases of it where `beginnings` has phases and it is a dilated convolution."""

        def finish(layer, inputs, **options):
            if sample.shape.rank:  # batch-norm has no scale an example
                return _scaled(layer.stateless_call(weights, [], inputs, training=True, **options)[0], sample)
            return layer.stateless_call(weights, [], inputs, training=True, factor=sample, **options)[0]

        if isinstance(template, blocks.Pool):
            return _scaled(beginnings[template.kind], sample)
        if isinstance(template, keras.layers.Identity):
            return _scaled(beginnings["image"], sample)
        if isinstance(template, blocks.Zero):
            return _scaled(template(beginnings["image"]), sample)
        if isinstance(template, blocks.FactorizedReduce):
            return finish(template, beginnings["even"], shifted=beginnings["shifted"])
        if isinstance(template, blocks.DilConv) and "phases" in beginnings:
            return finish(self._on_phases[index], beginnings["phases"], first_step=2)
        if isinstance(template, blocks.DilConv) and self.stride == 2:
            return finish(template, beginnings["even"], first_step=2)
        return finish(template, beginnings["relu"], first_step=1)


def _scaled(image, sample):
    """`image` times a scalar, or times the scalar of each example; phases hold every example four times, one after the other."""
    sample = tf.cast(sample, image.dtype)
    if not sample.shape.rank:
        return sample * image
    times = tf.shape(image)[0] // tf.shape(sample)[0]
    return tf.tile(sample, [times])[:, None, None, None] * image


def _pooled(template, image, needed):
    """The normalised pool of `image`, or, where it is not needed, zeros."""
    strided = image[:, :: template.stride, :: template.stride, :]
    if template.kind == "average":
        return tf.cond(needed, lambda: template(image), lambda: tf.zeros_like(strided))
    pooled = _max_pool(image, needed)
    return tf.cond(needed, lambda: template(pooled, first_step=1), lambda: tf.zeros_like(strided))


def _max_pool(image, needed):
    """3x3 max pool of stride 1, or zeros; its gradient pools again.

    oneDNN's gradient of a max pool, far faster than TensorFlow's own, reads what its forward kernel left in the workspace, which never
    leaves a function; `tf.cond` and `tf.function` put a gradient into another function than its forward pass.
    """
    window = {"ksize": [1, 3, 3, 1], "strides": [1, 1, 1, 1], "padding": "SAME"}

    @tf.custom_gradient
    def gated(image):
        def gradient(upstream):
            def of_pool():
                pooled = tf.raw_ops.MaxPool(input=image, **window)
                return tf.raw_ops.MaxPoolGrad(orig_input=image, orig_output=pooled, grad=upstream, **window)

            return tf.cond(needed, of_pool, lambda: tf.zeros_like(image))

        return tf.cond(needed, lambda: tf.raw_ops.MaxPool(input=image, **window), lambda: tf.zeros_like(image)), gradient

    return gated(image)
