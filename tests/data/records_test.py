"""TFDS records: what is said of corrupt and damaged ones, in memory and streamed, and which splits a dataset has."""

import dataclasses
import os
import re

import numpy as np
import pytest

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data import folders, records
from sivdnas_tf.data.datasets import batches, evaluation_batches, load_datasets, named_errors, spread_images
from sivdnas_tf.data.record_files import scan
from sivdnas_tf.data.records import PreparedDataset
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


def framed(content):
    """Offsets of the records of a TFRecord file, and its end."""
    offsets = [0]
    while offsets[-1] < len(content):
        offsets.append(offsets[-1] + 16 + int.from_bytes(content[offsets[-1] : offsets[-1] + 8], "little"))
    return offsets


def damage(tmp_path, *indices, name="encoded-train.tfrecord-00001-of-00003", part="content"):
    """Damages a part of records of a file, or cuts the file off within or before the first; returns their places, and its records."""
    (path,) = tmp_path.rglob(name)
    content = path.read_bytes()
    offsets = framed(content)
    for index in indices:
        begin, end = offsets[index : index + 2]
        if part == "end":
            content = content[:begin]
        elif part == "inside":
            content = content[: end - 20]
        else:
            place = {"content": (begin + end) // 2, "checksum": end - 2, "length": begin + 1}[part]
            content = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    path.write_bytes(content)
    return [f"record {index} of {name}" for index in indices], len(offsets) - 1


def read_images(config, way, say=silent):
    """All images that can be read, [n, R, R, C] of each split, in memory, as records in memory, or file by file."""
    if way == "memory":
        datasets = load_datasets(dataclasses.replace(config, streaming=False), 0, say)
        return {part: getattr(datasets, part).images for part in PARTS}
    datasets = load(config, way == "records", say)
    return {part: spread_images(getattr(datasets, part), 999) for part in PARTS}


def pooled(images_of_parts):
    return sorted(image.tobytes() for images in images_of_parts.values() for image in images)


WAYS = ("memory", "records", "files")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("part", ["content", "checksum"])
def test_damaged_records_are_skipped_and_counted(prepare, encoded_images, tmp_path, way, part):
    config = prepare({"train": encoded_images(60), "test": encoded_images(7)})
    before = pooled(read_images(config, way))
    places, _ = damage(tmp_path, 2, 3, 7, part=part)
    for limit in (0, 2):
        message = rf"^more corrupt images than data.max_corrupt={limit} allows.*: '?(record \d+ of \S*-00001-of-00003)'? "
        with pytest.raises(DataError, match=message) as caught:
            read_images(dataclasses.replace(config, max_corrupt=limit), way)
        assert "its checksum is not that of its content" in str(caught.value)
        assert re.match(message, str(caught.value))[1] in places
    lines = []
    after = pooled(read_images(dataclasses.replace(config, max_corrupt=3), way, lines.append))
    told = [place for line in lines for place in places if f"{place!r}" in line]
    assert sorted(told) == sorted(places) and len(lines) == (1 if way == "memory" else 3)
    assert set(after) < set(before)
    # Halves of a search are equal: where images are split by class, an odd one of them belongs to none.
    assert len(after) == 64 if way == "files" else 61 <= len(after) <= 64


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("length", "the length of record 4 is damaged, and what follows lost"),
        ("inside", "the file ends within record 4"),
        ("end", "the file ends after 4 records"),
    ],
)
def test_what_follows_a_damaged_length_is_lost_and_counted(prepare, encoded_images, tmp_path, way, part, reason):
    config = prepare({"train": encoded_images(60), "test": encoded_images(7)})
    _, count = damage(tmp_path, 4, part=part)
    lost = count - 4
    assert lost > 10
    with pytest.raises(
        DataError, match=rf"data.max_corrupt={lost - 1} allows .*Expected {count} undamaged records in the file. "
    ) as caught:
        read_images(dataclasses.replace(config, max_corrupt=lost - 1), way)
    assert str(caught.value).endswith(f"Received: {reason}")
    after = read_images(dataclasses.replace(config, max_corrupt=lost), way)
    assert sum(map(len, after.values())) == 67 - lost or (way != "files" and 64 - lost <= sum(map(len, after.values())) < 67 - lost)


def test_the_splits_are_those_of_the_records_that_can_be_read(prepare, encoded_images, tmp_path):
    """In memory and as records in memory they are split alike; files keep every record in the split of its place."""
    config = dataclasses.replace(prepare({"train": encoded_images(60)}), max_corrupt=3)
    whole = read_images(config, "files")
    damage(tmp_path, 0, 5, 9)
    memory, records, files = (read_images(config, way) for way in WAYS)
    for part in PARTS:
        np.testing.assert_array_equal(memory[part], records[part])
        kept = {image.tobytes() for image in files[part]}
        assert kept <= {image.tobytes() for image in whole[part]}
    assert sum(len(whole[part]) - len(files[part]) for part in PARTS) == 3


def test_batches_with_damaged_records_are_the_same_again_and_continued(prepare, encoded_images, tmp_path):
    config = dataclasses.replace(prepare({"train": encoded_images(60), "test": encoded_images(7)}), max_corrupt=3)
    options = {"mean": GIVEN["mean"], "std": GIVEN["std"], "seed": 0, "epoch": 1}
    whole = list(batches(load(config, fits=False).train, 8, **options).as_numpy_iterator())
    places, _ = damage(tmp_path, 8, 9, 15)
    lines = []
    train = load(config, False, lines.append).train
    epoch = list(batches(train, 8, **options).as_numpy_iterator())
    assert len(epoch) == len(whole)
    kept = {image.tobytes() for images, _ in whole for image in images}
    assert all(image.tobytes() in kept for images, _ in epoch for image in images)  # others of the batch stand in
    changed = sum(
        not np.array_equal(image, other)
        for pair in zip(epoch, whole, strict=True)
        for image, other in zip(*[images for images, _ in pair], strict=True)
    )
    assert 0 < changed == len(lines) <= 3 and all(any(place in line for place in places) for line in lines)
    for fresh in (train, load(config, fits=False).train):  # as the damage is known, and not yet
        again = list(batches(fresh, 8, skip_batches=2, **options).as_numpy_iterator())
        for received, expected in zip(again, epoch[2:], strict=True):
            np.testing.assert_array_equal(received[0], expected[0])
            np.testing.assert_array_equal(received[1], expected[1])


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_gone_is_named(prepare, encoded_images, tmp_path, way):
    config = dataclasses.replace(prepare({"train": encoded_images(60), "test": encoded_images(7)}), max_corrupt=60)
    (path,) = tmp_path.rglob("encoded-train.tfrecord-00001*")
    path.unlink()
    with pytest.raises(DataError, match=r"^split 'train' of dataset 'encoded' cannot be read. Received: .*encoded-train.tfrecord-00001"):
        read_images(config, way)


def test_an_undamaged_file_is_not_looked_at_closely(prepare, encoded_images, tmp_path, monkeypatch):
    config = dataclasses.replace(prepare({"train": encoded_images(60), "test": encoded_images(7)}), max_corrupt=1)
    scanned = []

    def counted(path):
        scanned.append(os.path.basename(path))
        return scan(path)

    monkeypatch.setattr(records, "scan", counted)
    read_images(config, "files")
    assert not scanned
    damage(tmp_path, 1)
    read_images(config, "files")
    assert scanned == ["encoded-train.tfrecord-00001-of-00003"]


def test_records_of_another_format_are_refused(prepare, encoded_images, monkeypatch):
    source = PreparedDataset(prepare({"train": encoded_images(30)}))
    import tensorflow_datasets as tfds

    monkeypatch.setattr(type(source._builder.info), "file_format", tfds.core.FileFormat.RIEGELI)
    with pytest.raises(DataError, match=r"^the records of 'encoded' must be in TFRecord files. Received: riegeli$"):
        source.encoded("train")


def test_the_place_of_a_record(prepare, encoded_images):
    source = PreparedDataset(prepare({"train": encoded_images(60)}))
    first, second, _ = source.splits["train"].shard_lengths
    for position, file, index in (
        (0, 0, 0),
        (first - 1, 0, first - 1),
        (first, 1, 0),
        (first + second, 2, 0),
        (59, 2, 59 - first - second),
    ):
        assert source.place("train", position) == f"record {index} of encoded-train.tfrecord-0000{file}-of-00003"


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
    ids = [[source.place("train", position) for position, _ in source.records("train", part).as_numpy_iterator()] for part in parts]
    assert [len(part) for part in ids] == [6, 1, 53] and len({each for part in ids for each in part}) == 60
    firsts = [(file, index) for file, count in enumerate((2, 1, 3)) for index in range(count)]
    assert ids[0] == [f"record {index} of encoded-train.tfrecord-{file:05}-of-00003" for file, index in firsts]
    assert ids[1] == ["record 1 of encoded-train.tfrecord-00001-of-00003"] and lengths.sum() == 60


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
