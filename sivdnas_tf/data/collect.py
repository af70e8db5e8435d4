"""A `tf.data.Dataset` of pairs (image, label) to arrays in memory."""

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.images import resize
from sivdnas_tf.errors import DataError

_CHUNK = 512  # images that are read at a time


def collect(dataset, name, resolution, central_crop=0.0):
    """Reads all pairs, once.

    Args:
      dataset: a `tf.data.Dataset` of `(image, label)`: uint8 [H, W, C], integer scalar; see `checked_pairs`.
      name: of the source, for messages.
      resolution: pixels a side after resizing (`images.resize`), 0 for the images' own size.
      central_crop: side of the central square that is resized, as a share of the shorter side; 0 resizes the whole image.

    Returns:
      uint8 images [n, H, W, C] and int32 labels [n].

    Raises:
      DataError: where there is no image, or images differ in size and `resolution` is 0.
    """
    if resolution:

        def cut(image, label):
            return resize(_central_square(image, central_crop), resolution), label

        dataset = dataset.map(cut, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    same_size = dataset.element_spec[0].shape.is_fully_defined()
    images, labels = [], []
    for image, label in dataset.batch(_CHUNK if same_size else 1).as_numpy_iterator():
        images.append(image)
        labels.append(label)
        if image.shape[1:] != images[0].shape[1:]:
            raise DataError(
                f"the images of {name!r} differ in size: set data.resolution to resize them. "
                f"Received: {list(images[0].shape[1:])} and {list(image.shape[1:])}"
            )
    if not images:
        raise DataError(f"a split of dataset {name!r} holds no image. Received: 0 images")
    return np.concatenate(images), np.concatenate(labels).astype(np.int32)


def _central_square(image, share):
    """As `images.central_square`, of a tensor [H, W, C] of any size."""
    if not share:
        return image
    height, width = tf.unstack(tf.shape(image)[:2])
    side = tf.maximum(1, tf.cast(tf.round(share * tf.cast(tf.minimum(height, width), tf.float64)), tf.int32))
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def checked_pairs(dataset, name):
    """The user's own `tf.data.Dataset` with its ranks made known.

    Raises:
      DataError: unless it gives, unbatched and not for ever, pairs of a uint8 image [H, W, C] and an integer label.
    """
    if not isinstance(dataset, tf.data.Dataset):
        raise DataError(f"{name!r} must be a tf.data.Dataset. Received: {type(dataset).__name__}")
    spec = dataset.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2 and all(isinstance(part, tf.TensorSpec) for part in spec)):
        raise DataError(f"{name!r} must give pairs (image, label) of tensors. Received: {' '.join(str(spec).split())[:200]}")
    image, label = spec
    if image.shape.rank == 4 or (image.shape.rank == 3 and label.shape.rank == 1 and image.shape[0] == label.shape[0]):
        raise DataError(f"{name!r} must give one image at a time: pass dataset.unbatch(). Received: batches of shape {image.shape}")
    if image.dtype != tf.uint8 or image.shape.rank not in (3, None):
        raise DataError(
            f"the images of {name!r} must be 8-bit, uint8 [height, width, channels] from 0 to 255: they are normalised here. "
            f"Received: {image.dtype.name} {image.shape}"
        )
    if not label.dtype.is_integer or label.shape.rank not in (0, None):
        raise DataError(
            f"the labels of {name!r} must be one integer an image, not strings or one-hot. Received: {label.dtype.name} {label.shape}"
        )
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise DataError(f"{name!r} must end: pass it without repeat(). Received: an infinite dataset")
    return dataset.map(lambda image, label: (tf.ensure_shape(image, [None] * 3), tf.ensure_shape(label, [])))
