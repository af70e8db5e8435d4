"""Splits whose images stay encoded: each batch reads, decodes and cuts its own, in parallel and in an order that only seeds decide.

Images that can be read in any order (files, and records in memory) make an `IndexedSplit`, whose batches are those of the same images in
memory (`data.datasets`), bit for bit; records that are read a file after the other a `ShardedSplit`.

A corrupt image never raises in the middle of a batch: in training another of its batch stands in for it, so that an epoch keeps its steps,
in an evaluation it is left out. Either way it is counted, and the first that is one too many ends the run (`CorruptImages`).
"""

import contextlib
import dataclasses
import os
import pathlib
import threading

import numpy as np
import tensorflow as tf

from sivdnas_tf.data.augment import crop_box, normalise_batch
from sivdnas_tf.data.folders import too_many_corrupt
from sivdnas_tf.data.images import decode, decode_crop, resize, silence_pillow
from sivdnas_tf.data.splits import channel_statistics
from sivdnas_tf.errors import ConfigError, DataError

_SHARDS_AT_ONCE = 16
_SHUFFLE_BYTES = 2**28  # of encoded records among which the next one is drawn
_AUGMENTED = 8  # images at a time, which a processor's cache holds: whole batches take half as long again
# At the same time. Numbers, not AUTOTUNE, which starts with little, and now and then stays with what keeps one core busy. As many images
# are asked for as make two chunks: a map keeps no more results than it has calls, and the next chunk is decoded while one is augmented.
_CHUNKS_AT_ONCE = os.cpu_count()
_IMAGES_AT_ONCE = max(2 * _AUGMENTED, 2 * os.cpu_count())
_CHUNK = 64  # images that are decoded at a time where no batch is asked for

# Every epoch traces these functions anew: AutoGraph would read their sources again, which someone may have edited in the meantime.
_as_written = tf.autograph.experimental.do_not_convert


class CorruptImages:
    """Counts the distinct images of a source that cannot be read; for any thread.

    Args:
      limit: how many there may be.
      say: function of a line for the user.
    """

    def __init__(self, limit, say):
        self.limit, self.failure = limit, None
        self._say, self._places, self._lock = say, [], threading.Lock()

    def report(self, place, error):
        """Says that the image at `place` is corrupt, by its `DataError`, once; raises it where it is one too many."""
        with self._lock:
            if place not in self._places:
                self._places.append(place)
                if len(self._places) > self.limit:
                    self.failure = self.failure or too_many_corrupt(self._places, self.limit, error)
                else:
                    self._say(f"data: warning: corrupt image {len(self._places)} of up to {self.limit} is left out: {error}")
        if self.failure:
            raise self.failure


class EncodedFiles:
    """Image files, in any order.

    Args:
      paths: of the files.
      keep: whether their bytes stay in memory once they were read.
    """

    def __init__(self, paths, keep):
        self._paths, self._contents = paths, [None] * len(paths) if keep else None

    def find(self, index):
        """What `images.decode` reads the image from, and what messages call it."""
        path = self._paths[index]
        if self._contents is None:
            return path, path
        if self._contents[index] is None:
            with contextlib.suppress(OSError):  # of which the decoder says more
                self._contents[index] = pathlib.Path(path).read_bytes()
        return self._contents[index] or path, path


class EncodedRecords:
    """The contents of records in memory, with what messages call them."""

    def __init__(self, contents, places):
        self._contents, self._places = contents, places

    def find(self, index):
        """As `EncodedFiles.find`."""
        return self._contents[index], self._places[index]


@dataclasses.dataclass(frozen=True)
class Cut:
    """How an encoded image becomes pixels.

    Attributes:
      resolution: pixels a side.
      channels: 3 or 1.
      central_crop: of images that are not cropped at random, see `images.read_image`.
    """

    resolution: int
    channels: int = 3
    central_crop: float = 0.0

    @property
    def shape(self):
        """(R, R, C)."""
        return self.resolution, self.resolution, self.channels


class StreamedSplit:
    """Images of one purpose that stay encoded. A subclass says in which order they come, and how one is found.

    Args:
      name: "train", "holdout" or "test".
      cut: the `Cut`.
      corrupt: the `CorruptImages` of the source.
    """

    def __init__(self, name, cut, corrupt):
        self.name = name
        self._cut, self._corrupt = cut, corrupt

    def batches(self, batch_size, window, drop_remainder, *, augmentation, mean, std, seeds):
        """Batches of training images, as `datasets.batches` describes them.

        Args:
          batch_size, drop_remainder, mean, std: see there.
          window: `(first, end)`, images of the epoch's order that are left out before, and at which it ends.
          augmentation: an `Augmentation`. Its random resized crop is cut from the encoded image.
          seeds: dict of what the "order" of the epoch and its "augmentation" are drawn from.
        """
        augmentation.check(self._cut.shape)
        silence_pillow()
        cropped, seed = augmentation.resized_crop, tf.constant(seeds["augmentation"], tf.int32)
        rest = dataclasses.replace(augmentation, resized_crop=False, crop_padding=0, flip=False) if cropped else augmentation

        @_as_written
        def load(*element):
            key, label = self._opened(*element)
            image_seed = tf.stack([seed, self._image_id(*key)])
            draws = augmentation.draws(image_seed)
            pixels, good = self._crop(key, draws.pop("crop"), augmentation.is_mirrored(draws)) if cropped else self._whole(key)
            return pixels, label, draws, good

        @_as_written
        def augment(pixels, labels, draws, good):
            return rest.apply(tf.ensure_shape(pixels, [None, *self._cut.shape]), draws, mean, std), labels, good

        @_as_written
        def finish(images, labels, good):
            images, labels = _with_stand_ins(images, labels, good)
            size = batch_size if drop_remainder else None  # which a strategy that shares the batch among replicas must know
            return tf.ensure_shape(images, [size, *self._cut.shape]), tf.ensure_shape(labels, [size])

        loaded = self._elements(seeds["order"], *window).map(load, num_parallel_calls=_IMAGES_AT_ONCE, deterministic=True)
        augmented = loaded.batch(_AUGMENTED).map(augment, num_parallel_calls=_CHUNKS_AT_ONCE, deterministic=True)
        return augmented.rebatch(batch_size, drop_remainder=drop_remainder).map(finish).prefetch(tf.data.AUTOTUNE)

    def evaluation_batches(self, batch_size, *, mean, std):
        """All readable images once, in the order of the split, unaugmented, as `datasets.evaluation_batches` describes them."""

        @_as_written
        def finish(pixels, labels):
            return normalise_batch(pixels, mean, std), labels

        pairs = self._readable(self._elements(None, 0, len(self))).batch(batch_size)
        return pairs.map(finish, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(tf.data.AUTOTUNE)

    def pixels(self, positions):
        """The readable images at positions of the split, ascending: uint8 [n, R, R, C]."""
        with self.named_errors():
            found = [pixels for pixels, _ in self._readable(self._at(positions)).batch(_CHUNK).as_numpy_iterator()]
        return np.concatenate([np.empty((0, *self._cut.shape), np.uint8), *found])

    def statistics(self, count, seed):
        """Mean and standard deviation of each channel, [C] float32, over up to `count` images, unaugmented.

        They are drawn with the seed, or, of records that are read file by file, are the first of the files in turn.
        """
        chunks = self._readable(self._sample(count, seed)).batch(_CHUNK).as_numpy_iterator()
        with self.named_errors():
            return channel_statistics(pixels for pixels, _ in chunks)

    @contextlib.contextmanager
    def named_errors(self):
        """Turns what TensorFlow raises while batches of this split are read into the `DataError` that says where."""
        try:
            yield
        except tf.errors.OpError as error:
            failure = self._corrupt.failure or self._failure()
            if failure is None:
                raise
            raise failure from error

    def check_stand_ins(self, batch_size, drop_remainder):
        """Raises `ConfigError` where a batch might have no good image to stand in for its corrupt ones."""
        smallest = batch_size if drop_remainder else len(self) % batch_size or batch_size
        if self._corrupt.limit >= smallest:
            raise ConfigError(
                f"data.max_corrupt must be less than the images of a batch, {smallest}: another of them stands in for a corrupt one. "
                f"Received: {self._corrupt.limit}"
            )

    def _opened(self, key, label):
        """`(key, label)` of an element: a tuple that `_find` and `_image_id` take, and an int32 scalar."""
        return key, label

    def _readable(self, elements):
        """`(pixels, label)` of the elements that are not corrupt."""
        silence_pillow()

        @_as_written
        def load(*element):
            key, label = self._opened(*element)
            pixels, good = self._whole(key)
            return (pixels, label), good

        @_as_written
        def is_good(pair, good):
            del pair
            return good

        @_as_written
        def pair_of(pair, good):
            del good
            return pair

        return elements.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).filter(is_good).map(pair_of)

    def _whole(self, key):
        """An image cut and resized as every source's are, and whether it can be read."""
        cut = self._cut

        def attempt(*key):
            return self._attempt(lambda source, place: decode(source, place, cut.channels, cut.central_crop), key)

        # Stateless: run in parallel under deterministic operations too. What it counts is counted once an image.
        pixels, good = tf.numpy_function(attempt, key, (tf.uint8, tf.bool), stateful=False)
        resized = resize(tf.ensure_shape(pixels, [None, None, cut.channels]), cut.resolution)
        return tf.ensure_shape(resized, cut.shape), tf.ensure_shape(good, [])

    def _crop(self, key, draws, is_mirrored):
        """The part of an image that `crop_box` takes by its draws, resized, mirrored or not, and whether it can be read."""
        cut = self._cut

        def attempt(draws, is_mirrored, *key):
            def choose(height, width):
                return crop_box(draws, height, width)

            return self._attempt(lambda source, place: decode_crop(source, place, choose, cut.resolution, cut.channels, is_mirrored), key)

        pixels, good = tf.numpy_function(attempt, [draws, is_mirrored, *key], (tf.uint8, tf.bool), stateful=False)
        return tf.ensure_shape(pixels, cut.shape), tf.ensure_shape(good, [])

    def _attempt(self, function, key):
        source, place, problem = self._find(*key)
        try:
            if problem:
                raise problem
            return function(source, place), np.True_
        except DataError as error:
            self._corrupt.report(place, error)
            return np.zeros(self._cut.shape, np.uint8), np.False_


class IndexedSplit(StreamedSplit):
    """Images that can be read in any order.

    Args:
      name, cut, corrupt: as of `StreamedSplit`.
      images: `EncodedFiles` or `EncodedRecords`.
      labels: int32 [n].
      ids: int64 [n], where in `images` each is.
    """

    def __init__(self, name, cut, corrupt, images, labels, ids):
        super().__init__(name, cut, corrupt)
        self._images, self.labels, self.ids = images, labels, ids

    def __len__(self):
        return len(self.labels)

    def _elements(self, order_seed, first, end):
        order = np.arange(len(self)) if order_seed is None else np.random.default_rng(order_seed).permutation(len(self))
        return self._at(order[first:end])

    def _at(self, positions):
        return tf.data.Dataset.from_tensor_slices(((self.ids[positions],), self.labels[positions]))

    def _sample(self, count, seed):
        chosen = np.random.default_rng(seed).permutation(len(self))[:count]
        return self._at(np.sort(chosen))

    def _image_id(self, index):
        return tf.cast(index, tf.int32)

    def _find(self, index):
        return *self._images.find(int(index)), None

    def _failure(self):
        return None


class ShardedSplit(StreamedSplit):
    """Records that are read a file after the other: 16 files in turn, in an order drawn for each epoch, and shuffled among their next ones.

    An epoch that is continued reads, and does not decode, what is skipped.

    Args:
      name, cut, corrupt: as of `StreamedSplit`.
      source: the `PreparedDataset`.
      split: its split that holds the records.
      part: the `records.Piece`s of its files.
    """

    def __init__(self, name, cut, corrupt, source, split, part):
        super().__init__(name, cut, corrupt)
        self._source, self._split, self._part = source, split, part

    def __len__(self):
        return sum(piece.count for piece in self._part)

    @property
    def labels(self):
        """Known when all records have been read, and not before: a `ConfigError`."""
        raise ConfigError(
            f"data.class_weights=balanced needs the labels of all images, which are not known before they are read, and the records of "
            f"{self._source.name!r} are more than data.cache_gb. Expected data.class_weights=none. Received: balanced"
        )

    def _elements(self, order_seed, first, end):
        if order_seed is None:
            records = self._source.records(self._split, self._part, _SHARDS_AT_ONCE)
        else:
            seed = int(np.random.SeedSequence(order_seed).generate_state(1)[0] >> 1)
            mean_bytes = max(1, self._source.bytes_of(self._split) // max(1, self._source.splits[self._split].num_examples))
            buffer = min(len(self), max(1, _SHUFFLE_BYTES // mean_bytes))
            records = self._source.records(self._split, self._part, _SHARDS_AT_ONCE, seed)
            records = records.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)
        return records.skip(first).take(end - first)

    def _opened(self, position, record):
        # Parsed where it is decoded: a map of its own would take as long as the parsing.
        content, label, position = self._source.parsed(self._split, position, record)
        return (content, label, position), label

    def _at(self, positions):

        @_as_written
        def is_chosen(number, element):
            del element
            return tf.reduce_any(number == positions)

        @_as_written
        def element_of(number, element):
            del number
            return element

        return self._elements(None, 0, len(self)).enumerate().filter(is_chosen).map(element_of).take(len(positions))

    def _sample(self, count, seed):
        del seed  # the first records of every file in turn: TFDS shuffles as it writes, and `shuffle` depends on the global seed too
        return self._elements(None, 0, count)

    def _image_id(self, content, label, position):
        del content, label
        return tf.cast(position, tf.int32)

    def _find(self, content, label, position):
        place, classes = self._source.place(self._split, position), len(self._source.class_names)
        problem = self._source.problem(self._split, position)
        if not problem and not 0 <= label < classes:
            problem = DataError(f"{place!r} must have a label from 0 to {classes - 1}. Received: {label}")
        return content, place, problem

    def _failure(self):
        return self._source.failure


def _with_stand_ins(images, labels, good):
    """Images and labels of a batch, the corrupt ones' replaced by those of the batch's good ones in turn."""

    def replaced():
        left = tf.where(good)[:, 0]
        places = tf.range(tf.size(good, tf.int64), dtype=tf.int64)
        chosen = tf.where(good, places, tf.gather(left, places % tf.size(left, tf.int64)))
        return tf.gather(images, chosen), tf.gather(labels, chosen)

    return tf.cond(tf.reduce_all(good), lambda: (images, labels), replaced)
