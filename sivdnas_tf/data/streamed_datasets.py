"""`StreamedDatasets`: image folders and TFDS datasets whose images stay encoded (`data.streaming`), for more of them than memory holds.

Files, and records of up to `data.cache_gb`, are split as images in memory are: the same images in the same splits. Of more records, holdout
(and test, where the dataset has none) are the first of every file.
"""

import dataclasses
import functools
import os

import numpy as np

from sivdnas_tf.data import folders
from sivdnas_tf.data.records import PreparedDataset
from sivdnas_tf.data.splits import allocate, check_sizes, given_statistics, split_indices
from sivdnas_tf.data.streams import CorruptImages, Cut, EncodedFiles, EncodedRecords, IndexedSplit, ShardedSplit, StreamedSplit
from sivdnas_tf.errors import ConfigError, DataError

_MEASURED_IMAGES = 4096  # that mean and std are measured on
_GIB = 2**30


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDatasets:
    """The splits of a source and what describes it, as `datasets.Datasets`, without the halves of a search.

    Attributes:
      name: of the source.
      train, holdout, test: one `StreamedSplit` each.
      image_shape: (R, R, C).
      class_names: one a label, in the order of the labels.
      central_crop: see `config.DataConfig`.
      seed: of the images that mean and std are measured on.
      given: `(mean, std)`, or None to measure them, when they are first asked for, on up to 4096 training images.
    """

    name: str
    train: StreamedSplit
    holdout: StreamedSplit
    test: StreamedSplit
    image_shape: tuple
    class_names: tuple
    central_crop: float
    seed: int
    given: tuple | None

    @functools.cached_property
    def _statistics(self):
        return self.given or self.train.statistics(_MEASURED_IMAGES, self.seed)

    @property
    def mean(self):
        """float32 [C] of each channel in units of pixel / 255."""
        return self._statistics[0]

    @property
    def std(self):
        """float32 [C], as `mean`."""
        return self._statistics[1]


def load_streams(data_config, seed, say=print):
    """Lists the images of the source that a configuration names, and splits them; reads records that stay in memory, encoded.

    Args:
      data_config, seed, say: as of `datasets.load_datasets`.

    Returns:
      `StreamedDatasets`.

    Raises:
      DataError, ConfigError: as `datasets.load_datasets`.
    """
    name = data_config.name
    if name == "digits":
        raise ConfigError("data.streaming is for folder:PATH and TFDS datasets. Received: data.name='digits'")
    if data_config.resolution < 1:
        raise ConfigError("data.resolution must be at least 1 for streamed images, which may have any size. Received: data.resolution=0")
    corrupt = CorruptImages(data_config.max_corrupt, say)
    if name.startswith(folders.PREFIX):
        return _from_folder(data_config, seed, say, corrupt)
    source = PreparedDataset(data_config)
    if source.channels not in (None, 1, 3):
        raise DataError(f"the images of {name!r} must have 1 or 3 channels to be streamed. Received: {source.channels} channels")
    test = next((split for split in ("test", "validation") if split in source.splits and source.labels_are_known(split)), None)
    used = [split for split in ("train", test) if split]
    encoded_bytes = sum(map(source.bytes_of, used))
    if encoded_bytes > _cache_bytes(data_config):
        return _from_shards(data_config, seed, source, test, corrupt)
    if not folders.fits_in_memory(encoded_bytes):
        raise DataError(
            f"the records of {name!r} take {encoded_bytes:,} bytes, more than half of the memory that is left. Expected data.cache_gb of "
            f"less than {encoded_bytes / _GIB:.3g}, so that they are read from their files. Received: {data_config.cache_gb}"
        )
    return _from_records(data_config, seed, source, test, corrupt)


def _cache_bytes(data_config):
    return data_config.cache_gb * _GIB


def _from_folder(data_config, seed, say, corrupt):
    train, test = folders.find_files(data_config, say)
    paths = train.paths + test.paths
    encoded_bytes = sum(map(_size, paths))
    # Files give the same splits and batches wherever they are read from.
    images = EncodedFiles(paths, keep=encoded_bytes <= _cache_bytes(data_config) and folders.fits_in_memory(encoded_bytes))
    labels = np.array(train.labels, np.int32), np.array(test.labels, np.int32)
    return _indexed(data_config, seed, Cut(data_config.resolution, 3, data_config.central_crop), corrupt, images, labels, train.class_names)


def _size(path):
    try:
        return os.path.getsize(path)
    except OSError:  # which is said when the image is read
        return 0


def _from_records(data_config, seed, source, test, corrupt):
    contents, places, labels = [], [], []
    for split in ("train", test):
        labels.append([])
        if split is None:
            continue
        with source.reading(split):
            for content, label, position in source.encoded(split).as_numpy_iterator():
                place, problem = source.place(split, position), source.problem(split, position)
                if problem:  # it belongs to no split: its label is not known
                    corrupt.report(place, problem)
                    continue
                contents.append(content)
                places.append(place)
                labels[-1].append(label)
    labels = [np.array(of_split, np.int32) for of_split in labels]
    names = source.class_names
    if names is None:  # an integer without names
        names = [str(label) for label in range(max((of_split.max() for of_split in labels if len(of_split)), default=0) + 1)]
    images = EncodedRecords(contents, places)
    return _indexed(data_config, seed, _cut_of(data_config, source), corrupt, images, labels, names)


def _cut_of(data_config, source):
    return Cut(data_config.resolution, source.channels or 3, data_config.central_crop)


def _indexed(data_config, seed, cut, corrupt, images, labels, class_names):
    """`StreamedDatasets` of images that can be read in any order; `labels` of the training images and of the source's own test images."""
    name, (labels, test_labels) = data_config.name, labels
    every = np.concatenate([labels, test_labels])
    if len(every) and not 0 <= every.min() <= every.max() < len(class_names):
        raise DataError(f"the labels of {name!r} must be from 0 to {len(class_names) - 1}. Received: from {every.min()} to {every.max()}")
    fractions = {"test": data_config.test_fraction, "holdout": data_config.holdout_fraction}
    if len(test_labels):
        del fractions["test"]
    ids = split_indices(labels, len(class_names), fractions, np.random.default_rng(seed))
    ids.setdefault("test", np.arange(len(labels), len(every), dtype=np.int64))
    check_sizes(name, {part: every[chosen] for part, chosen in ids.items()}, class_names)
    ids["train"] = np.concatenate([ids["weights"], ids["architecture"]])  # as `Datasets.train`
    splits = {part: IndexedSplit(part, cut, corrupt, images, every[ids[part]], ids[part]) for part in ("train", "holdout", "test")}
    return _datasets(data_config, seed, cut, class_names, splits)


def _from_shards(data_config, seed, source, test, corrupt):
    name, cut = data_config.name, _cut_of(data_config, source)
    if source.class_names is None:
        raise DataError(
            f"the labels of {name!r} must have names: its records are more than data.cache_gb. Received: integers without names"
        )
    lengths = np.array([piece.count for piece in source.pieces("train")])
    fractions = {} if test else {"test": data_config.test_fraction}
    fractions["holdout"] = data_config.holdout_fraction
    counts, left = {}, lengths
    for part, fraction in fractions.items():
        counts[part] = allocate(left, max(1, round(fraction * left.sum())))
        left = left - counts[part]
    counts["train"] = left
    sizes = {part: int(count.sum()) for part, count in counts.items()}
    if not all(sizes.values()):
        raise DataError(f"too few images of {name!r} for its splits: none may be empty. Received: {sizes}")
    parts = dict(zip(counts, source.shard_parts("train", [*counts.values()][:-1]), strict=True))
    splits = {part: ShardedSplit(part, cut, corrupt, source, "train", parts[part]) for part in parts}
    if test:
        splits["test"] = ShardedSplit("test", cut, corrupt, source, test, source.pieces(test))
    return _datasets(data_config, seed, cut, source.class_names, splits)


def _datasets(data_config, seed, cut, class_names, splits):
    return StreamedDatasets(
        name=data_config.name,
        image_shape=cut.shape,
        class_names=tuple(class_names),
        central_crop=data_config.central_crop,
        seed=seed,
        given=given_statistics(data_config.mean, data_config.std, cut.channels, data_config.name),
        **splits,
    )
