"""Prediction: image files to labels, by the trained network of a run and without the images that it was trained on."""

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.augment import normalise
from sivdnas_tf.data.images import read_images
from sivdnas_tf.errors import DataError

_BATCH_SIZE = 256


def predict_files(model, description, paths, top=1):
    """The most probable labels of image files.

    Files are decoded as those of an image folder (`data.images`), greyscale where the network has one channel,
    and cut as the images that it was evaluated on.

    Args:
      model: the deployed form of the trained network: normalised images to logits.
      description: the `DataDescription` of its images.
      paths: of the files.
      top: labels an image; all of them where there are fewer.

    Returns:
      For each path a list of `(label, probability)`, the most probable first.

    Raises:
      DataError: for a file that cannot be read as an image, or a network whose images have neither one nor three channels.
    """
    resolution, _, channels = description.image_shape
    if channels not in (1, 3):
        raise DataError(f"files are read as greyscale or RGB, for a network of 1 or 3 channels. Received: a network of {channels} channels")
    pixels = []
    for image in read_images(paths, resolution, channels, description.central_crop):
        if isinstance(image, DataError):
            raise image
        pixels.append(image)
    images = normalise(np.stack(pixels), description.mean, description.std)
    probabilities = tf.nn.softmax(model.predict(images, batch_size=_BATCH_SIZE, verbose=0)).numpy()
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [(description.class_names[label], float(row[label])) for label in labels] for row, labels in zip(probabilities, order, strict=True)
    ]
