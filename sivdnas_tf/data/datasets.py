"""Labelled images in memory, their four disjoint splits, and the batches that search, training and evaluation read.

Sources: scikit-learn's bundled digits, any TFDS dataset that was prepared before, folders of image files, and in Python arrays or a
`tf.data.Dataset`; nothing is ever downloaded. The splits:

    weights       half of what is trained on: the supernet's weights
    architecture  the other half, equally large: the architecture parameters
    holdout       chooses a checkpoint and verifies an export; never trained on
    test          read once, by `evaluate`

An image belongs to one split at most; where the halves share an odd number of images, one image belongs to none.
"""

import contextlib
import dataclasses
import functools
import zlib

import numpy as np
import tensorflow as tf

from sivdnas_tf.config import replace
from sivdnas_tf.data import folders
from sivdnas_tf.data.augment import Augmentation, normalise_batch
from sivdnas_tf.data.collect import checked_pairs, collect
from sivdnas_tf.data.images import resize
from sivdnas_tf.data.records import read_tfds
from sivdnas_tf.data.splits import channel_statistics, check_sizes, given_statistics, split_indices
from sivdnas_tf.data.streamed_datasets import StreamedDatasets, load_streams
from sivdnas_tf.data.streams import StreamedSplit
from sivdnas_tf.errors import ConfigError, DataError

_OWN_NAME = "tf.data"  # of images that were given without a name
_CHUNK = 512  # images that are counted or read at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images of one purpose.

    Attributes:
      name: "weights", "architecture", "holdout", "test", or "train".
      images: uint8 [n, R, R, C].
      labels: int32 [n], from 0.
      ids: int64 [n], unique over all splits: the index in the source, the images of its own test split after all others.
    """

    name: str
    images: np.ndarray = dataclasses.field(repr=False)
    labels: np.ndarray = dataclasses.field(repr=False)
    ids: np.ndarray = dataclasses.field(repr=False)

    def __len__(self):
        return len(self.labels)

    @functools.cached_property
    def tensors(self):
        """`(images, labels, ids)` as host tensors, made once: every epoch gathers from them."""
        with tf.device("CPU:0"):
            return tf.constant(self.images), tf.constant(self.labels), tf.constant(self.ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Datasets:
    """The splits of one source and what describes it.

    Attributes:
      name: of the source.
      weights, architecture, holdout, test: one `Split` each; weights and architecture are equally large.
      image_shape: (R, R, C).
      class_names: one a label, in the order of the labels.
      mean, std: float32 [C] of each channel in units of pixel / 255, over weights and architecture only, or as they were given.
      central_crop: side of the central square that images were cut to, as a share of their shorter side; 0 for whole images.
      measured: whether mean and std were measured on the images.
    """

    name: str
    weights: Split
    architecture: Split
    holdout: Split
    test: Split
    image_shape: tuple
    class_names: tuple
    mean: np.ndarray
    std: np.ndarray
    central_crop: float = 0.0
    measured: bool = True

    @functools.cached_property
    def train(self):
        """The `Split` "train": weights and architecture together, for the training of the evaluation network."""
        halves = (self.weights, self.architecture)
        return Split("train", *(np.concatenate([getattr(half, field) for half in halves]) for field in ("images", "labels", "ids")))

    def halves_at(self, resolution):
        """The two halves, all that a search reads, at another resolution (antialiased), with their own mean and standard deviation
        unless those were given.

        holdout and test, which it must not read, are None.
        """
        halves = {
            name: dataclasses.replace(half, images=_resized_array(half.images, resolution))
            for name, half in (("weights", self.weights), ("architecture", self.architecture))
        }
        mean, std = channel_statistics([half.images for half in halves.values()]) if self.measured else (self.mean, self.std)
        shape = (resolution, resolution, self.image_shape[2])
        return dataclasses.replace(self, image_shape=shape, mean=mean, std=std, holdout=None, test=None, **halves)


def load_datasets(data_config, seed, say=print):
    """Reads the source that a configuration names, or with `streaming` lists it, and splits it.

    Args:
      data_config: a `config.DataConfig`. "digits" is scikit-learn's, "folder:PATH" a folder of images; any other name is a TFDS dataset
        prepared in `data_dir`.
      seed: of the splits.
      say: function of a line for the user: what of a folder was ignored or skipped.

    Returns:
      `Datasets`, or `StreamedDatasets`. A TFDS dataset keeps its own "test" split, or "validation" where it has no "test" with labels (a
      "test" whose labels are all -1, as of a competition, is not used), a folder its own test/; otherwise `test_fraction` of the images
      becomes the test split.

    Raises:
      DataError: where the dataset is unknown, not prepared, unreadable, no image classification, or too small.
      ConfigError: for a folder, streaming or a central crop without `resolution`, or statistics for another number of channels.
    """
    if data_config.streaming:
        return load_streams(data_config, seed, say)
    _check_central_crop(data_config)
    if data_config.name.startswith(folders.PREFIX):
        (images, labels), test, class_names = folders.read_folder(data_config, say)
    else:
        read = _read_digits if data_config.name == "digits" else functools.partial(read_tfds, say=say)
        (images, labels), test, class_names = read(data_config)
    return datasets_from_arrays(
        data_config.name,
        images,
        labels,
        class_names,
        seed=seed,
        holdout_fraction=data_config.holdout_fraction,
        test_fraction=data_config.test_fraction,
        test=test,
        mean=data_config.mean,
        std=data_config.std,
        central_crop=data_config.central_crop,
    )


def _check_central_crop(data_config):
    if data_config.central_crop and not data_config.resolution:
        raise ConfigError(
            "data.central_crop needs data.resolution, which the square is resized to. "
            f"Received: data.central_crop={data_config.central_crop}, data.resolution=0"
        )


def datasets_from_arrays(
    name, images, labels, class_names, *, seed, holdout_fraction=0.1, test_fraction=0.2, test=None, mean=(), std=(), central_crop=0.0
):
    """Splits images that are in memory.

    Args:
      name: of the source, for messages and reports.
      images: uint8 [n, R, R, C].
      labels: integers [n], each from 0 to the number of classes - 1.
      class_names: one a label.
      seed: of the splits, at least 0; the same seed gives the same splits.
      holdout_fraction: share of the training images (all but the test images) that is held out; at least one image is.
      test_fraction: share of the images that becomes the test split; at least one image does. Not read where `test` is given.
      test: `(images, labels)` of a test split of the source's own, or None.
      mean, std: of each channel in units of pixel / 255; () measures them.
      central_crop: what `images` were cut to, for the record of it.

    Returns:
      `Datasets`. Every split is drawn with the same share of each class, as far as whole images allow; the numbers of images of a
      class in weights and architecture differ by one at most.

    Raises:
      DataError: for arrays of another kind, or where a split stays empty or a class has no image in weights or in architecture.
    """
    images, labels = _checked_arrays(name, images, labels, class_names)
    rng = np.random.default_rng(seed)
    fractions = {"holdout": holdout_fraction} if test else {"test": test_fraction, "holdout": holdout_fraction}
    indices = split_indices(labels, len(class_names), fractions, rng)
    splits = {part: Split(part, images[chosen], labels[chosen], chosen) for part, chosen in indices.items()}
    if test:
        test_images, test_labels = _checked_arrays(name, *test, class_names)
        if test_images.shape[1:] != images.shape[1:]:
            raise DataError(
                f"the test images of {name!r} must have the shape of its training images, {images.shape[1:]}. "
                f"Received: {test_images.shape[1:]}"
            )
        test_ids = np.arange(len(labels), len(labels) + len(test_labels), dtype=np.int64)
        splits["test"] = Split("test", test_images, test_labels, test_ids)
    check_sizes(name, {part: split.labels for part, split in splits.items()}, class_names)
    given = given_statistics(mean, std, images.shape[-1], name)
    mean, std = given or channel_statistics([splits["weights"].images, splits["architecture"].images])
    return Datasets(
        name=name,
        image_shape=images.shape[1:],
        class_names=tuple(class_names),
        mean=mean,
        std=std,
        central_crop=central_crop,
        measured=given is None,
        **splits,
    )


def datasets_from_tf_data(
    name,
    dataset,
    class_names=None,
    *,
    seed,
    resolution=0,
    holdout_fraction=0.1,
    test_fraction=0.2,
    test=None,
    mean=(),
    std=(),
    central_crop=0.0,
):
    """Reads a `tf.data.Dataset` of the user's own into memory, once, and splits it.

    Args:
      name: for messages, reports and the record of the stages that use the images.
      dataset: gives pairs `(image, label)`, unbatched: uint8 [H, W, C] with pixel values from 0 to 255, an integer from 0. Whatever
        order it gives them in, the same order gives the same splits: leave shuffling to the training.
      class_names: one a label; None names the labels found by their numbers.
      seed, holdout_fraction, test_fraction: as `datasets_from_arrays`.
      resolution: pixels a side after resizing; 0 for images that are square and of one size already.
      test: a `tf.data.Dataset` alike that becomes the test split, or None.
      mean, std: as `datasets_from_arrays`.
      central_crop: side of the central square that is resized to `resolution`, as a share of the shorter side; 0 for the whole image.

    Returns:
      `Datasets`.

    Raises:
      DataError: for batches, images that are not uint8, missing labels, labels without a class name, an endless dataset, or too few
        images.
    """
    sources = [checked_pairs(source, name) for source in (dataset, test) if source is not None]
    try:
        images, *of_test = (collect(source, name, resolution, central_crop) for source in sources)
    except tf.errors.InvalidArgumentError as error:  # a shape that only the elements have
        raise DataError(
            f"{name!r} must give images [height, width, channels]. Received: {' '.join(error.message.split())[:300]}"
        ) from error
    if class_names is None:
        largest = max(labels.max() for _, labels in (images, *of_test))
        # More classes than images are refused below, without a name for each.
        class_names = [str(label) for label in range(min(largest, len(images[0])) + 1)]
    return datasets_from_arrays(
        name,
        *images,
        class_names,
        seed=seed,
        holdout_fraction=holdout_fraction,
        test_fraction=test_fraction,
        test=of_test[0] if of_test else None,
        mean=mean,
        std=std,
        central_crop=central_crop,
    )


def as_datasets(datasets, config):
    """`Datasets` as they are; a `tf.data.Dataset` as `datasets_from_tf_data` reads it under a `Config`, with its labels as names.

    Raises:
      ConfigError: where `data.streaming` is not what `datasets` are.
    """
    data, streamed = config.data, isinstance(datasets, StreamedDatasets)
    if data.streaming != streamed:
        raise ConfigError(
            f"data.streaming must be {streamed} for {type(datasets).__name__}, which {'are' if streamed else 'are not'} streamed. "
            f"Received: data.streaming={data.streaming}"
        )
    if streamed or isinstance(datasets, Datasets):
        return datasets
    _check_central_crop(data)
    return datasets_from_tf_data(
        _OWN_NAME,
        datasets,
        seed=config.seed,
        resolution=data.resolution,
        holdout_fraction=data.holdout_fraction,
        test_fraction=data.test_fraction,
        mean=data.mean,
        std=data.std,
        central_crop=data.central_crop,
    )


def with_name_of(config, datasets):
    """`config` with the name of `datasets`, which need not be what it names: what the record of a stage says of its images."""
    return config if config.data.name == datasets.name else replace(config, data={"name": datasets.name})


def steps_per_epoch(split, batch_size, drop_remainder=True):
    """Number of batches of `split` in an epoch.

    Raises:
      DataError: where a batch is larger than the split.
      ConfigError: where as many images of a streamed split may be corrupt as a batch has: another of its batch stands in for each.
    """
    if not 1 <= batch_size <= len(split):
        raise DataError(
            f"a batch must hold from 1 to {len(split)} images, the size of the split {split.name!r}. Received: batch_size={batch_size}"
        )
    if isinstance(split, StreamedSplit):
        split.check_stand_ins(batch_size, drop_remainder)
    return len(split) // batch_size if drop_remainder else -(-len(split) // batch_size)


def batches(split, batch_size, *, mean, std, seed, epoch, skip_batches=0, max_batches=None, augmentation=None, drop_remainder=True):
    """One epoch of training batches.

    The order is a permutation drawn from (seed, split name, epoch), an image's augmentation from (seed, epoch, image id). An epoch
    that is resumed after k batches is therefore, bit for bit, the tail of the uninterrupted one, and skipping costs nothing. Of records
    that are read file by file, the order is a shuffle among the next ones, which depends on TensorFlow's global seed too, and what is
    skipped is read, but not decoded. An iterator over streamed images that is still decoding when Python ends may keep it from ending.

    Args:
      split: a `Split`, or a `StreamedSplit`, of which only what the batches hold is read and decoded.
      batch_size: images a batch.
      mean, std: of each channel in units of pixel / 255, [C].
      seed, epoch: integers, at least 0.
      skip_batches: number of first batches that are left out.
      max_batches: number of batches, the skipped ones among them, after which the epoch ends; None goes through the whole split.
      augmentation: an `Augmentation`, or None.
      drop_remainder: whether the last, smaller batch is left out.

    Returns:
      A `tf.data.Dataset` of `(images, labels)`: float32 normalised [B, R, R, C], int32 [B].

    Raises:
      DataError: for a batch larger than the split, or more skipped batches than an epoch has.
      ConfigError: as `steps_per_epoch`, and for an augmentation that the images are too small for.
    """
    steps = steps_per_epoch(split, batch_size, drop_remainder)
    if not 0 <= skip_batches <= steps:
        raise DataError(f"skip_batches must be from 0 to {steps}, the batches of an epoch. Received: {skip_batches}")
    augmentation = augmentation or Augmentation()
    if isinstance(split, StreamedSplit):
        window = (skip_batches * batch_size, (steps if max_batches is None else max_batches) * batch_size)
        seeds = {"order": _order_seed(seed, split, epoch), "augmentation": _augmentation_seed(seed, epoch)}
        return split.batches(batch_size, window, drop_remainder, augmentation=augmentation, mean=mean, std=std, seeds=seeds)
    augmentation.check(split.images.shape[1:])
    order = np.random.default_rng(_order_seed(seed, split, epoch)).permutation(len(split))
    epoch_seed = _augmentation_seed(seed, epoch)
    images, labels, ids = split.tensors

    def load(positions):
        image_ids = tf.cast(tf.gather(ids, positions), tf.int32)
        seeds = tf.stack([tf.fill(tf.shape(image_ids), epoch_seed), image_ids], axis=1)
        return augmentation(tf.gather(images, positions), seeds, mean, std), tf.gather(labels, positions)

    end = None if max_batches is None else max_batches * batch_size
    return _mapped_batches(order[skip_batches * batch_size : end], batch_size, load, drop_remainder)


def _order_seed(seed, split, epoch):
    return seed, zlib.crc32(split.name.encode()), epoch


def _augmentation_seed(seed, epoch):
    return np.random.SeedSequence((seed, epoch)).generate_state(1).astype(np.int32)[0]


def bilevel_batches(datasets, batch_size, *, seed, epoch, skip_batches=0, max_batches=None, augmentation=None):
    """One epoch of a bilevel search: a batch of each half a step, both augmented (as the reference does). Arguments as `batches`.

    Returns:
      A `tf.data.Dataset` of `((images, labels), (images, labels))`: the first pair from weights, the second from architecture.
    """
    options = {"mean": datasets.mean, "std": datasets.std, "seed": seed, "epoch": epoch}
    halves = [
        batches(half, batch_size, skip_batches=skip_batches, max_batches=max_batches, augmentation=augmentation, **options)
        for half in (datasets.weights, datasets.architecture)
    ]
    return tf.data.Dataset.zip(tuple(halves))


def evaluation_batches(split, batch_size, *, mean, std):
    """All images of `split` once, in the order of their ids in the split, unaugmented; the last batch may be smaller.

    Args and returns as `batches`; a batch larger than the split is one batch of the whole split. A corrupt image of a streamed split is
    left out.
    """
    if batch_size < 1:
        raise DataError(f"a batch must hold at least 1 image. Received: batch_size={batch_size}")
    if isinstance(split, StreamedSplit):
        return split.evaluation_batches(batch_size, mean=mean, std=std)
    images, labels, _ = split.tensors

    def load(positions):
        return normalise_batch(tf.gather(images, positions), mean, std), tf.gather(labels, positions)

    return _mapped_batches(np.arange(len(split)), batch_size, load, drop_remainder=False)


def named_errors(split):
    """Within, what TensorFlow raises while a streamed split is read becomes the `DataError` that says where."""
    return split.named_errors() if isinstance(split, StreamedSplit) else contextlib.nullcontext()


def spread_images(split, count):
    """Up to `count` images, evenly spread over a split (a source may be sorted by class): uint8 [n, R, R, C]."""
    count = min(len(split), count)
    positions = np.arange(count) * len(split) // count
    return split.pixels(positions) if isinstance(split, StreamedSplit) else split.images[positions]


def _mapped_batches(order, batch_size, load, drop_remainder):
    # `load` captures the split's tensors: captured eager tensors are inputs of the map, not constants copied into its graph.
    dataset = tf.data.Dataset.from_tensor_slices(order.astype(np.int64)).batch(batch_size, drop_remainder=drop_remainder)
    return dataset.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)


def _checked_arrays(name, images, labels, class_names):
    """The arrays with labels as int32; raises `DataError` unless they are square 8-bit images with a valid label each."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or 0 in images.shape[1:]:
        raise DataError(
            f"the images of {name!r} must be square and 8-bit, uint8 [n, R, R, C]; data.resolution makes images of a source square. "
            f"Received: {images.dtype} {list(images.shape)}"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{name!r} must have one integer label an image, [{len(images)}]. Received: {labels.dtype} {list(labels.shape)}")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
        raise DataError(
            f"the labels of {name!r} must be from 0 to {len(class_names) - 1}, one a class name. "
            f"Received: from {labels.min()} to {labels.max()}"
        )
    return images, labels.astype(np.int32)


def _read_digits(data_config):
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    dataset = tf.data.Dataset.from_tensor_slices((images, digits.target))
    return (
        collect(dataset, "digits", data_config.resolution, data_config.central_crop),
        None,
        tuple(str(name) for name in digits.target_names),
    )


def _resized_array(images, resolution):
    """uint8 images [n, R, R, C] at another resolution, a chunk at a time: in float32 they take four times the memory."""
    starts = range(0, len(images), _CHUNK)
    return np.concatenate([resize(images[start : start + _CHUNK], resolution).numpy() for start in starts])
