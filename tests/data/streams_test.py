"""Streamed splits: the batches of the same images in memory, bit for bit, and what becomes of images that cannot be read."""

import dataclasses
import zlib

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data import folders, images, streams
from sivdnas_tf.data.augment import Augmentation, crop_box, crop_box_draws, random_flip
from sivdnas_tf.data.datasets import batches, evaluation_batches, load_datasets, named_errors, spread_images, steps_per_epoch
from sivdnas_tf.data.streamed_datasets import load_streams
from sivdnas_tf.data.streams import CorruptImages, IndexedSplit
from sivdnas_tf.errors import ConfigError, DataError
from sivdnas_tf.training.distribution import make_strategy

CLASSES = {"a": 30, "b": 25, "c": 20}
EVERYTHING = Augmentation(2, True, 3, True, 0.4, 0.4, 0.4, 0.2)
WHOLE = Augmentation(2, True, 3)
SOURCES = ("files", "files in memory", "records", "shards")


def silent(line):
    del line


@pytest.fixture(name="open_source")
def fixture_open_source(make_folder, make_records, encoded_images, tmp_path):
    """A function of a source's name and fields of the configuration to its `StreamedDatasets`, and to its configuration."""
    made = {}

    def open_source(source, say=silent, seed=0, **fields):
        in_folder = source.startswith("files")
        if in_folder not in made:
            if in_folder:
                made[True] = f"folder:{make_folder(tmp_path / 'folder', CLASSES)}"
            else:
                made[False] = make_records(tmp_path / "tfds", {"train": encoded_images(75)})
        data_dir = "" if in_folder else str(tmp_path / "tfds")
        fields = {"cache_gb": 1.0 if source in ("files in memory", "records") else 0.0, **fields}
        config = DataConfig(**{"name": made[in_folder], "data_dir": data_dir, "resolution": 6, "streaming": True, **fields})
        return load_streams(config, seed, say), config

    return open_source


def options_of(datasets, **options):
    return {"mean": datasets.mean, "std": datasets.std, "seed": 0, "epoch": 0, **options}


def batches_of(split, size, **options):
    return list(batches(split, size, **options).as_numpy_iterator())


def assert_same(received, expected):
    assert len(received) == len(expected)
    for pair, other in zip(received, expected, strict=True):
        for array, expected_array in zip(pair, other, strict=True):
            assert array.dtype == expected_array.dtype
            np.testing.assert_array_equal(array, expected_array)


# The contract of batches.


@pytest.mark.parametrize("source", ["files", "files in memory", "records"])
def test_images_that_stay_encoded_make_the_batches_of_those_in_memory(open_source, source):
    streamed, config = open_source(source)
    memory = load_datasets(DataConfig(name=config.name, data_dir=config.data_dir, resolution=6), seed=0, say=silent)
    assert isinstance(streamed.train, IndexedSplit)
    assert (streamed.name, streamed.image_shape, streamed.class_names) == (memory.name, memory.image_shape, memory.class_names)
    np.testing.assert_array_equal(streamed.mean, memory.mean)
    np.testing.assert_array_equal(streamed.std, memory.std)
    for part in ("train", "holdout", "test"):
        split, expected = getattr(streamed, part), getattr(memory, part)
        assert (split.name, len(split)) == (part, len(expected))
        np.testing.assert_array_equal(split.labels, expected.labels)
        np.testing.assert_array_equal(split.ids, expected.ids)
        statistics = {"mean": memory.mean, "std": memory.std}
        received = list(evaluation_batches(split, 7, **statistics).as_numpy_iterator())
        assert_same(received, list(evaluation_batches(expected, 7, **statistics).as_numpy_iterator()))
        np.testing.assert_array_equal(spread_images(split, 5), spread_images(expected, 5))
    for augmentation in (None, WHOLE):
        options = options_of(memory, seed=3, epoch=2, augmentation=augmentation)
        assert_same(batches_of(streamed.train, 8, **options), batches_of(memory.train, 8, **options))


@pytest.mark.parametrize(
    ("source", "augmentation"), [("files", EVERYTHING), ("files in memory", WHOLE), ("records", EVERYTHING), ("shards", EVERYTHING)]
)
def test_an_epoch_is_a_function_of_seed_and_number_and_continues_where_it_was_left(open_source, source, augmentation):
    datasets, _ = open_source(source)
    options = options_of(datasets, augmentation=augmentation)
    epoch = batches_of(datasets.train, 8, **options)
    steps = steps_per_epoch(datasets.train, 8)
    assert len(epoch) == steps == len(datasets.train) // 8
    assert all(images.shape == (8, 6, 6, 3) and labels.shape == (8,) and np.isfinite(images).all() for images, labels in epoch)
    assert_same(batches_of(datasets.train, 8, **options), epoch)
    assert_same(batches_of(datasets.train, 8, skip_batches=steps, **options), [])
    assert_same(batches_of(datasets.train, 8, skip_batches=1, max_batches=3, **options), epoch[1:3])
    for other in ({"epoch": 1}, {"seed": 1}):
        changed = batches_of(datasets.train, 8, **{**options, **other})
        assert not np.array_equal(np.concatenate([labels for _, labels in changed]), np.concatenate([labels for _, labels in epoch]))


@pytest.mark.parametrize("source", ["records", "shards"])
def test_every_image_belongs_to_one_split_and_comes_once_an_epoch(open_source, source):
    datasets, _ = open_source(source)
    seen = {}
    for part in ("train", "holdout", "test"):
        split = getattr(datasets, part)
        found = list(evaluation_batches(split, 16, mean=datasets.mean, std=datasets.std).unbatch().as_numpy_iterator())
        assert len(found) == len(split)
        for pixels, label in found:
            seen.setdefault((pixels.tobytes(), int(label)), []).append(part)
    assert all(len(parts) == 1 for parts in seen.values())
    assert len(seen) in ((75,) if source == "shards" else (74, 75))  # halves of a search are equal: an odd image belongs to none
    epoch = batches_of(datasets.train, 8, **options_of(datasets, epoch=1, drop_remainder=False))
    train = {pixels for (pixels, _), parts in seen.items() if parts == ["train"]}
    received = [image.tobytes() for images, _ in epoch for image in images]
    assert len(received) == len(train) and set(received) == train


def test_an_epoch_of_records_is_shuffled_among_the_next_ones_and_holds_each_once(open_source, monkeypatch):
    datasets, _ = open_source("shards")
    options = options_of(datasets, epoch=1, drop_remainder=False)

    def epoch():
        return [image.tobytes() for images, _ in batches_of(datasets.train, 8, **options) for image in images]

    whole = epoch()
    mean_bytes = datasets.train._source.bytes_of("train") // 75
    monkeypatch.setattr(streams, "_SHUFFLE_BYTES", 10 * mean_bytes)
    monkeypatch.setattr(streams, "_SHARDS_AT_ONCE", 2)
    part = epoch()
    assert sorted(part) == sorted(whole) and part != whole
    tail = [image.tobytes() for images, _ in batches_of(datasets.train, 8, skip_batches=3, **options) for image in images]
    assert tail == part[24:]


@pytest.mark.parametrize("source", SOURCES)
def test_skipped_images_are_not_decoded(open_source, source, monkeypatch):
    datasets, _ = open_source(source)
    options, decoded = options_of(datasets, augmentation=EVERYTHING), []

    def counted(source, place, *rest):
        decoded.append(place)
        return images.decode_crop(source, place, *rest)

    monkeypatch.setattr(streams, "decode_crop", counted)
    steps = steps_per_epoch(datasets.train, 8)
    batches_of(datasets.train, 8, skip_batches=steps - 1, **options)
    assert len(decoded) == len(set(decoded)) == 8


@pytest.mark.parametrize("flip", [False, True])
def test_a_random_crop_is_cut_from_the_file_s_own_pixels(open_source, flip):
    datasets, config = open_source("files", random_resized_crop=True)
    augmentation = Augmentation(resized_crop=True, flip=flip, brightness=0.4)
    options = options_of(datasets, epoch=4, augmentation=augmentation, drop_remainder=False)
    received = [image for batch, _ in batches_of(datasets.train, 8, **options) for image in batch]
    train, _ = folders.find_files(config, silent)
    order = np.random.default_rng((0, zlib.crc32(b"train"), 4)).permutation(len(datasets.train))
    epoch_seed = np.random.SeedSequence((0, 4)).generate_state(1).astype(np.int32)[0]
    mirrored = 0
    for index, image in zip(datasets.train.ids[order], received, strict=True):
        seed = tf.constant([epoch_seed, index], tf.int32)
        draws = crop_box_draws(seed).numpy()
        path = train.paths[index]
        pixels = images.decode_crop(path, path, lambda height, width, draws=draws: crop_box(draws, height, width), 6)
        rest = dataclasses.replace(augmentation, resized_crop=False)
        np.testing.assert_array_equal(image, rest(pixels[np.newaxis], seed[tf.newaxis], datasets.mean, datasets.std)[0])
        mirrored += np.array_equal(random_flip(pixels[np.newaxis], seed[tf.newaxis])[0], pixels[:, ::-1])
    assert 0 < mirrored < len(received)


def test_a_central_crop_is_what_predict_cuts(open_source):
    datasets, config = open_source("files", central_crop=0.5)
    memory = load_datasets(DataConfig(name=config.name, resolution=6, central_crop=0.5), seed=0, say=silent)
    assert datasets.central_crop == memory.central_crop == 0.5
    np.testing.assert_array_equal(spread_images(datasets.test, 99), memory.test.images)
    whole, _ = open_source("files")
    assert not np.array_equal(spread_images(whole.test, 99), memory.test.images)


def test_two_replicas_share_the_batches(open_source):
    datasets, _ = open_source("files")
    options = options_of(datasets, augmentation=EVERYTHING)
    strategy = make_strategy("mirrored")
    distributed = strategy.experimental_distribute_dataset(batches(datasets.train, 8, **options))
    assert batches(datasets.train, 8, **options).element_spec[0].shape == (8, 6, 6, 3)
    for (expected_images, expected_labels), shared in zip(batches_of(datasets.train, 8, **options), distributed, strict=True):
        images, labels = (tf.concat(strategy.experimental_local_results(part), axis=0) for part in shared)
        np.testing.assert_array_equal(images, expected_images)
        np.testing.assert_array_equal(labels, expected_labels)


def test_files_stay_in_memory_where_they_fit(open_source, tmp_path):
    datasets, _ = open_source("files in memory")
    options = options_of(datasets)
    epoch = batches_of(datasets.train, 8, drop_remainder=False, **options)
    for path in (tmp_path / "folder").rglob("*.png"):
        path.unlink()
    assert_same(batches_of(datasets.train, 8, drop_remainder=False, **options), epoch)


# Statistics.


def test_given_statistics_are_taken_and_others_measured_on_a_seeded_sample(open_source, monkeypatch):
    given = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    datasets, _ = open_source("files", **given)
    monkeypatch.setattr(streams.StreamedSplit, "statistics", None)
    np.testing.assert_array_equal(datasets.mean, np.float32(given["mean"]))
    np.testing.assert_array_equal(datasets.std, np.float32(given["std"]))
    with pytest.raises(ConfigError, match=r"a number for each of the 3 channels of .* Received: data.mean=\(0.5,\), data.std=\(0.5,\)$"):
        open_source("files", mean=(0.5,), std=(0.5,))


@pytest.mark.parametrize("source", ["files", "shards"])
def test_a_sample_is_of_training_images_and_the_same_in_every_process(open_source, source):
    datasets, _ = open_source(source)
    sampled = []
    for seed, global_seed in ((1, 0), (1, 5), (2, 5)):
        tf.random.set_seed(global_seed)  # what a stage sets after one worker has measured, and before another does
        sampled.append(datasets.train.statistics(10, seed)[0])
    np.testing.assert_array_equal(sampled[0], sampled[1])
    assert np.array_equal(sampled[0], sampled[2]) == (source == "shards")  # of files in turn, the first records
    pixels = spread_images(datasets.train, len(datasets.train)) / 255
    np.testing.assert_allclose(datasets.train.statistics(10_000, 0)[0], pixels.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(datasets.train.statistics(10_000, 0)[1], pixels.std(axis=(0, 1, 2)), rtol=1e-5)


# Corrupt images.


def test_corrupt_images_are_counted_once_and_named():
    lines = []
    corrupt = CorruptImages(2, lines.append)
    for place in ("x", "y", "x"):
        corrupt.report(place, DataError(f"{place!r} is bad"))
    assert lines == [
        "data: warning: corrupt image 1 of up to 2 is left out: 'x' is bad",
        "data: warning: corrupt image 2 of up to 2 is left out: 'y' is bad",
    ]
    with pytest.raises(DataError, match=r"^more corrupt images than data.max_corrupt=2 allows \('x', 'y', 'z'\): 'z' is bad$"):
        corrupt.report("z", DataError("'z' is bad"))
    with pytest.raises(DataError, match="'z' is bad"):  # whatever is read next
        corrupt.report("x", DataError("'x' is bad"))


def spoil(tmp_path, datasets, split, count):
    """Truncates the files of the first images of a split; returns their paths."""
    paths = sorted((tmp_path / "folder").rglob("*.png"))
    spoilt = [paths[index] for index in getattr(datasets, split).ids[:count]]
    for path in spoilt:
        path.write_bytes(path.read_bytes()[:60])
    return spoilt


@pytest.mark.parametrize("augmentation", [WHOLE, EVERYTHING], ids=["whole", "resized crop"])
def test_a_corrupt_image_is_one_too_many_by_default(open_source, tmp_path, augmentation):
    datasets, _ = open_source("files")
    options = options_of(datasets, augmentation=augmentation)
    (path,) = spoil(tmp_path, datasets, "train", 1)
    datasets, _ = open_source("files", mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(DataError) as caught, named_errors(datasets.train):
        batches_of(datasets.train, 8, drop_remainder=False, **options)
    assert str(caught.value).startswith(
        f"more corrupt images than data.max_corrupt=0 allows: {str(path)!r} cannot be read as an image. Expe"
    )
    assert "\n" not in str(caught.value)


def test_another_of_its_batch_stands_in_for_a_corrupt_image(open_source, tmp_path):
    datasets, _ = open_source("files")
    options = options_of(datasets)
    before = batches_of(datasets.train, 8, **options)
    spoil(tmp_path, datasets, "train", 4)
    lines = []
    datasets, _ = open_source("files", lines.append, max_corrupt=4)
    for _ in range(2):
        after = batches_of(datasets.train, 8, **options)
        assert len(after) == len(before)
        changed = 0
        for (images_before, labels_before), (images_after, labels_after) in zip(before, after, strict=True):
            good = [np.array_equal(image, other) for image, other in zip(images_before, images_after, strict=True)]
            assert any(good)
            kept = {(image.tobytes(), int(label)) for image, label in zip(images_before[good], labels_before[good], strict=True)}
            assert {(image.tobytes(), int(label)) for image, label in zip(images_after, labels_after, strict=True)} == kept
            changed += 8 - sum(good)
        assert 0 < changed <= 4
    assert len(lines) == changed == len(set(lines))  # once each, not once an epoch


def test_a_corrupt_image_is_left_out_of_an_evaluation(open_source, tmp_path):
    datasets, _ = open_source("files")
    statistics = {"mean": datasets.mean, "std": datasets.std}
    before = list(evaluation_batches(datasets.test, 4, **statistics).unbatch().as_numpy_iterator())
    spoil(tmp_path, datasets, "test", 1)
    datasets, _ = open_source("files", max_corrupt=1)
    assert_same(list(evaluation_batches(datasets.test, 4, **statistics).unbatch().as_numpy_iterator()), before[1:])
    assert len(spread_images(datasets.test, 99)) == len(before) - 1
    datasets, _ = open_source("files")
    with pytest.raises(DataError, match="cannot be read as an image"):
        spread_images(datasets.test, 99)


def test_a_corrupt_image_of_the_sample_is_left_out_of_the_statistics(open_source, tmp_path):
    datasets, _ = open_source("files")
    (path,) = spoil(tmp_path, datasets, "train", 1)
    assert len(open_source("files", max_corrupt=1)[0].mean) == 3
    with pytest.raises(DataError, match=rf"^more corrupt images than data.max_corrupt=0 allows: '{path}'"):
        _ = open_source("files")[0].mean


def test_a_batch_must_have_an_image_that_can_stand_in(open_source):
    datasets, _ = open_source("files", max_corrupt=8)
    message = r"^data.max_corrupt must be less than the images of a batch, 8: another of them stands in for a corrupt one. Received: 8$"
    with pytest.raises(ConfigError, match=message):
        steps_per_epoch(datasets.train, 8)
    assert steps_per_epoch(datasets.train, 9) == len(datasets.train) // 9
    with pytest.raises(ConfigError, match="less than the images of a batch"):
        steps_per_epoch(datasets.train, len(datasets.train) - 1, drop_remainder=False)
