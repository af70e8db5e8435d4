"""TFDS datasets that were prepared before: their builder, their features, and their records, decoded or as they are stored."""

import contextlib
import functools
import logging
import operator
import os
import re

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.collect import collect
from sivdnas_tf.data.folders import listed, too_many_corrupt
from sivdnas_tf.errors import DataError, nearest

_TFDS_NAME = re.compile(r"[a-zA-Z]\w*(/[\w+.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?")  # NAME, NAME/CONFIG, NAME:VERSION, NAME/CONFIG:VERSION
_FIRST = 256  # records of a split that say whether it has labels
FILE_ERRORS = (tf.errors.NotFoundError, tf.errors.DataLossError)  # what reading raises for files that are gone or damaged


def read_tfds(data_config, say=print):
    """Reads the images of a prepared dataset, each once, into memory.

    Args:
      data_config: a `config.DataConfig`; up to `max_corrupt` images that cannot be decoded are skipped.
      say: function of a line for the user: what was skipped.

    Returns:
      `((images, labels), test, class_names)` as `folders.read_folder`; `test` is the dataset's own "test", or "validation" where the labels
      of "test" are all -1, or None.

    Raises:
      DataError: where the dataset is unknown, not prepared, unreadable, or no image classification.
    """
    source = PreparedDataset(data_config)
    corrupt = []
    train, test = _read_split(source, "train", data_config, corrupt), None
    for split in ("test", "validation"):
        if test is None and split in source.splits:
            images, labels = _read_split(source, split, data_config, corrupt)
            test = None if (labels == -1).all() else (images, labels)
    if corrupt:
        say(f"data: warning: skipped {len(corrupt)} corrupt image{'s'[: len(corrupt) > 1]}: {listed(corrupt)}")
    names = source.class_names
    if names is None:  # an integer without names
        names = [str(label) for label in range(max(labels.max() for _, labels in filter(None, (train, test))) + 1)]
    return train, test, tuple(names)


class PreparedDataset:
    """A TFDS dataset of labelled images that lies on this disk.

    Args:
      data_config: a `config.DataConfig`, of which name and data_dir are read.

    Attributes:
      name: of the dataset.
      splits: TFDS' `SplitInfo` by name, "train" among them.
      class_names: one a label, or None where the labels have none.
      channels: of the images, None where it is open.

    Raises:
      DataError: where it is unknown, not prepared, or no image classification.
    """

    def __init__(self, data_config):
        self.name = data_config.name
        self._builder = _prepared_builder(data_config)
        self._image, self._label = _feature_keys(self._builder.info, self.name)
        self.splits = self._builder.info.splits
        if "train" not in self.splits:
            raise DataError(f"TFDS dataset {self.name!r} must have a split 'train'. Received: {', '.join(self.splits)}")
        self.class_names = getattr(self._builder.info.features[self._label], "names", None)
        self.channels = self._builder.info.features[self._image].shape[-1]

    def bytes_of(self, split):
        """Bytes of the records of a split, as they are stored."""
        info = self.splits[split]
        return info.num_bytes or sum(os.path.getsize(path) for path in info.filepaths)

    def decoded(self, split):
        """A `tf.data.Dataset` of `(image, label)`, in the order of the files."""
        import tensorflow_datasets as tfds

        others = {key: feature for key, feature in self._builder.info.features.items() if key != self._image}
        dataset = self._builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={key: tfds.decode.SkipDecoding() for key, feature in others.items() if isinstance(feature, tfds.features.Image)},
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),  # the order of the files
        )
        return dataset.map(lambda example: (example[self._image], example[self._label]))

    def encoded(self, split, shards_at_once=1, seed=None):
        """A `tf.data.Dataset` of `(content, label, id)`: the image as it is stored, TFDS' name of the record (`place_of`).

        Args:
          split: a name, or a `tfds.core.ReadInstruction`.
          shards_at_once: number of files that are read in turn, a record at a time.
          seed: of the order of the files; None keeps it.
        """
        import tensorflow_datasets as tfds

        wanted = {self._image: True, self._label: True}
        read_config = tfds.ReadConfig(
            add_tfds_id=True,
            interleave_cycle_length=shards_at_once,
            interleave_block_length=1,
            shuffle_seed=seed,
            shuffle_reshuffle_each_iteration=False,
            try_autocache=False,
            enable_ordering_guard=False,
        )
        decoders = tfds.decode.PartialDecoding(wanted, decoders={self._image: tfds.decode.SkipDecoding()})
        with _silent_logger("absl"):  # which warns that files in turn are no order: none is meant
            dataset = self._builder.as_dataset(split=split, shuffle_files=seed is not None, decoders=decoders, read_config=read_config)

        def parts(example):
            return example[self._image], tf.cast(example[self._label], tf.int32), example["tfds_id"]

        return dataset.map(parts, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def decode(self, content):
        """The image that TFDS makes of a record's content."""
        return self._builder.info.features[self._image].decode_example(content)

    def labels_are_known(self, split):
        """Whether one of the first records of a split has a label other than -1."""
        with self.reading(split):
            return any(label != -1 for _, label, _ in self.encoded(split).take(_FIRST).as_numpy_iterator())

    def shard_parts(self, split, counts):
        """`tfds.core.ReadInstruction`s of consecutive parts of every file of a split.

        Args:
          split: a name.
          counts: for each part but the last the number of its records in each file; the last part has what is left.
        """
        import tensorflow_datasets as tfds

        lengths = np.array(self.splits[split].shard_lengths)
        start, parts = np.cumsum(lengths) - lengths, []
        end_of_file = start + lengths
        for count in (*counts, lengths):
            end = np.minimum(start + count, end_of_file)
            pieces = [
                tfds.core.ReadInstruction(split, from_=int(first), to=int(last), unit="abs")
                for first, last in zip(start, end, strict=True)
                if first < last
            ]
            parts.append(functools.reduce(operator.add, pieces))
            start = end
        return parts

    @contextlib.contextmanager
    def reading(self, split):
        """Turns what TensorFlow raises for files that are gone or damaged into a `DataError` with file and record."""
        try:
            yield
        except FILE_ERRORS as error:
            raise self.unreadable(split, error) from error

    def unreadable(self, split, error):
        """The `DataError` of one of `FILE_ERRORS` that came up while a split was read."""
        reason = " ".join(error.message.split())[:300]
        place = self._first_damage(split) if isinstance(error, tf.errors.DataLossError) else ""
        return DataError(f"split {split!r} of dataset {self.name!r} cannot be read. Received: {place}{reason}")

    def _first_damage(self, split):
        """Which record of which file is the first that cannot be read; TensorFlow does not say. Reads the files once more."""
        for path in self.splits[split].filepaths:
            index = 0
            try:
                for _ in tf.data.TFRecordDataset(os.fspath(path)):
                    index += 1
            except tf.errors.DataLossError:
                return f"{place_of(f'{path}__{index}')}: "
        return ""


@contextlib.contextmanager
def _silent_logger(name):
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def place_of(record_id):
    """`record INDEX of FILE`, from TFDS' name of a record, FILE__INDEX."""
    file, _, index = record_id.rpartition("__")
    return f"record {index} of {file}"


def _read_split(source, split, data_config, corrupt):
    """uint8 images and int32 labels of a split; what cannot be decoded is added to `corrupt`."""
    arguments = source.name, data_config.resolution, data_config.central_crop
    with source.reading(split):
        try:
            return collect(source.decoded(split), *arguments)
        except tf.errors.InvalidArgumentError as error:
            bad = _undecodable(source, split)
            if not bad:
                raise DataError(
                    f"split {split!r} of dataset {source.name!r} cannot be read. Received: {' '.join(error.message.split())[:300]}"
                ) from error
        for record_id, reason in bad.items():
            corrupt.append(place_of(record_id))
            if len(corrupt) > data_config.max_corrupt:
                message = f"{place_of(record_id)} of split {split!r} cannot be decoded. Received: {reason}"
                raise too_many_corrupt(corrupt, data_config.max_corrupt, message)
        good = source.encoded(split).filter(lambda content, label, record_id: ~tf.reduce_any(record_id == tf.constant([*bad])))
        return collect(good.map(lambda content, label, record_id: (source.decode(content), label)), *arguments)


def _undecodable(source, split):
    """What TensorFlow says of each record whose image it cannot decode, by TFDS' name of the record."""
    found = {}
    for content, _, record_id in source.encoded(split):
        try:
            source.decode(content)
        except tf.errors.InvalidArgumentError as error:
            found[record_id.numpy().decode()] = " ".join(error.message.split())[:200]
    return found


def _prepared_builder(data_config):
    """The TFDS builder of files on this disk. Names and directories that would send TFDS to the network are refused first."""
    import tensorflow_datasets as tfds  # only where a dataset needs it

    name, data_dir = data_config.name, data_config.data_dir
    received = f"Received: data.name={name!r}, data.data_dir={data_dir!r}"
    if not _TFDS_NAME.fullmatch(name):
        raise DataError(f"data.name must be 'digits' or a TFDS name: NAME, NAME/CONFIG or NAME:VERSION, or folder:PATH. {received}")
    if "://" in (data_dir or os.environ.get("TFDS_DATA_DIR", "")):
        raise DataError(f"data.data_dir (or TFDS_DATA_DIR) must be a directory of this machine. {received}")
    # A version pattern makes TFDS look at the files before its code: whichever version was prepared is found.
    version = {} if ":" in name else {"version": "*.*.*"}
    try:
        builder = tfds.builder(name, data_dir=data_dir or None, **version)
    except tfds.core.DatasetNotFoundError as error:
        known = ["digits", *tfds.list_builders(with_community_datasets=False)]
        raise DataError(
            f"dataset {name!r} is neither prepared nor known to TFDS.{nearest(name, known)} Expected 'digits' or a TFDS dataset. {received}"
        ) from error
    except (ValueError, AssertionError, OSError) as error:  # no such configuration or version, or damaged files
        reason = " ".join(str(error).split()).rpartition('": ')[2].partition(" Here are")[0]  # without TFDS' frame around it
        raise DataError(f"TFDS cannot open dataset {name!r}: {reason[:300]} {received}") from error
    if not builder.data_path.exists():
        command = f"tfds build {name}" + (f" --data_dir={data_dir}" if data_dir else "")
        raise DataError(
            f"dataset {name!r} is not prepared in {builder.data_path}, and nothing is downloaded here: run `{command}`, or where there "
            f"is no network set data.data_dir to a directory in which it was prepared elsewhere. {received}"
        )
    return builder


def _feature_keys(info, name):
    """Names of the image feature and of the integer label feature of a TFDS dataset."""
    import tensorflow_datasets as tfds

    def is_image(feature):
        return type(feature) is tfds.features.Image and feature.np_dtype == np.uint8

    def is_label(feature):
        return feature.shape == () and np.issubdtype(feature.np_dtype, np.integer)

    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    supervised = info.supervised_keys if info.supervised_keys and len(info.supervised_keys) == 2 else (None, None)
    keys = []
    for kind, fits, hint in (("8-bit image", is_image, supervised[0]), ("integer label", is_label, supervised[1])):
        fitting = [key for key, feature in features.items() if fits(feature)]
        chosen = [key for key in (hint, kind.split()[-1]) if key in fitting] or fitting
        if not chosen or (len(chosen) > 1 and chosen is fitting):
            raise DataError(
                f"TFDS dataset {name!r} must have one {kind} feature (or say which by supervised_keys or by the name "
                f"{kind.split()[-1]!r}). Received: {len(fitting)} such among the features {', '.join(sorted(features)) or info.features}"
            )
        keys.append(chosen[0])
    return keys
