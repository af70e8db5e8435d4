"""The mixed operation of a search edge: every candidate operation, computed where its gate is on, weighted and summed.

A supernet has a hundred edges of five kinds, and what a search waits for is decided here:

- One function is traced for all edges of a kind, and takes an edge's weights as arguments: tracing every operation of every edge
  takes minutes.
- An operation whose gate is off is not computed (`tf.cond`), and leaves no tensor of zeros behind, forward or backward: its `tf.cond`
  passes on the sum that it adds to, and what it starts from.
- Nothing is differentiated that nobody asked for (`gradients_to`): once traced, a function's gradient computes all it has.
- What the edges that leave a node have in common (`MixedOperation.beginnings`) is computed once a node: ReLU, pools with their
  batch-norm, subsampling, and the split into phases for dilated convolutions.
- A convolution of dilation 2 on an image of even size is four undilated ones, on its phases: the images of every second pixel. The
  phases are made once a node, their sum is put together once a node.
- The sample that weights an operation is the scale of its last batch-norm.
"""

import functools

import keras
import tensorflow as tf

from sivdnas_tf.layers import blocks
from sivdnas_tf.layers.normalization import BatchStatisticsNormalization
from sivdnas_tf.layers.operations import candidate_operation

# What a gradient is asked for, besides the images: the operations' weights, the samples that multiply them, or both.
GRADIENTS_TO = ("weights", "samples", "all")


def empty_sums(like, with_phases=True):
    """Sums to start from, a dict of zeros: "image" shaped as `like`, and for an even size "phases", shaped as `to_phases(like)`.

    `with_phases=False` leaves those out, where no operation adds to them (`MixedOperation.uses_phases`).
    """
    sums = {"image": tf.zeros_like(like)}
    if with_phases and _has_phases(like):
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
      normalize_skips: whether a skip connection ends in batch-norm too.
    """

    def __init__(self, primitives, channels, stride, normalize_skips=False):
        self.stride = stride
        self._skip = "skip" if normalize_skips else "image"
        self._normalize = BatchStatisticsNormalization()  # here, where the dtype policy is the templates' too
        self.templates = [self._template(primitive, channels, stride) for primitive in primitives]
        # On the phases of an image a dilated convolution is what it is at stride 2: undilated, with the same weights.
        self._on_phases = {
            index: self._template(primitives[index], channels, 2)
            for index, template in enumerate(self.templates)
            if isinstance(template, blocks.DilConv) and stride == 1
        }
        # _noinline keeps the graph optimizer from expanding the function at each of its hundred calls.
        options = {"autograph": False, "experimental_attributes": {"_noinline": True}}
        self._add = {which: tf.function(functools.partial(self._add_gated, which), **options) for which in GRADIENTS_TO}
        self._begin = tf.function(self._beginnings, **options)

    @property
    def uses_phases(self):
        """Whether an operation adds to the phases of an image."""
        return bool(self._on_phases)

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
          A dict of tensors: "image"; "relu"; the pools "max" and "average", normalised, zeros where not needed; so is "skip", the image
          normalised, where skip connections are; at stride 1 and for an even n, "phases" of "relu" where an operation takes them; at
          stride 2, "even" and "shifted", the halves of "relu" that a factorized reduce takes.
        """
        return self._begin(image, needed)

    def _beginnings(self, image, needed):
        result = {}
        for index, template in enumerate(self.templates):
            if isinstance(template, blocks.Pool):
                result[template.kind], image = _pooled(template, image, needed[index])
            elif isinstance(template, keras.layers.Identity) and self._skip == "skip":
                result["skip"], image = _normalized(self._normalize, image, needed[index])
        relu = tf.nn.relu(image)
        result |= {"image": image, "relu": relu}
        if self.stride == 2:
            result |= {"even": blocks.subsample(relu), "shifted": blocks.subsample(relu, offset=1)}
        elif self._on_phases and _has_phases(image):
            result["phases"] = to_phases(relu)
        return result

    def add(self, sums, beginnings, samples, gates, weights, gradients_to="all"):
        """Adds what the operations of one edge give to the sums of the node that it enters.

        Args:
          sums: see `empty_sums`; of the node's size.
          beginnings: see `beginnings`, of the node that the edge leaves, or as the edge before this one returned them.
          samples: [P], what multiplies each operation's output, or [batch, P] for each example's.
          gates: [P], bool: which are computed.
          weights: a list of tensors a primitive, as in the templates' `trainable_variables`.
          gradients_to: one of `GRADIENTS_TO`.

        Returns:
          The new sums, and the beginnings for the next edge that leaves the same node: the same values, with gradients that already
          hold this edge's share.
        """
        own = {name: value for name, value in sums.items() if name == "image" or name in beginnings}
        added, passed_on = self._add[gradients_to](own, beginnings, samples, gates, weights)
        return {**sums, **added}, passed_on

    def _add_gated(self, gradients_to, sums, beginnings, samples, gates, weights):
        sums, beginnings = dict(sums), dict(beginnings)
        for index in range(len(self.templates)):
            on_phases = index in self._on_phases and "phases" in beginnings
            name, sources = "phases" if on_phases else "image", self._sources(index, on_phases)

            def unchanged(name=name, sources=sources):
                return sums[name], {source: beginnings[source] for source in sources}

            def added(index=index, unchanged=unchanged):
                before, taken = unchanged()
                sample, own_weights = samples[..., index], weights[index]
                # Within the branch: stopped outside it, the branch's gradient would be computed all the same.
                if gradients_to == "weights":
                    sample = tf.stop_gradient(sample)
                elif gradients_to == "samples":
                    own_weights = [tf.stop_gradient(weight) for weight in own_weights]
                return before + self._weighted(index, taken, sample, own_weights), taken

            sums[name], passed_on = tf.cond(gates[index], added, unchanged)
            beginnings.update(passed_on)
        return sums, beginnings

    def _sources(self, index, on_phases):
        """Names of the beginnings that an operation starts from."""
        template = self.templates[index]
        if isinstance(template, blocks.Pool):
            return [template.kind]
        if isinstance(template, keras.layers.Identity):
            return [self._skip]
        if isinstance(template, blocks.Zero):
            return ["image"]
        if isinstance(template, blocks.FactorizedReduce):
            return ["even", "shifted"]
        if isinstance(template, blocks.DilConv) and (on_phases or self.stride == 2):
            return ["phases" if on_phases else "even"]
        return ["relu"]

    def _weighted(self, index, taken, sample, weights):
        """An operation's output times its sample; on the phases of an image where that is what it has `taken`."""
        template = self.templates[index]

        def finish(layer, inputs, **options):
            if sample.shape.rank:  # batch-norm has no scale an example
                return _scaled(layer.stateless_call(weights, [], inputs, training=True, **options)[0], sample)
            return layer.stateless_call(weights, [], inputs, training=True, factor=sample, **options)[0]

        if isinstance(template, blocks.Pool):
            return _scaled(taken[template.kind], sample)
        if isinstance(template, keras.layers.Identity):
            return _scaled(taken[self._skip], sample)
        if isinstance(template, blocks.Zero):
            return _scaled(template(taken["image"]), sample)
        if isinstance(template, blocks.FactorizedReduce):
            return finish(template, taken["even"], shifted=taken["shifted"])
        if "phases" in taken:
            return finish(self._on_phases[index], taken["phases"], first_step=2)
        if "even" in taken:
            return finish(template, taken["even"], first_step=2)
        return finish(template, taken["relu"], first_step=1)


def _scaled(image, sample):
    """`image` times a scalar, or times the scalar of each example; phases hold every example four times, one after the other."""
    sample = tf.cast(sample, image.dtype)
    if not sample.shape.rank:
        return sample * image
    times = tf.shape(image)[0] // tf.shape(sample)[0]
    return tf.tile(sample, [times])[:, None, None, None] * image


def _normalized(layer, image, needed):
    """The image in `layer`, or, where it is not needed, zeros; and `image`."""
    return tf.cond(needed, lambda: (layer(image), image), lambda: (tf.zeros_like(image), image))


def _pooled(template, image, needed):
    """The normalised pool of `image`, or, where it is not needed, zeros; and `image`."""
    strided = image[:, :: template.stride, :: template.stride, :]
    if template.kind == "average":
        return tf.cond(needed, lambda: (template(image), image), lambda: (tf.zeros_like(strided), image))
    pooled, image = _max_pool(image, needed)
    return tf.cond(needed, lambda: template(pooled, first_step=1), lambda: tf.zeros_like(strided)), image


def _max_pool(image, needed):
    """3x3 max pool of stride 1, or zeros, and `image`; its gradient pools again.

    oneDNN's gradient of a max pool, far faster than TensorFlow's own, reads what its forward kernel left in the workspace, which never
    leaves a function; `tf.cond` and `tf.function` put a gradient into another function than its forward pass.
    """
    window = {"ksize": [1, 3, 3, 1], "strides": [1, 1, 1, 1], "padding": "SAME"}

    @tf.custom_gradient
    def gated(image):
        def gradient(of_pooled, of_image):
            def added():
                pooled = tf.raw_ops.MaxPool(input=image, **window)
                return of_image + tf.raw_ops.MaxPoolGrad(orig_input=image, orig_output=pooled, grad=of_pooled, **window)

            return tf.cond(needed, added, lambda: of_image)

        pooled = tf.cond(needed, lambda: tf.raw_ops.MaxPool(input=image, **window), lambda: tf.zeros_like(image))
        return (pooled, tf.identity(image)), gradient

    return gated(image)
