"""Splits, batches and sources. Images that spell their own id prove which images a batch holds; no test reaches the network."""

import dataclasses
import os
import socket
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data.augment import Augmentation, normalise
from sivdnas_tf.data.datasets import (
    Split,
    _resized,
    batches,
    bilevel_batches,
    datasets_from_arrays,
    evaluation_batches,
    load_datasets,
    steps_per_epoch,
)
from sivdnas_tf.errors import ConfigError, DataError

SPLITS = ("weights", "architecture", "holdout", "test")
N_CLASSES = 3
CLASS_NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a test reached for the network: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def digits():
    return load_datasets(DataConfig(), seed=0)


def spelled(count, first=0):
    """Images [count, 2, 2, 1] whose rows spell their id in base 256, so that a flip leaves it readable, and labels id modulo 3."""
    ids = np.arange(first, first + count)
    rows = np.stack([ids // 256, ids % 256], axis=1).astype(np.uint8)
    return np.repeat(rows[:, :, np.newaxis, np.newaxis], 2, axis=2), ids % N_CLASSES


def read_ids(images, datasets):
    """The ids that normalised images spell."""
    pixels = np.round((np.asarray(images) * datasets.std + datasets.mean) * 255).astype(int)
    assert (pixels[:, :, 0] == pixels[:, :, 1]).all()
    return pixels[:, 0, 0, 0] * 256 + pixels[:, 1, 0, 0]


def spelled_datasets(count=301, seed=0, **options):
    images, labels = spelled(count)
    return datasets_from_arrays("spelled", images, labels, CLASS_NAMES, seed=seed, **options)


def options_of(datasets, **options):
    return {"mean": datasets.mean, "std": datasets.std, "seed": 0, "epoch": 0, **options}


def gathered(dataset):
    """Images and labels of all batches, concatenated."""
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_digits_are_the_1797_images_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    source = load_digits()
    assert digits.name == "digits"
    assert digits.image_shape == (8, 8, 1)
    assert digits.class_names == tuple("0123456789")
    sizes = {name: len(getattr(digits, name)) for name in SPLITS}
    assert sizes["test"] == round(0.2 * 1797)
    assert sizes["holdout"] == round(0.1 * (1797 - sizes["test"]))
    assert sizes["weights"] == sizes["architecture"] == (1797 - sizes["test"] - sizes["holdout"]) // 2
    for name in SPLITS:
        split = getattr(digits, name)
        assert split.name == name
        assert (split.images.dtype, split.labels.dtype, split.ids.dtype) == (np.uint8, np.int32, np.int64)
        np.testing.assert_array_equal(split.labels, source.target[split.ids])
        np.testing.assert_allclose(split.images[..., 0] / 255 * 16, source.images[split.ids], atol=0.5 * 16 / 255 + 1e-9)
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)


def test_train_is_both_halves(digits):
    train = digits.train
    assert train.name == "train"
    for field in ("images", "labels", "ids"):
        halves = [getattr(digits.weights, field), getattr(digits.architecture, field)]
        np.testing.assert_array_equal(getattr(train, field), np.concatenate(halves))
    assert digits.train is train


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    counts=strategies.lists(strategies.integers(6, 60), min_size=1, max_size=6),
    holdout_fraction=strategies.floats(0.01, 0.4),
    test_fraction=strategies.floats(0.01, 0.4),
    seed=strategies.integers(0, 2**31 - 1),
)
def test_splits_are_disjoint_stratified_and_the_halves_equal(counts, holdout_fraction, test_fraction, seed):
    n = sum(counts)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.random.default_rng(1).integers(0, 256, (n, 1, 1, 1)).astype(np.uint8)
    names = [str(label) for label in range(len(counts))]
    fractions = {"holdout_fraction": holdout_fraction, "test_fraction": test_fraction}
    try:
        datasets = datasets_from_arrays("random", images, labels, names, seed=seed, **fractions)
    except DataError:
        hypothesis.assume(False)  # too few images of a class: test_too_few_images

    ids = np.concatenate([getattr(datasets, name).ids for name in SPLITS])
    assert len(np.unique(ids)) == len(ids)
    assert set(ids) <= set(range(n))
    assert n - len(ids) in (0, 1)  # an odd image belongs to no split
    assert len(datasets.weights) == len(datasets.architecture)
    of_class = {name: np.bincount(getattr(datasets, name).labels, minlength=len(counts)) for name in SPLITS}
    assert np.abs(of_class["weights"] - of_class["architecture"]).max() <= 1
    assert len(datasets.test) == max(1, round(test_fraction * n))
    assert np.abs(of_class["test"] - len(datasets.test) * np.array(counts) / n).max() < 1
    rest = np.array(counts) - of_class["test"]
    assert len(datasets.holdout) == max(1, round(holdout_fraction * rest.sum()))
    assert np.abs(of_class["holdout"] - len(datasets.holdout) * rest / rest.sum()).max() < 1
    for name in SPLITS:
        split = getattr(datasets, name)
        np.testing.assert_array_equal(split.images, images[split.ids])
        np.testing.assert_array_equal(split.labels, labels[split.ids])


def test_same_seed_same_splits_other_seed_other_splits():
    first, again, other = spelled_datasets(seed=1), spelled_datasets(seed=1), spelled_datasets(seed=2)
    for name in SPLITS:
        np.testing.assert_array_equal(getattr(first, name).ids, getattr(again, name).ids)
        assert not np.array_equal(getattr(first, name).ids, getattr(other, name).ids)


def test_own_test_split_is_kept_whole_with_ids_after_all_others():
    images, labels = spelled(300)
    test = spelled(40, first=1000)
    datasets = datasets_from_arrays("spelled", images, labels, CLASS_NAMES, seed=0, test=test)

    np.testing.assert_array_equal(datasets.test.images, test[0])
    np.testing.assert_array_equal(datasets.test.labels, test[1])
    np.testing.assert_array_equal(datasets.test.ids, np.arange(300, 340))
    assert len(datasets.holdout) == 30
    assert len(datasets.weights) == 135


@pytest.mark.parametrize("augmentation", [None, Augmentation(flip=True)])
def test_a_batch_never_holds_an_image_of_another_split(augmentation):
    datasets = spelled_datasets()
    allowed = {name: set(getattr(datasets, name).ids) for name in (*SPLITS, "train")}
    seen = {name: [] for name in allowed}
    for epoch in range(3):
        steps = bilevel_batches(datasets, 8, seed=0, epoch=epoch, augmentation=augmentation).as_numpy_iterator()
        for (weights_images, weights_labels), (architecture_images, architecture_labels) in steps:
            seen["weights"].append((weights_images, weights_labels))
            seen["architecture"].append((architecture_images, architecture_labels))
        options = options_of(datasets, epoch=epoch, augmentation=augmentation, drop_remainder=False)
        seen["train"].extend(batches(datasets.train, 8, **options).as_numpy_iterator())
    for name in ("holdout", "test"):
        seen[name].extend(evaluation_batches(getattr(datasets, name), 8, mean=datasets.mean, std=datasets.std).as_numpy_iterator())

    for name, pairs in seen.items():
        ids = np.concatenate([read_ids(images, datasets) for images, _ in pairs])
        assert set(ids) == allowed[name]  # all of them over three epochs, and no other
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in pairs]), ids % N_CLASSES)
    for name in SPLITS:
        assert not any(allowed[name] & allowed[other] for other in SPLITS if other != name)


def test_an_epoch_holds_each_image_once():
    datasets = spelled_datasets()
    images, _ = gathered(batches(datasets.weights, 7, **options_of(datasets, drop_remainder=False)))
    assert sorted(read_ids(images, datasets)) == sorted(datasets.weights.ids)

    images, _ = gathered(batches(datasets.weights, 7, **options_of(datasets)))
    ids = read_ids(images, datasets)
    assert len(ids) == len(set(ids)) == len(datasets.weights) // 7 * 7


@pytest.mark.parametrize("drop_remainder", [True, False])
@pytest.mark.parametrize("skip", [0, 1, 7, 12])
def test_resumed_epoch_is_the_tail_of_the_whole_one_bit_for_bit(digits, skip, drop_remainder):
    options = options_of(digits, epoch=4, augmentation=Augmentation(2, True, 3), drop_remainder=drop_remainder)
    whole = list(batches(digits.weights, 50, **options).as_numpy_iterator())
    resumed = list(batches(digits.weights, 50, skip_batches=skip, **options).as_numpy_iterator())

    assert len(whole) == steps_per_epoch(digits.weights, 50, drop_remainder) == (12 if drop_remainder else 13)
    assert len(resumed) == len(whole) - skip
    for expected, received in zip(whole[skip:], resumed, strict=True):
        np.testing.assert_array_equal(received[0], expected[0])
        np.testing.assert_array_equal(received[1], expected[1])


def test_resumed_bilevel_epoch_is_the_tail_of_the_whole_one_bit_for_bit(digits):
    options = {"seed": 3, "epoch": 2, "augmentation": Augmentation(2, True, 3)}
    whole = list(bilevel_batches(digits, 100, **options).as_numpy_iterator())
    resumed = list(bilevel_batches(digits, 100, skip_batches=4, **options).as_numpy_iterator())

    assert (len(whole), len(resumed)) == (6, 2)
    tf.nest.map_structure(np.testing.assert_array_equal, resumed, whole[4:])


def test_order_depends_on_seed_epoch_and_split():
    datasets = spelled_datasets()

    def order(split=datasets.weights, **options):
        return read_ids(gathered(batches(split, 10, **options_of(datasets, **options)))[0], datasets)

    twin = dataclasses.replace(datasets.weights, name="architecture")
    np.testing.assert_array_equal(order(), order())
    for other in (order(epoch=1), order(seed=1), order(split=twin)):
        assert not np.array_equal(other, order())
    assert not np.array_equal(order(seed=0, epoch=1), order(seed=1, epoch=0))


def test_augmentation_depends_on_seed_and_epoch(digits):
    single = Split("weights", digits.weights.images[:1], digits.weights.labels[:1], digits.weights.ids[:1])
    augmentation = Augmentation(3, True, 4)
    seen = {
        (seed, epoch): gathered(batches(single, 1, **options_of(digits, seed=seed, epoch=epoch, augmentation=augmentation)))[0].tobytes()
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(seen.values())) > 6  # 9 draws among thousands of results


def test_augmentation_of_an_image_depends_on_neither_batch_size_nor_position_nor_split(digits):
    augmentation = Augmentation(2, True, 3)
    n = 120
    # Channel 1 is constant and names the image, so that it can be found again in another split, under another permutation.
    texture = digits.weights.images[:n]
    names = np.broadcast_to(np.arange(60, 60 + n, dtype=np.uint8).reshape(n, 1, 1, 1), texture.shape)
    split = Split("weights", np.concatenate([texture, names], axis=-1), digits.weights.labels[:n], digits.weights.ids[:n])
    part = Split("other", *(getattr(split, field)[::2] for field in ("images", "labels", "ids")))
    mean, std = np.zeros(2, np.float32), np.ones(2, np.float32)

    def by_name(chosen, batch_size):
        options = {"mean": mean, "std": std, "seed": 5, "epoch": 2, "augmentation": augmentation, "drop_remainder": False}
        images, _ = gathered(batches(chosen, batch_size, **options))
        return {int(np.round(image[..., 1].max() * 255)): image for image in images}

    whole, small, other = by_name(split, 120), by_name(split, 7), by_name(part, 11)
    assert len(whole) == len(small) == n
    assert len(other) == n // 2
    for name, image in whole.items():
        np.testing.assert_array_equal(small[name], image)
    for name, image in other.items():
        np.testing.assert_array_equal(whole[name], image)


def test_batches_are_normalised_images_of_fixed_shape(digits):
    dataset = batches(digits.weights, 32, **options_of(digits))
    assert dataset.element_spec == (tf.TensorSpec((32, 8, 8, 1), tf.float32), tf.TensorSpec((32,), tf.int32))
    images, labels = gathered(dataset)

    pixels = digits.weights.images / 255.0
    expected = {((image - digits.mean) / digits.std).round(3).tobytes() for image in pixels.astype(np.float32)}
    assert {image.round(3).tobytes() for image in images} <= expected
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05
    assert set(labels) == set(range(10))


def test_evaluation_batches_are_all_images_in_order_and_unaugmented(digits):
    dataset = evaluation_batches(digits.test, 100, mean=digits.mean, std=digits.std)
    assert [len(labels) for _, labels in dataset] == [100, 100, 100, 59]
    images, labels = gathered(dataset)
    np.testing.assert_allclose(images, normalise(digits.test.images, digits.mean, digits.std), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(labels, digits.test.labels)

    whole = evaluation_batches(digits.test, 10_000, mean=digits.mean, std=digits.std)
    assert [len(labels) for _, labels in whole] == [359]


def test_batches_under_a_strategy_hold_the_same_images(digits):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    dataset = bilevel_batches(digits, 64, seed=0, epoch=0, augmentation=Augmentation(2, True, 3))
    distributed = strategy.experimental_distribute_dataset(dataset)

    for expected, received in zip(dataset, distributed, strict=True):
        for whole, shared in zip(tf.nest.flatten(expected), (part for half in received for part in half), strict=True):
            parts = strategy.experimental_local_results(shared)
            assert [len(part) for part in parts] == [32, 32]
            np.testing.assert_array_equal(tf.concat(parts, axis=0), whole)


def test_mean_and_std_are_those_of_weights_and_architecture():
    images = np.random.default_rng(0).integers(0, 256, (400, 6, 6, 3)).astype(np.uint8)
    images[..., 1] //= 4
    labels = np.arange(400) % N_CLASSES
    datasets = datasets_from_arrays("random", images, labels, CLASS_NAMES, seed=0)

    pixels = images[np.concatenate([datasets.weights.ids, datasets.architecture.ids])] / 255.0
    np.testing.assert_allclose(datasets.mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(datasets.std, pixels.std(axis=(0, 1, 2)), rtol=1e-6)
    assert datasets.mean.dtype == datasets.std.dtype == np.float32


def test_no_held_out_or_test_image_reaches_mean_and_std():
    images, labels = spelled(301)
    before = datasets_from_arrays("spelled", images, labels, CLASS_NAMES, seed=0)
    changed = images.copy()
    changed[np.concatenate([before.holdout.ids, before.test.ids])] = 255
    after = datasets_from_arrays("spelled", changed, labels, CLASS_NAMES, seed=0)

    np.testing.assert_array_equal(after.weights.ids, before.weights.ids)
    assert not np.array_equal(after.test.images, before.test.images)
    np.testing.assert_array_equal(after.mean, before.mean)
    np.testing.assert_array_equal(after.std, before.std)
    changed[before.weights.ids[0]] = 255  # the comparison would notice
    assert datasets_from_arrays("spelled", changed, labels, CLASS_NAMES, seed=0).mean != before.mean


def test_constant_channel_is_not_divided_by_zero():
    images = np.full((60, 4, 4, 2), 51, np.uint8)
    images[::2, ..., 0] = 102
    datasets = datasets_from_arrays("constant", images, np.arange(60) % N_CLASSES, CLASS_NAMES, seed=0)

    assert datasets.std[1] == np.float32(1 / 255)
    batch, _ = gathered(batches(datasets.train, 8, **options_of(datasets)))
    np.testing.assert_allclose(batch[..., 1], 0, atol=1e-4)


def test_digits_can_be_resized():
    datasets = load_datasets(DataConfig(resolution=16), seed=0)
    small = load_datasets(DataConfig(), seed=0)
    assert datasets.image_shape == (16, 16, 1)
    np.testing.assert_array_equal(datasets.weights.ids, small.weights.ids)
    shrunk = datasets.weights.images.reshape(-1, 8, 2, 8, 2, 1).mean(axis=(2, 4))
    likeness = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(shrunk, small.weights.images, strict=True)]
    assert min(likeness) > 0.9  # the same image, twice as large


def test_resizing_averages_instead_of_skipping_pixels():
    checkerboard = np.indices((32, 32)).sum(axis=0) % 2 * 255
    resized = _resized(tf.constant(checkerboard[..., np.newaxis], tf.uint8), 8).numpy()
    assert resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - 128).max() <= 4  # 0 or 255 without antialiasing


@pytest.mark.parametrize("batch_size", [0, -1, 110])
def test_batch_size_out_of_range(batch_size):
    datasets = spelled_datasets()
    n = len(datasets.weights)
    message = f"^a batch must hold from 1 to {n} images, the size of the split 'weights'. Received: batch_size={batch_size}$"
    with pytest.raises(DataError, match=message):
        steps_per_epoch(datasets.weights, batch_size)
    with pytest.raises(DataError, match=message):
        batches(datasets.weights, batch_size, **options_of(datasets))
    if batch_size < 1:
        with pytest.raises(DataError, match=f"^a batch must hold at least 1 image. Received: batch_size={batch_size}$"):
            evaluation_batches(datasets.test, batch_size, mean=datasets.mean, std=datasets.std)


@pytest.mark.parametrize("skip", [-1, 14])
def test_skip_out_of_range(skip):
    datasets = spelled_datasets()
    with pytest.raises(DataError, match=f"^skip_batches must be from 0 to 13, the batches of an epoch. Received: {skip}$"):
        batches(datasets.weights, 8, **options_of(datasets, skip_batches=skip))


def test_augmentation_larger_than_the_images(digits):
    with pytest.raises(ConfigError, match=r"^cutout_length must be from 0 to 7 for images of 8 pixels. Received: 16$"):
        batches(digits.weights, 8, **options_of(digits, augmentation=Augmentation(cutout_length=16)))


@pytest.mark.parametrize(
    ("count", "options", "received"),
    [
        (0, {}, "test=0, holdout=0, weights=0, architecture=0; without an image in both halves: a, b, c"),
        (6, {}, "test=1, holdout=1, weights=2, architecture=2; without an image in both halves: "),
        (90, {"holdout_fraction": 0.99}, "test=18, holdout=71, weights=0, architecture=0; without an image in both halves: a, b, c"),
        (90, {"test": spelled(0)}, "holdout=9, weights=40, architecture=40, test=0$"),
    ],
)
def test_too_few_images(count, options, received):
    message = "^too few images of 'spelled' for its splits: none may be empty, and each of the 3 classes needs an image .* Received: "
    with pytest.raises(DataError, match=message + received):
        spelled_datasets(count, **options)


def test_class_without_images():
    images, labels = spelled(90)
    with pytest.raises(DataError, match=r"each of the 4 classes .*weights=32, architecture=32; without an image in both halves: d$"):
        datasets_from_arrays("spelled", images, labels, (*CLASS_NAMES, "d"), seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((90, 2, 2, 1), np.float32)}, r"must be square and 8-bit, .* Received: float32 \[90, 2, 2, 1\]$"),
        ({"images": np.zeros((90, 2, 3, 1), np.uint8)}, r"must be square and 8-bit, .* Received: uint8 \[90, 2, 3, 1\]$"),
        ({"images": np.zeros((90, 2, 2), np.uint8)}, r"must be square and 8-bit, .* Received: uint8 \[90, 2, 2\]$"),
        ({"labels": np.zeros(89, int)}, r"must have one integer label an image, \[90\]. Received: int64 \[89\]$"),
        ({"labels": np.zeros(90)}, r"must have one integer label an image, \[90\]. Received: float64 \[90\]$"),
        ({"labels": np.full(90, 3)}, r"must be from 0 to 2, one a class name. Received: from 3 to 3$"),
        ({"labels": np.full(90, -1)}, r"must be from 0 to 2, one a class name. Received: from -1 to -1$"),
        (
            {"test": (np.zeros((9, 3, 3, 1), np.uint8), np.zeros(9, int))},
            r"shape of its training images, \(2, 2, 1\). Received: \(3, 3, 1\)$",
        ),
    ],
)
def test_arrays_of_another_kind(change, message):
    images, labels = spelled(90)
    arguments = {"images": images, "labels": labels, **change}
    with pytest.raises(DataError, match=f"'spelled' {message}" if "test" not in change else message):
        datasets_from_arrays("spelled", class_names=CLASS_NAMES, seed=0, **arguments)


# TFDS. The datasets are made here, from memory, as `tfds build` would leave them on disk.


def square_images(count, size=6, channels=3):
    return list(np.random.default_rng(count).integers(0, 256, (count, size, size, channels)).astype(np.uint8))


def labelled(images, first=0):
    return [{"image": image, "label": (first + index) % N_CLASSES} for index, image in enumerate(images)]


def store(data_dir, splits, *, name="tiny", label=None, image=None, version="1.0.0", **others):
    """Prepares a TFDS dataset, {split: examples}, in data_dir and returns the configuration that names it."""
    import tensorflow_datasets as tfds

    features = {"image": image or tfds.features.Image(), "label": label or tfds.features.ClassLabel(names=CLASS_NAMES), **others}
    features = tfds.features.FeaturesDict({key: feature for key, feature in features.items() if feature != "none"})
    splits = {split: list(enumerate({key: example[key] for key in features} for example in examples)) for split, examples in splits.items()}
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name, version=version, features=features, split_datasets=splits, data_dir=data_dir, disable_shuffling=True
    )
    return DataConfig(name=name, data_dir=str(data_dir))


def test_tfds_dataset_is_read_in_order_with_its_own_test_split(tmp_path):
    train, test = square_images(600), square_images(30)
    config = store(tmp_path, {"train": labelled(train), "test": labelled(test), "validation": labelled(train[:9])})

    datasets = load_datasets(config, seed=0)

    assert datasets.name == "tiny"
    assert datasets.class_names == CLASS_NAMES
    assert datasets.image_shape == (6, 6, 3)
    for name in ("weights", "architecture", "holdout"):
        split = getattr(datasets, name)
        np.testing.assert_array_equal(split.images, np.stack(train)[split.ids])
        np.testing.assert_array_equal(split.labels, split.ids % N_CLASSES)
    np.testing.assert_array_equal(datasets.test.images, np.stack(test))
    np.testing.assert_array_equal(datasets.test.ids, np.arange(600, 630))
    assert (len(datasets.holdout), len(datasets.weights), len(datasets.architecture)) == (60, 270, 270)


def test_tfds_validation_is_the_test_split_where_test_has_no_labels(tmp_path):
    import tensorflow_datasets as tfds

    unlabelled = [{"image": image, "label": -1} for image in square_images(9)]
    validation = square_images(12)
    splits = {"train": labelled(square_images(90)), "test": unlabelled, "validation": labelled(validation)}
    datasets = load_datasets(store(tmp_path, splits, label=tfds.features.Scalar(np.int64)), seed=0)

    np.testing.assert_array_equal(datasets.test.images, np.stack(validation))
    assert datasets.class_names == ("0", "1", "2")


def test_tfds_without_test_split_gives_a_share_of_its_images(tmp_path):
    datasets = load_datasets(store(tmp_path, {"train": labelled(square_images(100))}), seed=0)
    assert [len(getattr(datasets, name)) for name in SPLITS] == [36, 36, 8, 20]


def test_tfds_whichever_version_was_prepared_is_found(tmp_path):
    # TFDS' own code knows "mnist" at another version only.
    config = store(tmp_path, {"train": labelled(square_images(90))}, name="mnist", version="0.9.0")
    assert load_datasets(config, seed=0).image_shape == (6, 6, 3)
    assert load_datasets(dataclasses.replace(config, name="mnist:0.9.0"), seed=0).image_shape == (6, 6, 3)


def test_tfds_images_of_different_sizes_need_a_resolution(tmp_path):
    images = square_images(60, size=6) + square_images(30, size=9)
    config = store(tmp_path, {"train": labelled(images)})

    with pytest.raises(DataError, match=r"differ in size: set data.resolution .* Received: \[6, 6, 3\] and \[9, 9, 3\]$"):
        load_datasets(config, seed=0)
    datasets = load_datasets(dataclasses.replace(config, resolution=6), seed=0)
    assert datasets.image_shape == (6, 6, 3)
    unchanged = datasets.train.ids < 60
    np.testing.assert_array_equal(datasets.train.images[unchanged], np.stack(images[:60])[datasets.train.ids[unchanged]])


def test_tfds_images_that_are_not_square_need_a_resolution(tmp_path):
    images = list(np.random.default_rng(0).integers(0, 256, (90, 4, 6, 3)).astype(np.uint8))
    config = store(tmp_path, {"train": labelled(images)})

    with pytest.raises(DataError, match=r"^the images of 'tiny' must be square .* Received: uint8 \[90, 4, 6, 3\]$"):
        load_datasets(config, seed=0)
    assert load_datasets(dataclasses.replace(config, resolution=5), seed=0).image_shape == (5, 5, 3)


def test_tfds_other_features_are_ignored(tmp_path):
    import tensorflow_datasets as tfds

    examples = [{**example, "mask": example["image"], "note": "x"} for example in labelled(square_images(90))]
    config = store(tmp_path, {"train": examples}, mask=tfds.features.Image(), note=tfds.features.Text())
    datasets = load_datasets(config, seed=0)
    np.testing.assert_array_equal(datasets.train.images, np.stack(square_images(90))[datasets.train.ids])


def test_tfds_supervised_keys_say_which_features_are_meant(tmp_path):
    import tensorflow_datasets as tfds

    class Named(tfds.core.GeneratorBasedBuilder):
        """A dataset whose features have other names."""

        VERSION = tfds.core.Version("1.0.0")
        name = "named"

        def _info(self):
            fine = tfds.features.ClassLabel(names=CLASS_NAMES)
            features = {"label": tfds.features.Scalar(np.int64), "photo": tfds.features.Image(shape=(6, 6, 3)), "fine": fine}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("photo", "fine"), disable_shuffling=True
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for index, image in enumerate(square_images(90)):
                yield index, {"label": 17, "photo": image, "fine": index % N_CLASSES}

    tfds.disable_progress_bar()
    Named(data_dir=tmp_path).download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))

    datasets = load_datasets(DataConfig(name="named", data_dir=str(tmp_path)), seed=0)
    assert datasets.class_names == CLASS_NAMES
    np.testing.assert_array_equal(datasets.train.images, np.stack(square_images(90))[datasets.train.ids])
    np.testing.assert_array_equal(datasets.train.labels, datasets.train.ids % N_CLASSES)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            lambda tfds: {"label": "none", "text": tfds.features.Text()},
            "one integer label feature .* 0 such among the features image, text$",
        ),
        (lambda tfds: {"image": "none"}, "one 8-bit image feature .* 0 such among the features label$"),
        (lambda tfds: {"image": tfds.features.Image(shape=(6, 6, 1), dtype=np.float32)}, "one 8-bit image feature .* 0 such among"),
        (
            lambda tfds: {"label": "none", "one": tfds.features.Scalar(np.int64), "two": tfds.features.Scalar(np.int64)},
            "one integer label feature .* 2 such among the features image, one, two$",
        ),
    ],
)
def test_tfds_dataset_that_is_no_image_classification(tmp_path, features, message):
    import tensorflow_datasets as tfds

    features = features(tfds)
    images = [image[..., :1].astype(np.float32) for image in square_images(9)] if features.get("image") else square_images(9)
    examples = [{**example, "text": "x", "one": 1, "two": 2} for example in labelled(images)]
    config = store(tmp_path, {"train": examples}, **features)
    with pytest.raises(DataError, match=f"^TFDS dataset 'tiny' must have {message}"):
        load_datasets(config, seed=0)


def test_tfds_without_train_split(tmp_path):
    config = store(tmp_path, {"first": labelled(square_images(9)), "second": labelled(square_images(9))})
    with pytest.raises(DataError, match=r"^TFDS dataset 'tiny' must have a split 'train'. Received: first, second$"):
        load_datasets(config, seed=0)


def test_tfds_file_that_is_missing_or_damaged(tmp_path):
    config = store(tmp_path, {"train": labelled(square_images(90))})
    (record,) = tmp_path.glob("tiny/1.0.0/*.tfrecord*")
    content = record.read_bytes()
    record.write_bytes(content[:1000] + b"\0\0\0\0" + content[1004:])
    with pytest.raises(DataError, match=r"^split 'train' of dataset 'tiny' cannot be read. Received: \S"):
        load_datasets(config, seed=0)
    record.unlink()
    with pytest.raises(DataError, match=r"^split 'train' of dataset 'tiny' cannot be read. Received: .*tiny-train.tfrecord"):
        load_datasets(config, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", r"^dataset 'cifar10' is not prepared in DIR/cifar10/\S+, .*`tfds build cifar10 --data_dir=DIR`, .*no network .*"),
        ("cifar1O", r"^dataset 'cifar1O' is neither prepared nor known to TFDS. Did you mean 'cifar10'\? Expected .*"),
        ("Digits", r"Did you mean 'digits'\?.*"),
        ("cifar10:0.0.1", r"^TFDS cannot open dataset 'cifar10:0.0.1': .*cannot be loaded at version 0.0.1.*"),
        ("cifar10/gray", r"^TFDS cannot open dataset 'cifar10/gray': BuilderConfig gray not found.*"),
        ("huggingface:mnist", r"^data.name must be 'digits' or a TFDS name: NAME, NAME/CONFIG or NAME:VERSION.*"),
        ("kubric:kubric", r"^data.name must be 'digits' or a TFDS name.*"),
        ("", r"^data.name must be 'digits' or a TFDS name.*"),
        ("two words", r"^data.name must be 'digits' or a TFDS name.*"),
    ],
)
def test_tfds_dataset_that_is_not_there(tmp_path, name, message):
    message = f"{message.replace('DIR', str(tmp_path))} Received: data.name={name!r}, data.data_dir='{tmp_path}'$"
    with pytest.raises(DataError, match=message) as caught:
        load_datasets(DataConfig(name=name, data_dir=str(tmp_path)), seed=0)
    assert "\n" not in str(caught.value)


def test_tfds_directory_on_the_network_is_refused(monkeypatch):
    message = r"^data.data_dir \(or TFDS_DATA_DIR\) must be a directory of this machine. Received: data.name='cifar10', data.data_dir="
    with pytest.raises(DataError, match=message + "'gs://tfds-data'$"):
        load_datasets(DataConfig(name="cifar10", data_dir="gs://tfds-data"), seed=0)
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://tfds-data")
    with pytest.raises(DataError, match=message + "''$"):
        load_datasets(DataConfig(name="cifar10"), seed=0)


def test_digits_do_not_import_tfds():
    script = (
        "import sys\nfrom sivdnas_tf.config import DataConfig\nfrom sivdnas_tf.data.datasets import load_datasets\n"
        "load_datasets(DataConfig(), 0)\nsys.exit('tensorflow_datasets' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_real_cifar10():
    data_dir = os.environ.get("SIVDNAS_CIFAR10_DIR")
    if not data_dir:
        pytest.skip("SIVDNAS_CIFAR10_DIR does not name a directory in which TFDS' cifar10 was prepared")
    datasets = load_datasets(DataConfig(name="cifar10", data_dir=data_dir), seed=0)

    assert datasets.image_shape == (32, 32, 3)
    assert [len(getattr(datasets, name)) for name in SPLITS] == [22_500, 22_500, 5_000, 10_000]
    for name, of_class in (("weights", 2250), ("architecture", 2250), ("holdout", 500), ("test", 1000)):
        np.testing.assert_array_equal(np.bincount(getattr(datasets, name).labels), [of_class] * 10)
    assert len(np.unique(np.concatenate([getattr(datasets, name).ids for name in SPLITS]))) == 60_000
    # The published statistics of the 50,000 training images (quark0/darts, cnn/utils.py); JPEG copies differ a little.
    np.testing.assert_allclose(datasets.mean, [0.4914, 0.4822, 0.4465], atol=0.01)
    np.testing.assert_allclose(datasets.std, [0.2470, 0.2435, 0.2616], atol=0.01)
    images, labels = next(iter(batches(datasets.train, 64, **options_of(datasets, augmentation=Augmentation(4, True, 16)))))
    assert images.shape == (64, 32, 32, 3)
    assert labels.shape == (64,)
    assert np.isfinite(images).all()
