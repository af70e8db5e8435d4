"""One image file to one array of pixels, and many of them in parallel (Pillow).

PNG, JPEG, WebP and BMP of any size and mode. What becomes of what a network does not take:

    orientation   the EXIF tag is obeyed, as a viewer does; a damaged tag is not
    alpha         composited over white: what lies under transparent pixels is arbitrary
    16 bits       the high byte
    palette, 1-bit, CMYK, greyscale   converted to RGB
    animation     its first frame

A file that is none of these, damaged, truncated, or larger than `MAX_PIXELS` (a decompression bomb) is a `DataError` that names it.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import struct
import warnings
import zlib

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from sivdnas_tf.errors import DataError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")  # compared in lower case
MAX_PIXELS = 2**30 // 12  # a gigabyte, once each pixel has three channels of float32
_FORMATS = ("BMP", "JPEG", "PNG", "WEBP")

# What Pillow raises on files with wrong bytes in them.
_DAMAGED = (
    OSError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def is_image_name(path):
    """Whether the file name ends as that of an image."""
    return pathlib.Path(path).suffix.lower() in EXTENSIONS


def resize(image, resolution):
    """An image of resolution x resolution pixels, with antialias; every source of images is resized by this function.

    The aspect ratio is not kept: the whole image is seen.

    Args:
      image: uint8 tensor or array [H, W, C].
      resolution: pixels a side.

    Returns:
      uint8 tensor [resolution, resolution, C].
    """
    resized = tf.image.resize(image, [resolution, resolution], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0.0, 255.0), tf.uint8)


# Traced once for all sizes: called as it is, its Python would keep the threads of `read_images` waiting for each other.
_resize_any = tf.function(resize, input_signature=[tf.TensorSpec([None, None, None], tf.uint8), tf.TensorSpec([], tf.int32)])


def read_image(path, resolution, channels=3):
    """Decodes and resizes a file.

    Args:
      path: of the file.
      resolution: pixels a side of the result.
      channels: 3 for RGB, 1 for greyscale (ITU-R 601 luma).

    Returns:
      uint8 array [resolution, resolution, channels].

    Raises:
      DataError: where `path` cannot be read as an image, with the reason.
    """
    with _silent_pillow():
        return _read(path, resolution, channels)


def read_images(paths, resolution, channels=3):
    """Decodes and resizes files on all cores, each once. Arguments as `read_image`, for several paths.

    Yields:
      For each path, in their order, the array, or the `DataError` of a file that cannot be read as an image.
    """

    def attempt(path):
        try:
            return _read(path, resolution, channels)
        except DataError as error:
            return error

    with _silent_pillow(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(attempt, paths)  # which cancels the rest when whoever asks stops early


@contextlib.contextmanager
def _silent_pillow():
    """Keeps Pillow's remarks on odd files off the terminal: a file is either read or refused here. Not to be entered in a thread."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _read(path, resolution, channels):
    try:
        pixels = _pixels(path, "RGB" if channels == 3 else "L")
    except _DAMAGED as error:
        raise DataError(
            f"{os.fspath(path)!r} cannot be read as an image. Expected PNG, JPEG, WebP or BMP of up to {MAX_PIXELS:,} pixels. "
            f"Received: {_reason(error)}"
        ) from None
    with tf.device("CPU:0"):
        return _resize_any(pixels.reshape(*pixels.shape[:2], channels), resolution).numpy()


def _reason(error):
    if isinstance(error, Image.UnidentifiedImageError):  # its message is the path
        return "another kind of file, or a damaged one"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _pixels(path, mode):
    """uint8 pixels [H, W, 3] ("RGB") or [H, W] ("L") of a file."""
    if not os.path.isfile(path):  # a pipe would be waited for
        raise OSError("a directory or a device" if os.path.exists(path) else "no such file")
    with Image.open(path, formats=_FORMATS) as image:
        if not 0 < image.width * image.height <= MAX_PIXELS:
            raise OSError(f"{image.width:,} x {image.height:,} pixels")
        image.load()
        return np.asarray(_opaque(_upright(image)).convert(mode))


def _upright(image):
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:  # of the tag: the pixels are there already
        return image


def _opaque(image):
    """The image with 8 bits a channel and without transparency."""
    if image.mode.startswith("I"):  # Pillow's own conversion cuts 16 bits off at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
