"""The images that `tune` measures its trials on."""

import dataclasses
import zlib

import numpy as np

from sivdnas_tf.data.datasets import Split
from sivdnas_tf.data.splits import channel_statistics, check_sizes, split_indices


def with_validation(datasets, fraction, seed):
    """Takes a split "validation" out of the training images, for what chooses settings: neither holdout nor test is touched.

    Args:
      datasets: `Datasets`.
      fraction: share of the images of both halves that becomes the validation split; at least one image does.
      seed: of the splits.

    Returns:
      `(Datasets, Split)`: the same with halves made anew of what is left, their own mean and standard deviation unless those were given,
      and without a test split (None); and "validation".

    Raises:
      DataError: where too few images are left for the halves.
    """
    train = datasets.train
    # Another stream of random numbers than that of the splits above.
    rng = np.random.default_rng((seed, zlib.crc32(b"validation")))
    indices = split_indices(train.labels, len(datasets.class_names), {"validation": fraction}, rng)
    splits = {part: Split(part, train.images[chosen], train.labels[chosen], train.ids[chosen]) for part, chosen in indices.items()}
    check_sizes(datasets.name, {part: split.labels for part, split in splits.items()}, datasets.class_names)
    validation, halves = splits.pop("validation"), splits
    mean, std = datasets.mean, datasets.std
    if datasets.measured:
        mean, std = channel_statistics([half.images for half in halves.values()])
    return dataclasses.replace(datasets, mean=mean, std=std, test=None, **halves), validation
