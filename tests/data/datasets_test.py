"""Splits and batches. Images that spell their own id prove which images a batch holds. The sources: datasets_sources_test.py."""

import dataclasses

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies

from sivdnas_tf.config import DataConfig
from sivdnas_tf.data.augment import Augmentation, normalise
from sivdnas_tf.data.datasets import (
    Split,
    batches,
    bilevel_batches,
    datasets_from_arrays,
    evaluation_batches,
    load_datasets,
    steps_per_epoch,
)
from sivdnas_tf.errors import ConfigError, DataError
from sivdnas_tf.training.distribution import make_strategy

SPLITS = ("weights", "architecture", "holdout", "test")
N_CLASSES = 3
CLASS_NAMES = ("a", "b", "c")


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


def test_halves_at_another_resolution_are_the_same_images_with_statistics_of_their_own(digits):
    smaller = digits.halves_at(4)
    assert smaller.image_shape == (4, 4, 1)
    for name in ("weights", "architecture"):
        before, after = getattr(digits, name), getattr(smaller, name)
        assert after.images.shape == (len(before), 4, 4, 1) and after.images.dtype == np.uint8
        np.testing.assert_array_equal(after.ids, before.ids)
        np.testing.assert_array_equal(after.labels, before.labels)
    assert smaller.holdout is None and smaller.test is None
    # Antialiased halving keeps the mean grey level, up to rounding and the border, and averages detail away.
    assert np.abs(smaller.mean - digits.mean) < 0.01
    assert smaller.std < 0.9 * digits.std


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
    strategy = make_strategy("mirrored")
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
