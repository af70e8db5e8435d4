"""TFDS records: what is said of corrupt and damaged ones, in memory and streamed, and which splits a dataset has."""

import dataclasses

import numpy as np
import pytest

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data import folders
from sivdnas_tf.data.datasets import batches, evaluation_batches, load_datasets, named_errors
from sivdnas_tf.data.records import PreparedDataset, place_of
from sivdnas_tf.data.streamed_datasets import load_streams
from sivdnas_tf.data.streams import IndexedSplit, ShardedSplit
from sivdnas_tf.errors import ConfigError, DataError

PARTS = ("train", "holdout", "test")
RECORD = r"record \d+ of encoded-train.tfrecord-0000\d-of-00003"
GIVEN = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def silent(line):
    del line


@pytest.fixture(name="prepare")
def fixture_prepare(make_records, tmp_path):
    """Prepares `{split: [(encoded image, label)]}`; returns the configuration of a stream."""

    def prepare(contents, label=None, **fields):
        name = make_records(tmp_path, contents, label=label)
        return DataConfig(name=name, data_dir=str(tmp_path), resolution=6, streaming=True, **{**GIVEN, **fields})

    return prepare


def load(config, fits, say=silent):
    """Streams of records that stay in memory, or are read file by file."""
    return load_streams(config if fits else dataclasses.replace(config, cache_gb=0.0), 0, say)


def measured(datasets, part):
    """The number of images of a split that an evaluation reads."""
    split = getattr(datasets, part)
    with named_errors(split):
        return sum(len(labels) for _, labels in evaluation_batches(split, 8, mean=datasets.mean, std=datasets.std))


def truncated(examples, indices):
    return [(content[:50], label) if index in indices else (content, label) for index, (content, label) in enumerate(examples)]


# Corrupt images.


@pytest.mark.parametrize("fits", [True, False])
def test_a_corrupt_image_is_named_by_file_and_index(prepare, encoded_images, fits):
    config = prepare({"train": truncated(encoded_images(60), (5, 6)), "test": encoded_images(6)})
    datasets = load(config, fits)
    with pytest.raises(DataError, match=rf"^more corrupt images than data.max_corrupt=0 allows: '{RECORD}' cannot be read as an image. "):
        for part in ("train", "holdout"):
            measured(datasets, part)
    lines = []
    datasets = load(dataclasses.replace(config, max_corrupt=2), fits, lines.append)
    assert measured(datasets, "train") + measured(datasets, "holdout") == len(datasets.train) + len(datasets.holdout) - 2
    assert len(lines) == 2 and all(line.startswith("data: warning: corrupt image") for line in lines)


@pytest.mark.parametrize("bad", [(5,), (5, 6)])
def test_a_corrupt_image_in_memory_too(prepare, encoded_images, bad):
    examples = encoded_images(60)
    config = dataclasses.replace(prepare({"train": truncated(examples, bad)}), streaming=False, max_corrupt=1)
    lines = []
    if len(bad) > 1:
        message = (
            rf"^more corrupt images than data.max_corrupt=1 allows \('{RECORD}', '{RECORD}'\): {RECORD} of split 'train' cannot be decoded."
        )
        with pytest.raises(DataError, match=message):
            load_datasets(config, 0, lines.append)
        return
    datasets = load_datasets(config, 0, lines.append)
    (line,) = lines
    assert line.startswith("data: warning: skipped 1 corrupt image: 'record ")
    assert 58 <= sum(len(getattr(datasets, part)) for part in PARTS) <= 59
    with pytest.raises(DataError, match=rf"data.max_corrupt=0 allows: {RECORD} of split 'train' cannot be decoded. Received: \S"):
        load_datasets(dataclasses.replace(config, max_corrupt=0), 0)


def damage(tmp_path, name="encoded-train.tfrecord-00001-of-00003"):
    """Changes bytes of a file's last record; returns the number of records before it."""
    import tensorflow as tf

    (path,) = tmp_path.rglob(name)
    before = sum(1 for _ in tf.data.TFRecordDataset(str(path))) - 1
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes(8) + content[-32:])
    return before


def test_a_record_with_a_wrong_checksum_is_found(prepare, encoded_images, tmp_path):
    config = prepare({"train": encoded_images(60), "test": encoded_images(6)})
    message = rf"^split 'train' of dataset 'encoded' cannot be read. Received: record {damage(tmp_path)} of \S*encoded-train.tfrecord-00001"
    with pytest.raises(DataError, match=message):
        load(config, fits=True)
    with pytest.raises(DataError, match=message):
        load_datasets(dataclasses.replace(config, streaming=False), 0)
    datasets = load(config, fits=False)
    with pytest.raises(DataError, match=message), named_errors(datasets.train):
        list(batches(datasets.train, 8, mean=datasets.mean, std=datasets.std, seed=0, epoch=0))
    for path in tmp_path.rglob("encoded-train.tfrecord-00001*"):
        path.unlink()
    with pytest.raises(DataError, match=r"^split 'train' of dataset 'encoded' cannot be read. Received: .*encoded-train.tfrecord-00001"):
        measured(datasets, "train")


def test_the_place_of_a_record():
    assert place_of("a__b-train.tfrecord-00001-of-00003__17") == "record 17 of a__b-train.tfrecord-00001-of-00003"


# Labels and splits.


def unlabelled(examples):
    return [(content, -1) for content, _ in examples]


@pytest.mark.parametrize("fits", [True, False])
def test_a_test_split_without_labels_is_not_used(prepare, encoded_images, fits):
    contents = {"train": encoded_images(60), "validation": encoded_images(9), "test": unlabelled(encoded_images(12))}
    datasets = load(prepare(contents), fits)
    assert isinstance(datasets.test, IndexedSplit if fits else ShardedSplit)
    assert (len(datasets.test), measured(datasets, "test")) == (9, 9)
    assert len(datasets.holdout) == 6 and 53 <= len(datasets.train) <= 54
    assert datasets.class_names == ("a", "b", "c")


@pytest.mark.parametrize("fits", [True, False])
def test_without_a_test_split_the_train_split_gives_a_share(prepare, encoded_images, fits):
    datasets = load(prepare({"train": encoded_images(60)}), fits)
    assert (len(datasets.test), len(datasets.holdout)) == (12, 5)
    assert 42 <= len(datasets.train) <= 43


def test_what_is_held_out_of_files_comes_from_every_file(prepare, encoded_images):
    source = PreparedDataset(prepare({"train": encoded_images(60)}))
    lengths = np.array(source.splits["train"].shard_lengths)
    parts = source.shard_parts("train", [np.array([2, 1, 3]), np.array([0, 1, 0])])
    ids = [[record_id.decode() for _, _, record_id in source.encoded(part).as_numpy_iterator()] for part in parts]
    assert [len(part) for part in ids] == [6, 1, 53] and len({each for part in ids for each in part}) == 60
    firsts = [(file, index) for file, count in enumerate((2, 1, 3)) for index in range(count)]
    assert ids[0] == [f"encoded-train.tfrecord-{file:05}-of-00003__{index}" for file, index in firsts]
    assert ids[1] == ["encoded-train.tfrecord-00001-of-00003__1"] and lengths.sum() == 60


def test_a_label_out_of_range_is_that_of_a_corrupt_record(prepare, encoded_images):
    import tensorflow_datasets as tfds

    examples = encoded_images(60)
    examples[3] = examples[3][0], -1
    config = prepare({"train": examples, "test": encoded_images(6)}, label=tfds.features.ClassLabel(names=("a", "b", "c")))
    with pytest.raises(DataError, match=r"^the labels of 'encoded' must be from 0 to 2. Received: from -1 to 2$"):
        load(config, fits=True)
    datasets = load(config, fits=False)
    with pytest.raises(DataError, match=rf"data.max_corrupt=0 allows: '{RECORD}' must have a label from 0 to 2. Received: -1$"):
        for part in ("train", "holdout"):
            measured(datasets, part)


def test_labels_without_names_are_numbers_where_all_are_read(prepare, encoded_images):
    import tensorflow_datasets as tfds

    config = prepare({"train": encoded_images(60)}, label=tfds.features.Scalar(np.int64))
    assert load(config, fits=True).class_names == ("0", "1", "2")
    with pytest.raises(DataError, match=r"^the labels of 'encoded' must have names: its records are more than data.cache_gb. Received: "):
        load(config, fits=False)


def test_labels_that_are_not_read_cannot_be_balanced(prepare, encoded_images):
    datasets = load(prepare({"train": encoded_images(60)}), fits=False)
    with pytest.raises(ConfigError, match=r"^data.class_weights=balanced needs the labels of all images, .* Received: balanced$"):
        _ = datasets.train.labels


# What is streamed at all.


def test_the_configuration_decides_whether_records_are_kept_and_memory_only_whether_they_can_be(prepare, encoded_images, monkeypatch):
    config = prepare({"train": encoded_images(60)})
    size = PreparedDataset(config).bytes_of("train")
    assert sum(len(content) for content, _ in encoded_images(60)) < size < 60 * 2000
    for kept, kind in ((size, IndexedSplit), (size - 1, ShardedSplit)):
        assert isinstance(load_datasets(dataclasses.replace(config, cache_gb=kept / 2**30), 0).train, kind)
    # Another machine must not get other splits: where there is no room the run is refused.
    monkeypatch.setattr(folders, "_available_bytes", lambda: 2 * size - 2)
    with pytest.raises(DataError, match=r"more than half of the memory that is left. Expected data.cache_gb of less than .* Received: 8.0"):
        load_datasets(config, 0)
    assert isinstance(load(config, fits=False).train, ShardedSplit)


def test_what_cannot_be_streamed(prepare, encoded_images):
    with pytest.raises(ConfigError, match=r"^data.streaming is for folder:PATH and TFDS datasets. Received: data.name='digits'$"):
        load_datasets(DataConfig(streaming=True, resolution=8), 0)
    with pytest.raises(ConfigError, match=r"^data.resolution must be at least 1 for streamed images, .* Received: data.resolution=0$"):
        load_datasets(dataclasses.replace(prepare({"train": encoded_images(30)}), resolution=0), 0)
    with pytest.raises(DataError, match=r"^too few images of 'encoded' for its splits: none may be empty. Received: "):
        load(prepare({"train": encoded_images(30)}, test_fraction=0.9, holdout_fraction=0.9), fits=False)
