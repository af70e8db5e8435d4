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
import io
import os
import pathlib
import struct
import warnings
import zlib

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

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


def read_image(path, resolution, channels=3, central_crop=0.0):
    """Decodes and resizes a file.

    Args:
      path: of the file.
      resolution: pixels a side of the result.
      channels: 3 for RGB, 1 for greyscale (ITU-R 601 luma).
      central_crop: side of the central square that is resized, as a share of the shorter side; 0 resizes the whole image.

    Returns:
      uint8 array [resolution, resolution, channels].

    Raises:
      DataError: where `path` cannot be read as an image, with the reason.
    """
    with _silent_pillow():
        return _read(path, resolution, channels, central_crop)


def read_images(paths, resolution, channels=3, central_crop=0.0):
    """Decodes and resizes files on all cores, each once. Arguments as `read_image`, for several paths.

    Yields:
      For each path, in their order, the array, or the `DataError` of a file that cannot be read as an image.
    """

    def attempt(path):
        try:
            return _read(path, resolution, channels, central_crop)
        except DataError as error:
            return error

    with _silent_pillow(), concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(attempt, paths)  # which cancels the rest when whoever asks stops early


def central_square(height, width, share):
    """`(top, left, side)` of the central square of `share` of the shorter side, whole pixels; at least one."""
    side = max(1, round(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side


def decode(source, place, channels=3, central_crop=0.0):
    """The pixels of an encoded image, before they are resized.

    Args:
      source: path of a file, or its content, bytes.
      place: what the message calls it.
      channels, central_crop: as of `read_image`.

    Returns:
      uint8 array [height, width, channels].

    Raises:
      DataError: where it cannot be read as an image, with the reason.
    """
    with _named(place), _opened(source) as image:
        image.load()
        pixels = np.asarray(_converted(image, channels))
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    if not central_crop:
        return pixels
    top, left, side = central_square(*pixels.shape[:2], central_crop)
    return pixels[top : top + side, left : left + side]


def decode_crop(source, place, choose, resolution, channels=3, is_mirrored=False):
    """A part of an encoded image, resized: bilinear, antialiased, by Pillow, which leaves other threads running.

    A JPEG is decoded at a half, a quarter or an eighth of its size where the part then still has `resolution` pixels a side.

    Args:
      source, place, channels: as of `decode`.
      choose: function of the upright image's height and width to the part's `(top, left, height, width)` in pixels.
      resolution: pixels a side of the result.
      is_mirrored: whether the result is mirrored left to right.

    Returns:
      uint8 array [resolution, resolution, channels].

    Raises:
      DataError: where it cannot be read as an image, with the reason.
    """
    with _named(place), _opened(source) as image:
        stored = image.size
        width, height = stored[::-1] if _is_turned(image) else stored
        top, left, crop_height, crop_width = choose(height, width)
        spare = min(crop_height, crop_width) // resolution
        if spare > 1:
            image.draft(None, (stored[0] // spare, stored[1] // spare))
        image.load()
        image = _converted(image, channels)
        scale_x, scale_y = image.width / width, image.height / height
        box = (left * scale_x, top * scale_y, (left + crop_width) * scale_x, (top + crop_height) * scale_y)
        image = image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if is_mirrored else image)
    return pixels.reshape(resolution, resolution, channels)


def silence_pillow():
    """Keeps Pillow's remarks on odd files off the terminal from now on; `tf.data` decodes in threads for as long as a run takes."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextlib.contextmanager
def _silent_pillow():
    """Keeps Pillow's remarks on odd files off the terminal: a file is either read or refused here. Not to be entered in a thread."""
    with warnings.catch_warnings():
        silence_pillow()
        yield


def _read(path, resolution, channels, central_crop):
    pixels = decode(path, path, channels, central_crop)
    with tf.device("CPU:0"):
        return _resize_any(pixels, resolution).numpy()


@contextlib.contextmanager
def _named(place):
    """Turns what Pillow raises into a `DataError` that says of which image."""
    try:
        yield
    except _DAMAGED as error:
        raise DataError(
            f"{os.fspath(place)!r} cannot be read as an image. Expected PNG, JPEG, WebP or BMP of up to {MAX_PIXELS:,} pixels. "
            f"Received: {_reason(error)}"
        ) from None


def _reason(error):
    if isinstance(error, Image.UnidentifiedImageError):  # its message is the path
        return "another kind of file, or a damaged one"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:200] or type(error).__name__


def _opened(source):
    """The image of a file's path, or of its content, not decoded yet."""
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    elif not os.path.isfile(source):  # a pipe would be waited for
        raise OSError("a directory or a device" if os.path.exists(source) else "no such file")
    image = Image.open(source, formats=_FORMATS)
    if not 0 < image.width * image.height <= MAX_PIXELS:
        image.close()
        raise OSError(f"{image.width:,} x {image.height:,} pixels")
    return image


def _converted(image, channels):
    """The upright image without transparency: RGB for three channels, greyscale for one."""
    image, mode = _opaque(_upright(image)), "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def _is_turned(image):
    """Whether the EXIF tag says that height and width change places."""
    return _orientation(image) in (5, 6, 7, 8)


def _orientation(image):
    """What the EXIF tag says, 1 where there is none or it is damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:
        return 1


def _upright(image):
    if _orientation(image) == 1:
        return image
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
