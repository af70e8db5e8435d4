"""Training augmentation and normalisation: pure functions of a batch of images and one random seed an image.

Every function draws what it does to an image from that image's own seed and from nothing else, so the result depends neither on
the batch size nor on the position in the batch, and an interrupted epoch continues with the same bits.

Order as in the reference (quark0/darts, cnn/utils.py, `_data_transforms_cifar10`): crop and flip on pixels, normalise, Cutout.
"""

import dataclasses

import tensorflow as tf

from sivdnas_tf.errors import ConfigError

# Columns of the uniform numbers that an image's seed gives: crop, flip and Cutout of one image are independent.
_CROP, _FLIP, _CUTOUT = slice(0, 2), slice(2, 3), slice(3, 5)
_N_DRAWS = 5


def normalise(images, mean, std):
    """`(pixel / 255 - mean) / std`: the one formula that training, evaluation and the exported preprocessing share.

    Args:
      images: pixel values from 0 to 255, [..., C], of any numeric type.
      mean, std: of each channel in units of pixel / 255, [C].

    Returns:
      float32 images of the same shape.
    """
    return (tf.cast(images, tf.float32) / 255.0 - tf.cast(mean, tf.float32)) / tf.cast(std, tf.float32)


def random_crop(images, seeds, padding):
    """A window of the images' own size out of the images padded with zeros, each of the (2 padding + 1)^2 windows equally likely.

    As `RandomCrop(size, padding)` of the reference it belongs before `normalise`: the border is black, not the mean colour.

    Args:
      images: [B, H, W, C], H and W static.
      seeds: [B, 2] int32, one an image.
      padding: pixels added on each of the four sides.

    Returns:
      Images of the same shape and type.
    """
    return _crop(images, _uniform(seeds), padding)


def random_flip(images, seeds):
    """Each image mirrored left to right with probability 1/2.

    Args:
      images: [B, H, W, C].
      seeds: [B, 2] int32, one an image.

    Returns:
      Images of the same shape and type.
    """
    return _flip(images, _uniform(seeds))


def cutout(images, seeds, length):
    """Zeroes a square of each image; its centre is uniform over the pixels, and what reaches over the border is cut off.

    Belongs after `normalise`, where zero is the mean colour. Source: `Cutout` of quark0/darts (DeVries & Taylor 2017). Departure:
    there an odd length is rounded down to an even one; here the side is `length` for odd lengths too.

    Args:
      images: [B, H, W, C], H and W static.
      seeds: [B, 2] int32, one an image.
      length: side of the square in pixels.

    Returns:
      Images of the same shape and type.
    """
    return _cut_out(images, _uniform(seeds), length)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images; the default does nothing but normalise.

    Attributes:
      crop_padding: pixels of black border before the random crop; 0 turns it off.
      flip: whether half of the images are mirrored left to right.
      cutout_length: side in pixels of the square that Cutout zeroes; 0 turns it off.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout_length: int = 0

    def check(self, image_shape):
        """Raises `ConfigError` where the images, (H, W, C), are too small: some would lose every pixel."""
        side = min(image_shape[:2])
        if not 0 <= self.crop_padding < side:
            raise ConfigError(f"crop_padding must be from 0 to {side - 1} for images of {side} pixels. Received: {self.crop_padding}")
        if not 0 <= self.cutout_length < side:
            raise ConfigError(f"cutout_length must be from 0 to {side - 1} for images of {side} pixels. Received: {self.cutout_length}")

    def __call__(self, pixels, seeds, mean, std):
        """Crop, flip, normalise and Cutout, in this order.

        Args:
          pixels: values from 0 to 255, [B, H, W, C].
          seeds: [B, 2] int32, one an image.
          mean, std: of each channel in units of pixel / 255, [C].

        Returns:
          float32 normalised images [B, H, W, C].
        """
        if self == Augmentation():
            return normalise(pixels, mean, std)
        uniform = _uniform(seeds)  # once for all three: the draw an image is what augmentation costs
        if self.crop_padding:
            pixels = _crop(pixels, uniform, self.crop_padding)
        if self.flip:
            pixels = _flip(pixels, uniform)
        images = normalise(pixels, mean, std)
        return _cut_out(images, uniform, self.cutout_length) if self.cutout_length else images


def _uniform(seeds):
    """[B, 5] float32 in [0, 1) from [B, 2] seeds: one stateless draw an image (TensorFlow has none that takes a seed a row)."""
    return tf.map_fn(
        lambda seed: tf.random.stateless_uniform([_N_DRAWS], seed), seeds, fn_output_signature=tf.TensorSpec([_N_DRAWS], tf.float32)
    )


def _crop(images, uniform, padding):
    height, width = images.shape[1:3]
    offsets = tf.cast(uniform[:, _CROP] * (2 * padding + 1), tf.int32)
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _flip(images, uniform):
    flipped = uniform[:, _FLIP] < 0.5
    return tf.where(flipped[:, :, tf.newaxis, tf.newaxis], tf.reverse(images, axis=[2]), images)


def _cut_out(images, uniform, length):
    height, width = images.shape[1:3]
    first = tf.cast(uniform[:, _CUTOUT] * (height, width), tf.int32) - length // 2
    inside_rows = _within(tf.range(height), first[:, :1], length)
    inside_columns = _within(tf.range(width), first[:, 1:], length)
    inside = inside_rows[:, :, tf.newaxis] & inside_columns[:, tf.newaxis, :]
    return tf.where(inside[..., tf.newaxis], tf.zeros_like(images), images)


def _within(positions, first, length):
    """[B, n] bool: whether positions [n] are among the `length` that begin at first [B, 1]."""
    return (positions >= first) & (positions < first + length)
