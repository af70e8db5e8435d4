"""TFDS datasets that were prepared before: their builder, their features, and their records, decoded or as they are stored."""

import contextlib
import dataclasses
import functools
import os
import re
import threading

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.collect import collect
from sivdnas_tf.data.folders import listed, too_many_corrupt
from sivdnas_tf.data.record_files import scan
from sivdnas_tf.errors import DataError, nearest

_TFDS_NAME = re.compile(r"[a-zA-Z]\w*(/[\w+.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?")  # NAME, NAME/CONFIG, NAME:VERSION, NAME/CONFIG:VERSION
_FIRST = 256  # records of a split that say whether it has labels


def read_tfds(data_config, say=print):
    """Reads the images of a prepared dataset, each once, into memory.

    Args:
      data_config: a `config.DataConfig`; up to `max_corrupt` records that are damaged, or whose image cannot be decoded, are skipped.
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


@dataclasses.dataclass(frozen=True)
class Piece:
    """Consecutive records of one file.

    Attributes:
      path: of the file.
      first, count: the first of them, and how many they are.
      start: number of the records of the split in the files before this one.
    """

    path: str
    first: int
    count: int
    start: int


class PreparedDataset:
    """A TFDS dataset of labelled images that lies on this disk.

    Args:
      data_config: a `config.DataConfig`, of which name and data_dir are read.

    Attributes:
      name: of the dataset.
      splits: TFDS' `SplitInfo` by name, "train" among them.
      class_names: one a label, or None where the labels have none.
      channels: of the images, None where it is open.
      failure: the `DataError` of a file that cannot be read, once `encoded` has come upon it.

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
        self.failure = None
        self._scanned, self._lock = {}, threading.Lock()

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

    def pieces(self, split):
        """The `Piece` of every file of a split, in their order: a tuple."""
        return self._files(split)[0]

    @functools.cache  # noqa: B019 - as long as the dataset, of a few splits
    def _files(self, split):
        """`pieces`, and their `start`s, int64 [n]."""
        info = self._builder.info
        if info.file_format.value != "tfrecord":
            raise DataError(f"the records of {self.name!r} must be in TFRecord files. Received: {info.file_format.value}")
        files = self.splits[split].file_instructions
        ends = np.cumsum([file.examples_in_shard for file in files], dtype=np.int64)
        pieces = [
            Piece(os.fspath(file.filename), 0, file.examples_in_shard, int(end) - file.examples_in_shard)
            for file, end in zip(files, ends, strict=True)
        ]
        return tuple(pieces), np.array([piece.start for piece in pieces], np.int64)

    def encoded(self, split):
        """A `tf.data.Dataset` of `(content, label, position)`, see `parsed`, of all records of a split in the order of the files."""
        records = self.records(split)
        return records.map(functools.partial(self.parsed, split), num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)

    def records(self, split, pieces=None, shards_at_once=1, seed=None):
        """A `tf.data.Dataset` of `(position, record)`: the number in the split, int64, and the bytes, none where TensorFlow reads none.

        Args:
          split: a name.
          pieces: of its files; None for all records.
          shards_at_once: number of files that are read in turn, a record at a time.
          seed: of the order of the files; None keeps it.
        """
        pieces = self.pieces(split) if pieces is None else pieces
        if seed is not None:
            pieces = [pieces[index] for index in np.random.default_rng(seed).permutation(len(pieces))]
        # Apart: TensorFlow 2.21 ends with a segmentation fault where the function of an interleave unstacks a tensor.
        numbers = [np.array([getattr(piece, name) for piece in pieces], np.int64) for name in ("first", "count", "start")]

        def records_of(path, first, count, start):
            # A file that cannot be opened would be tried for ever: what `ignore_errors` passes over is one record, or the rest of a file.
            opens = tf.ensure_shape(tf.numpy_function(_can_be_opened, [path], tf.bool, stateful=False), [])
            readable = tf.where(opens, count, 0)
            read = tf.data.TFRecordDataset(path).skip(tf.where(opens, first, 0)).take(readable).ignore_errors()
            unread = tf.data.Dataset.from_tensors("").repeat(count)
            positions = tf.data.Dataset.range(start + first, start + first + count)
            return tf.data.Dataset.zip(positions, read.concatenate(unread))

        files = tf.data.Dataset.from_tensor_slices(([piece.path for piece in pieces], *numbers))
        return files.interleave(records_of, cycle_length=shards_at_once, block_length=1)

    def parsed(self, split, position, record):
        """`(content, label, position)` of an element of `records`: the image as it is stored, int32, int64.

        Of a record with a `problem` the content is empty, and the label -1. A file costs a closer look from its first damage on.
        """
        recovered = tf.cond(
            tf.equal(record, ""), lambda: tf.numpy_function(self._recovered, [split, position], tf.string, stateful=False), lambda: record
        )
        features = {self._image: tf.io.FixedLenFeature([], tf.string, ""), self._label: tf.io.FixedLenFeature([], tf.int64, -1)}
        example = tf.io.parse_single_example(tf.ensure_shape(recovered, []), features)
        return example[self._image], tf.cast(example[self._label], tf.int32), position

    def place(self, split, position):
        """`record INDEX of FILE`, of a record's number in a split."""
        piece, index = self._found(split, position)
        return f"record {index} of {os.path.basename(piece.path)}"

    def problem(self, split, position):
        """The `DataError` of a record that `encoded` could not read, by its number in the split, or None."""
        if not self._scanned:
            return None
        piece, index = self._found(split, position)
        file = self._scanned.get(piece.path)
        reason = file and file.problem(index)
        if not reason:
            return None
        return DataError(
            f"{self.place(split, position)!r} cannot be read. Expected {piece.count} undamaged records in the file. Received: {reason}"
        )

    def _found(self, split, position):
        """The `Piece` of the file that holds a record, and its number there."""
        pieces, starts = self._files(split)
        piece = pieces[np.searchsorted(starts, position, side="right") - 1]
        return piece, int(position) - piece.start

    def _recovered(self, split, position):
        """The bytes of a record of a damaged file; none where it cannot be read."""
        split = split.decode()
        piece, index = self._found(split, position)
        with self._lock:
            try:
                if piece.path not in self._scanned:
                    self._scanned[piece.path] = scan(piece.path)
                file = self._scanned[piece.path]
                return b"" if file.problem(index) else file.content(index)
            except OSError as error:
                self.failure = self._unreadable(split, f"{piece.path}: {error.strerror}")
                raise self.failure from None

    def decode(self, content):
        """The image that TFDS makes of a record's content."""
        return self._builder.info.features[self._image].decode_example(content)

    def labels_are_known(self, split):
        """Whether one of the first records of a split has a label other than -1."""
        with self.reading(split):
            return any(label != -1 for _, label, _ in self.encoded(split).take(_FIRST).as_numpy_iterator())

    def shard_parts(self, split, counts):
        """`Piece`s of consecutive parts of every file of a split.

        Args:
          split: a name.
          counts: for each part but the last the number of its records in each file; the last part has what is left.
        """
        left, parts = self.pieces(split), []
        for count in (*counts, [piece.count for piece in left]):
            taken = [min(int(wanted), piece.count) for wanted, piece in zip(count, left, strict=True)]
            parts.append([dataclasses.replace(piece, count=size) for piece, size in zip(left, taken, strict=True) if size])
            left = [
                dataclasses.replace(piece, first=piece.first + size, count=piece.count - size)
                for piece, size in zip(left, taken, strict=True)
            ]
        return parts

    @contextlib.contextmanager
    def reading(self, split):
        """Turns what TensorFlow raises for files that are gone or damaged into a `DataError`."""
        try:
            yield
        except tf.errors.OpError as error:
            if self.failure:
                raise self.failure from error
            if not isinstance(error, (tf.errors.NotFoundError, tf.errors.DataLossError)):
                raise
            raise self._unreadable(split, " ".join(error.message.split())[:300]) from error

    def _unreadable(self, split, reason):
        return DataError(f"split {split!r} of dataset {self.name!r} cannot be read. Received: {reason}")


def _can_be_opened(path):
    try:
        with open(path, "rb"):
            return np.True_
    except OSError:  # which is said when its records are asked for
        return np.False_


# What reading a split raises where a record is damaged or missing, or its image cannot be decoded.
_BAD_RECORDS = (tf.errors.InvalidArgumentError, tf.errors.DataLossError, tf.errors.FailedPreconditionError)


def _read_split(source, split, data_config, corrupt):
    """uint8 images and int32 labels of a split; what cannot be read or decoded is added to `corrupt`."""
    arguments = source.name, data_config.resolution, data_config.central_crop
    with source.reading(split):
        try:
            return collect(source.decoded(split), *arguments)
        except _BAD_RECORDS as error:
            bad = _bad_records(source, split)
            if not bad:
                raise DataError(
                    f"split {split!r} of dataset {source.name!r} cannot be read. Received: {' '.join(error.message.split())[:300]}"
                ) from error
        for position, message in bad.items():
            corrupt.append(source.place(split, position))
            if len(corrupt) > data_config.max_corrupt:
                raise too_many_corrupt(corrupt, data_config.max_corrupt, message)
        good = source.encoded(split).filter(lambda content, label, position: ~tf.reduce_any(position == tf.constant([*bad], tf.int64)))
        return collect(good.map(lambda content, label, position: (source.decode(content), label)), *arguments)


def _bad_records(source, split):
    """What is to be said of each record that cannot be read or decoded, by its number in the split."""
    found = {}
    for content, _, position in source.encoded(split):
        position = int(position)
        problem = source.problem(split, position)
        if problem:
            found[position] = str(problem)
            continue
        try:
            source.decode(content)
        except tf.errors.InvalidArgumentError as error:
            reason = " ".join(error.message.split())[:200]
            found[position] = f"{source.place(split, position)} of split {split!r} cannot be decoded. Received: {reason}"
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
