"""Training augmentation and normalisation: pure functions of a batch of images and one random seed an image.

Every function draws what it does to an image from that image's own seed and from nothing else, so the result depends neither on
the batch size nor on the position in the batch, and an interrupted epoch continues with the same bits.

Order as in the reference (quark0/darts, cnn/utils.py, `_data_transforms_cifar10`, and cnn/train_imagenet.py): crop, flip and colour
jitter on pixels, normalise, Cutout.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from sivdnas_tf.errors import ConfigError

# Columns of the uniform numbers that an image's seed gives: crop, flip and Cutout of one image are independent.
_CROP, _FLIP, _CUTOUT = slice(0, 2), slice(2, 3), slice(3, 5)
_N_DRAWS = 5
# Numbers folded into an image's seed for what draws apart: nothing drawn before them changes when they are turned on.
_CROP_BOX, _JITTER = 1, 2

CROP_TRIES = 10
_CROP_AREA = (0.08, 1.0)
_CROP_ASPECT = (3 / 4, 4 / 3)
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue in grey (ITU-R 601)
_TINY = 1e-6  # of a grey level: a grey pixel has no hue, and is divided by it, not by zero


def normalise(images, mean, std):
    """`(pixel / 255 - mean) / std`: the one formula that training, evaluation and the exported preprocessing share.

    Args:
      images: pixel values from 0 to 255, [..., C], of any numeric type.
      mean, std: of each channel in units of pixel / 255, [C].

    Returns:
      float32 images of the same shape.
    """
    return (tf.cast(images, tf.float32) / 255.0 - tf.cast(mean, tf.float32)) / tf.cast(std, tf.float32)


def normalise_batch(images, mean, std):
    """`normalise` of images [B, H, W, C] with static H, W and C, bit for bit, in a quarter of its time: on rows of W * C numbers."""
    width, channels = images.shape[2:]
    rows = tf.reshape(images, [-1, images.shape[1], width * channels])
    mean, std = (tf.tile(tf.reshape(tf.cast(value, tf.float32), [channels]), [width]) for value in (mean, std))
    return tf.reshape(normalise(rows, mean, std), [-1, *images.shape[1:]])


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


def crop_box_draws(seed):
    """The uniform numbers of one image's `crop_box`, float32 [CROP_TRIES, 4], from its seed, [2] int32."""
    return tf.random.stateless_uniform([CROP_TRIES, 4], tf.random.fold_in(seed, _CROP_BOX))


def crop_box(draws, height, width):
    """The random crop of one image: 8 to 100 % of the area, aspect ratio (width / height) log-uniform from 3/4 to 4/3.

    The first of ten tries that lies within the image; else the largest central crop of an allowed aspect ratio. Source:
    `RandomResizedCrop.get_params` of torchvision; its bounds are those of Szegedy et al. 2015 (Inception).

    Args:
      draws: numbers in [0, 1), [tries, 4]: for area, aspect ratio, top and left.
      height, width: of the image in pixels.

    Returns:
      `(top, left, height, width)` of the crop, whole pixels.
    """
    least, most = map(math.log, _CROP_ASPECT)
    for area, aspect, top, left in np.asarray(draws, np.float64):
        target = (_CROP_AREA[0] + (_CROP_AREA[1] - _CROP_AREA[0]) * area) * height * width
        ratio = math.exp(least + (most - least) * aspect)
        crop_height, crop_width = round(math.sqrt(target / ratio)), round(math.sqrt(target * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            return int(top * (height - crop_height + 1)), int(left * (width - crop_width + 1)), crop_height, crop_width
    crop_height, crop_width = min(height, round(width / _CROP_ASPECT[0])), min(width, round(height * _CROP_ASPECT[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_resized_crop(images, seeds):
    """A random crop of each image (`crop_box`), enlarged to the images' own size by bilinear interpolation.

    No crop is shrunk, so there is nothing to smooth: pixels beside the crop have no part in it.

    Args:
      images: [B, H, W, C], H and W static.
      seeds: [B, 2] int32, one an image.

    Returns:
      float32 images of the same shape.
    """
    height, width = images.shape[1:3]
    draws = _drawn(crop_box_draws, seeds, [CROP_TRIES, 4])

    def boxes_of(draws):
        return np.array([crop_box(each, height, width) for each in draws], np.float32).reshape(-1, 4)

    top, left, crop_height, crop_width = tf.unstack(
        tf.ensure_shape(tf.numpy_function(boxes_of, [draws], tf.float32, stateful=False), [None, 4]), axis=1
    )
    rows = _interpolated(tf.cast(images, tf.float32), top, crop_height, height, axis=1)
    return tf.ensure_shape(_interpolated(rows, left, crop_width, width, axis=2), images.shape)


def colour_jitter(images, seeds, *, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
    """Random brightness, contrast, saturation and hue, one after the other, pixels cut off at 0 and 255 after each.

    `brightness` multiplies by a factor of [1 - b, 1 + b]; `contrast` mixes, by such a factor, with the mean of the image's grey, and
    `saturation` with the grey of each pixel; `hue` turns the hue of HSV by a share of the circle of [-h, h]. Each is uniform.

    Source: `ColorJitter` of torchvision. Departures: there the order of the four is random too, and the 8-bit images are rounded after
    each; here the order is fixed, and nothing is rounded.

    Args:
      images: pixel values from 0 to 255, [B, H, W, C]; C is 3 for saturation and hue, 1 or 3 for contrast.
      seeds: [B, 2] int32, one an image.
      brightness, contrast, saturation: from 0 (off) to 1.
      hue: from 0 (off) to 0.5.

    Returns:
      float32 images [B, H, W, C], from 0 to 255.
    """
    uniform = _drawn(lambda seed: tf.random.stateless_uniform([4], tf.random.fold_in(seed, _JITTER)), seeds, [4])
    signed = (2.0 * uniform - 1.0) * tf.constant([brightness, contrast, saturation, hue])
    signed = [signed[:, index, tf.newaxis, tf.newaxis] for index in range(4)]
    # A plane a channel: TensorFlow's kernels are several times slower where the last axis has three numbers.
    planes = tf.unstack(tf.cast(images, tf.float32), axis=-1)
    if brightness:
        planes = [_as_pixels(plane * (1.0 + signed[0])) for plane in planes]
    if contrast:
        planes = _mixed(planes, tf.reduce_mean(_grey(planes), axis=(1, 2), keepdims=True), 1.0 + signed[1])
    if saturation:
        planes = _mixed(planes, _grey(planes), 1.0 + signed[2])
    if hue:
        planes = _turned_hue(planes, signed[3])
    return tf.transpose(tf.stack(planes, axis=1), [0, 2, 3, 1])  # what stack(axis=-1) does, in half the time


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is done to training images; the default does nothing but normalise.

    Attributes:
      crop_padding: pixels of black border before the random crop; 0 turns it off.
      flip: whether half of the images are mirrored left to right.
      cutout_length: side in pixels of the square that Cutout zeroes; 0 turns it off.
      resized_crop: whether `random_resized_crop` takes the place of the crop of the padded image.
      brightness, contrast, saturation, hue: of `colour_jitter`; 0 turns each off.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout_length: int = 0
    resized_crop: bool = False
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def check(self, image_shape):
        """Raises `ConfigError` where the images, (H, W, C), are too small (some would lose every pixel), or have no colour to change."""
        if (self.saturation or self.hue) and image_shape[2] != 3:
            raise ConfigError(
                "data.saturation_jitter and data.hue_jitter need images of 3 channels, red, green and blue. "
                f"Received: saturation_jitter={self.saturation}, hue_jitter={self.hue} for images of {image_shape[2]} channels"
            )
        if self.contrast and image_shape[2] not in (1, 3):
            raise ConfigError(
                "data.contrast_jitter needs images of 1 or 3 channels. "
                f"Received: contrast_jitter={self.contrast} for images of {image_shape[2]} channels"
            )
        side = min(image_shape[:2])
        if not 0 <= self.crop_padding < side:
            raise ConfigError(f"crop_padding must be from 0 to {side - 1} for images of {side} pixels. Received: {self.crop_padding}")
        if not 0 <= self.cutout_length < side:
            raise ConfigError(f"cutout_length must be from 0 to {side - 1} for images of {side} pixels. Received: {self.cutout_length}")

    def __call__(self, pixels, seeds, mean, std):
        """Crop, flip, colour jitter, normalise and Cutout, in this order.

        Args:
          pixels: values from 0 to 255, [B, H, W, C].
          seeds: [B, 2] int32, one an image.
          mean, std: of each channel in units of pixel / 255, [C].

        Returns:
          float32 normalised images [B, H, W, C].
        """
        if self == Augmentation():
            return normalise_batch(pixels, mean, std)
        uniform = _uniform(seeds)  # once for all three: the draw an image is what augmentation costs
        if self.resized_crop:
            pixels = random_resized_crop(pixels, seeds)
        elif self.crop_padding:
            pixels = _crop(pixels, uniform, self.crop_padding)
        if self.flip:
            pixels = _flip(pixels, uniform)
        jitter = {"brightness": self.brightness, "contrast": self.contrast, "saturation": self.saturation, "hue": self.hue}
        if any(jitter.values()):
            pixels = colour_jitter(pixels, seeds, **jitter)
        images = normalise_batch(pixels, mean, std)
        return _cut_out(images, uniform, self.cutout_length) if self.cutout_length else images


def configured_augmentation(data, cutout_length):
    """The `Augmentation` of a `config.DataConfig`, with the Cutout of a stage."""
    return Augmentation(
        crop_padding=data.crop_padding,
        flip=data.flip,
        cutout_length=cutout_length,
        resized_crop=data.random_resized_crop,
        brightness=data.brightness_jitter,
        contrast=data.contrast_jitter,
        saturation=data.saturation_jitter,
        hue=data.hue_jitter,
    )


def _uniform(seeds):
    """[B, 5] float32 in [0, 1) from [B, 2] seeds."""
    return _drawn(lambda seed: tf.random.stateless_uniform([_N_DRAWS], seed), seeds, [_N_DRAWS])


def _drawn(draw, seeds, shape):
    """float32 [B, *shape]: one stateless draw an image (TensorFlow has none that takes a seed a row)."""
    return tf.map_fn(draw, seeds, fn_output_signature=tf.TensorSpec(shape, tf.float32))


def _crop(images, uniform, padding):
    height, width = images.shape[1:3]
    offsets = tf.cast(uniform[:, _CROP] * (2 * padding + 1), tf.int32)
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _flip(images, uniform):
    # Select takes whole images by a number an image; tf.where broadcasts it to every pixel, in ten times the time.
    return tf.raw_ops.Select(condition=uniform[:, _FLIP][:, 0] < 0.5, x=tf.reverse(images, axis=[2]), y=images)


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


def _interpolated(images, first, length, size, axis):
    """Rows (axis 1) or columns (axis 2) `first` to `first + length` of each image, [B] each, resampled to `size`; pixels have centres."""
    places = (tf.range(size, dtype=tf.float32) + 0.5) * (length[:, tf.newaxis] / size) - 0.5
    places = tf.clip_by_value(places, 0.0, length[:, tf.newaxis] - 1.0) + first[:, tf.newaxis]
    below = tf.floor(places)
    share = (places - below)[:, :, tf.newaxis, tf.newaxis] if axis == 1 else (places - below)[:, tf.newaxis, :, tf.newaxis]
    lower = tf.gather(images, tf.cast(below, tf.int32), axis=axis, batch_dims=1)
    upper = tf.gather(images, tf.cast(tf.math.ceil(places), tf.int32), axis=axis, batch_dims=1)
    return lower + share * (upper - lower)


def _as_pixels(images):
    return tf.clip_by_value(images, 0.0, 255.0)


def _grey(planes):
    if len(planes) == 1:
        return planes[0]
    return sum(weight * plane for weight, plane in zip(_LUMA, planes, strict=True))


def _mixed(planes, others, factor):
    """The planes times `factor` and the others times 1 - factor."""
    others = others * (1.0 - factor)
    return [_as_pixels(plane * factor + others) for plane in planes]


def _turned_hue(planes, turn):
    """Planes of red, green and blue, [B, H, W] each, with the hue of HSV turned by `turn` of a circle, [B, 1, 1].

    With the hue in sixths of a circle, h, a channel is minimum + chroma * clip(w, 0, 1), w of |h - 3| - 1, 2 - |h - 2| and 2 - |h - 4|.
    Here h is in 36ths, so that relu6 clips.
    """
    red, green, blue = planes
    value, low = tf.maximum(tf.maximum(red, green), blue), tf.minimum(tf.minimum(red, green), blue)
    chroma = value - low
    select = tf.raw_ops.Select  # tf.where broadcasts, and takes six times as long
    of_others = select(condition=tf.equal(value, green), x=blue - red + 2.0 * chroma, y=red - green + 4.0 * chroma)
    hue = select(condition=tf.equal(value, red), x=green - blue, y=of_others) / tf.maximum(chroma, _TINY) / 6.0 + turn
    hue = 36.0 * (hue - tf.floor(hue))  # tf.math.floormod takes twenty times as long
    weights = [tf.abs(hue - 18.0) - 6.0, 12.0 - tf.abs(hue - 12.0), 12.0 - tf.abs(hue - 24.0)]
    sixth = chroma / 6.0
    return [low + sixth * tf.nn.relu6(weight) for weight in weights]
