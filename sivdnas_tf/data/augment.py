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
_FINE_BITS = 5  # of a grey level's parts, in which the hue is turned: 16-bit integers take half the time of floats


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
    return _crop_and_resize(images, _drawn(crop_box_draws, seeds, [CROP_TRIES, 4]))


def colour_jitter(images, seeds, *, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0):
    """Random brightness, contrast, saturation and hue, one after the other, pixels cut off at 0 and 255 after each.

    `brightness` multiplies by a factor of [1 - b, 1 + b]; `contrast` mixes, by such a factor, with the mean of the image's grey, and
    `saturation` with the grey of each pixel; `hue` turns the hue of HSV by a share of the circle of [-h, h]. Each is uniform.

    Source: `ColorJitter` of torchvision. Departures: there the order of the four is random too, and the 8-bit images are rounded after
    each; here the order is fixed, and the result is rounded once.

    Args:
      images: pixel values from 0 to 255, [B, H, W, C], all static but B; C is 3 for saturation and hue, 1 or 3 for contrast.
      seeds: [B, 2] int32, one an image.
      brightness, contrast, saturation: from 0 (off) to 1.
      hue: from 0 (off) to 0.5.

    Returns:
      uint8 images [B, H, W, C].
    """
    return _jitter(images, _drawn(_jitter_draws, seeds, [4]), (brightness, contrast, saturation, hue))


def jittered(pixels, brightness, contrast, saturation, turn):
    """One image after the four steps of `colour_jitter`.

    NumPy's loops over whole planes take a third of the time that TensorFlow's kernels do, and leave other threads running.

    Args:
      pixels: values from 0 to 255, [H, W, C].
      brightness, contrast, saturation: factors of at least 0; 1 changes nothing.
      turn: of the hue, as a share of the circle, from -0.5 to 0.5.

    Returns:
      uint8 array [H, W, C].
    """
    channels = pixels.shape[2]
    planes = np.ascontiguousarray(pixels.reshape(-1, channels).T)
    planes = np.multiply(planes, np.float32(brightness), dtype=np.float32)
    if brightness > 1:
        _cut_off(planes)
    luma = np.float32(_LUMA if channels == 3 else [1.0])
    if contrast != 1:
        _mix(planes, contrast, np.float32((1 - contrast) * (np.einsum("cn->c", planes) @ luma / planes.shape[1])))
    if saturation != 1:
        _mix(planes, saturation, _weighted(planes, (1 - saturation) * luma))
    planes *= np.float32(1 << _FINE_BITS)
    planes = planes.astype(np.int16)
    if turn:
        planes = _turned_hue(planes, turn)
    planes += 1 << _FINE_BITS - 1
    planes >>= _FINE_BITS
    result = np.empty((planes.shape[1], channels), np.uint8)
    for channel, plane in enumerate(planes):
        result[:, channel] = plane
    return result.reshape(pixels.shape)


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
        shapes = {"uniform": [_N_DRAWS], "crop": [CROP_TRIES, 4], "jitter": [4]}
        specs = {name: tf.TensorSpec(shapes[name], tf.float32) for name in self._drawn_names}
        draws = tf.map_fn(self.draws, seeds, fn_output_signature=specs) if specs else {}
        return self.apply(pixels, draws, mean, std)

    def draws(self, seed):
        """The random numbers of one image, float32 by their names, from its seed, [2] int32."""
        functions = {"uniform": _uniform_draws, "crop": crop_box_draws, "jitter": _jitter_draws}
        return {name: functions[name](seed) for name in self._drawn_names}

    def apply(self, pixels, draws, mean, std):
        """As the call, with the `draws` [B, ...] of the images."""
        if self.resized_crop:
            pixels = _crop_and_resize(pixels, draws["crop"])
        elif self.crop_padding:
            pixels = _crop(pixels, draws["uniform"], self.crop_padding)
        if self.flip:
            pixels = _flip(pixels, draws["uniform"])
        if any(self._jitters):
            pixels = _jitter(pixels, draws["jitter"], self._jitters)
        images = normalise_batch(pixels, mean, std)
        return _cut_out(images, draws["uniform"], self.cutout_length) if self.cutout_length else images

    def is_mirrored(self, draws):
        """Whether the flip mirrors the image of these `draws`: a scalar bool tensor."""
        return draws["uniform"][_FLIP][0] < 0.5 if self.flip else tf.constant(False)

    @property
    def _jitters(self):
        return self.brightness, self.contrast, self.saturation, self.hue

    @property
    def _drawn_names(self):
        used = {"uniform": self.crop_padding or self.flip or self.cutout_length, "crop": self.resized_crop, "jitter": any(self._jitters)}
        return [name for name, is_used in used.items() if is_used]


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
    return _drawn(_uniform_draws, seeds, [_N_DRAWS])


def _uniform_draws(seed):
    return tf.random.stateless_uniform([_N_DRAWS], seed)


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


def _crop_and_resize(images, draws):
    """`random_resized_crop` by numbers [B, CROP_TRIES, 4]."""
    height, width = images.shape[1:3]

    def boxes_of(draws):
        return np.array([crop_box(each, height, width) for each in draws], np.float32).reshape(-1, 4)

    top, left, crop_height, crop_width = tf.unstack(
        tf.ensure_shape(tf.numpy_function(boxes_of, [draws], tf.float32, stateful=False), [None, 4]), axis=1
    )
    rows = _interpolated(tf.cast(images, tf.float32), top, crop_height, height, axis=1)
    return tf.ensure_shape(_interpolated(rows, left, crop_width, width, axis=2), images.shape)


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


def _jitter_draws(seed):
    return tf.random.stateless_uniform([4], tf.random.fold_in(seed, _JITTER))


def _jitter(images, uniform, strengths):
    """`colour_jitter` by uniform numbers [B, 4]."""

    def jitter(images, uniform):
        factors = (2.0 * uniform.astype(np.float64) - 1.0) * strengths + (1.0, 1.0, 1.0, 0.0)
        result = np.empty(images.shape, np.uint8)
        for index, image in enumerate(images):
            result[index] = jittered(image, *factors[index])
        return result

    return tf.ensure_shape(tf.numpy_function(jitter, [images, uniform], tf.uint8, stateful=False), images.shape)


def _mix(planes, factor, others):
    """Sets planes [C, n] to their mixture with `others`, which were multiplied by 1 - factor before."""
    planes *= np.float32(factor)
    planes += others
    if factor > 1:  # else it lies between the two
        _cut_off(planes)


def _cut_off(planes):
    """Cuts float32 planes off at 0 and 255; np.minimum with one number takes three times as long."""
    np.clip(planes, np.float32(0), np.float32(255), out=planes)


def _weighted(planes, weights):
    """The sum [n] of the planes [C, n] times their weights."""
    total = planes[0] * weights[0]
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        total += plane * weight
    return total


def _turned_hue(planes, turn):
    """Planes of red, green and blue, int16 [3, n], with the hue of HSV turned by `turn` of a circle; overwrites them.

    Whole sixths of a circle exchange the channels, and odd ones mirror them between a pixel's least and greatest. What is left is at most
    half a sixth, f: then a channel c, of whose two neighbours on the circle the next is n and the one after it p, becomes
    2c - middle - clip(n - p, -f chroma, f chroma), cut off at the least and the greatest. No pixel is divided or sorted.
    """
    sixths = round(6 * turn)
    rest = 6 * turn - sixths
    red, green, blue = planes
    least, greatest = np.minimum(red, green), np.maximum(red, green)
    middle = np.maximum(least, np.minimum(greatest, blue))
    np.minimum(least, blue, out=least)
    np.maximum(greatest, blue, out=greatest)
    reach = ((greatest - least) * np.float32(abs(rest))).astype(np.int16)
    moved = np.empty_like(planes)
    for channel in range(3):
        np.subtract(planes[(channel + 1) % 3], planes[(channel + 2) % 3], out=moved[channel])
    np.minimum(moved, reach, out=moved)
    np.maximum(moved, -reach, out=moved)
    planes += planes
    planes -= middle
    if rest > 0:
        planes -= moved
    else:
        planes += moved
    np.maximum(planes, least, out=planes)
    np.minimum(planes, greatest, out=planes)
    if sixths % 2:  # a half circle, and an even number of sixths
        np.subtract(least + greatest, planes, out=planes)
        sixths += 3
    return np.roll(planes, sixths // 2, axis=0) if sixths % 6 else planes
