"""The user's own `tf.data.Dataset`."""

import numpy as np
import pytest
import tensorflow as tf

from sivdnas_tf.config import Config, replace
from sivdnas_tf.data.datasets import as_datasets, datasets_from_arrays, datasets_from_tf_data, with_name_of
from sivdnas_tf.data.images import resize
from sivdnas_tf.errors import ConfigError, DataError

SPLITS = ("weights", "architecture", "holdout", "test")
IMAGES = np.random.default_rng(0).integers(0, 256, (90, 6, 6, 3)).astype(np.uint8)
LABELS = np.arange(90) % 3
NAMES = ("a", "b", "c")


def pairs(images=IMAGES, labels=LABELS):
    return tf.data.Dataset.from_tensor_slices((images, labels))


def varied():
    """Images of two sizes, of which TensorFlow knows nothing beforehand."""
    spec = (tf.TensorSpec(None, tf.uint8), tf.TensorSpec(None, tf.int64))
    return tf.data.Dataset.from_generator(lambda: ((IMAGES[i, : 4 + i % 2], LABELS[i]) for i in range(90)), output_signature=spec)


def assert_same(datasets, others):
    assert (datasets.name, datasets.class_names, datasets.image_shape) == (others.name, others.class_names, others.image_shape)
    for name in SPLITS:
        for field in ("images", "labels", "ids"):
            np.testing.assert_array_equal(getattr(getattr(datasets, name), field), getattr(getattr(others, name), field))


def test_pairs_are_split_as_arrays_are():
    datasets = datasets_from_tf_data("mine", pairs(), NAMES, seed=3, holdout_fraction=0.2, test_fraction=0.3)
    assert_same(datasets, datasets_from_arrays("mine", IMAGES, LABELS, NAMES, seed=3, holdout_fraction=0.2, test_fraction=0.3))


def test_a_test_split_of_its_own():
    datasets = datasets_from_tf_data("mine", pairs(), NAMES, seed=0, test=pairs(IMAGES[:9], LABELS[:9]))
    assert_same(datasets, datasets_from_arrays("mine", IMAGES, LABELS, NAMES, seed=0, test=(IMAGES[:9], LABELS[:9])))


@pytest.mark.parametrize("labels", [LABELS.astype(np.uint8), LABELS.astype(np.int64)])
def test_labels_name_the_classes_where_nobody_else_does(labels):
    assert datasets_from_tf_data("mine", pairs(labels=labels), seed=0).class_names == ("0", "1", "2")


def test_images_of_any_size_need_a_resolution():
    with pytest.raises(
        DataError, match=r"the images of 'mine' differ in size: set data.resolution .* Received: \[4, 6, 3\] and \[5, 6, 3\]$"
    ):
        datasets_from_tf_data("mine", varied(), NAMES, seed=0)
    datasets = datasets_from_tf_data("mine", varied(), NAMES, seed=0, resolution=4)
    assert datasets.image_shape == (4, 4, 3)
    first = datasets.weights.ids[0]
    np.testing.assert_array_equal(datasets.weights.images[0], resize(IMAGES[first, : 4 + first % 2], 4))


def test_a_dataset_takes_its_options_from_the_configuration():
    config = replace(Config(), seed=5, data={"resolution": 4, "test_fraction": 0.4})
    datasets = as_datasets(pairs(), config)
    assert_same(datasets, datasets_from_tf_data("tf.data", pairs(), seed=5, resolution=4, test_fraction=0.4))
    assert as_datasets(datasets, config) is datasets
    assert with_name_of(config, datasets) == replace(config, data={"name": "tf.data"})
    assert with_name_of(replace(config, data={"name": "tf.data"}), datasets).data.name == "tf.data"


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            pairs().batch(8),
            r"'mine' must give one image at a time: pass dataset.unbatch\(\). Received: batches of shape \(None, 6, 6, 3\)$",
        ),
        (pairs(IMAGES[..., 0]).batch(8, drop_remainder=True), r"pass dataset.unbatch\(\). Received: batches of shape \(8, 6, 6\)$"),
        (pairs(IMAGES / 255), r"the images of 'mine' must be 8-bit, uint8 \[height, width, channels\] .* Received: float64 \(6, 6, 3\)$"),
        (pairs(IMAGES[..., 0]), r"must be 8-bit, uint8 \[height, width, channels\] .* Received: uint8 \(6, 6\)$"),
        (tf.data.Dataset.from_tensor_slices(IMAGES), r"'mine' must give pairs \(image, label\) of tensors. Received: TensorSpec"),
        (tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": LABELS}), r"must give pairs .* Received: \{'image': TensorSpec"),
        (pairs(labels=np.eye(3)[LABELS]), r"one integer an image, not strings or one-hot. Received: float64 \(3,\)$"),
        (pairs(labels=np.eye(3, dtype=int)[LABELS]), r"one integer an image, not strings or one-hot. Received: int64 \(3,\)$"),
        (pairs(labels=[str(label) for label in LABELS]), r"one integer an image, not strings or one-hot. Received: string \(\)$"),
        (pairs().repeat(), r"'mine' must end: pass it without repeat\(\). Received: an infinite dataset$"),
        (pairs().take(0), r"holds no image. Received: 0 images$"),
        (pairs(labels=LABELS + 1), r"the labels of 'mine' must be from 0 to 2, one a class name. Received: from 1 to 3$"),
        (pairs(labels=LABELS - 1), r"the labels of 'mine' must be from 0 to 2, one a class name. Received: from -1 to 1$"),
        ((IMAGES, LABELS), r"'mine' must be a tf.data.Dataset. Received: tuple$"),
    ],
)
def test_a_dataset_of_another_kind(dataset, message):
    with pytest.raises(DataError, match=message) as caught:
        datasets_from_tf_data("mine", dataset, NAMES, seed=0)
    assert "\n" not in str(caught.value)


def test_a_batch_that_nobody_announced():
    spec = (tf.TensorSpec(None, tf.uint8), tf.TensorSpec(None, tf.int64))
    dataset = tf.data.Dataset.from_generator(lambda: iter([(IMAGES, LABELS)]), output_signature=spec)
    with pytest.raises(DataError, match=r"^'mine' must give images \[height, width, channels\]. Received: .*\[90,6,6,3\]"):
        datasets_from_tf_data("mine", dataset, NAMES, seed=0)


def test_a_label_that_no_number_of_classes_explains():
    with pytest.raises(DataError, match=r"must be from 0 to 90, one a class name. Received: from 0 to 2000000000$"):
        datasets_from_tf_data("mine", pairs(labels=np.where(np.arange(90) == 5, 2_000_000_000, LABELS)), seed=0)


def test_images_are_cut_to_a_central_square():
    images = np.random.default_rng(0).integers(0, 256, (90, 7, 10, 3)).astype(np.uint8)
    datasets = datasets_from_tf_data("mine", pairs(images), NAMES, seed=0, resolution=4, central_crop=0.6)
    assert datasets.central_crop == 0.6
    side = round(0.6 * 7)
    top, left = (7 - side) // 2, (10 - side) // 2
    squares = images[:, top : top + side, left : left + side]
    np.testing.assert_array_equal(datasets.test.images, [resize(square, 4).numpy() for square in squares[datasets.test.ids]])


def test_given_statistics_are_taken_as_they_are():
    given = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    datasets = as_datasets(pairs(), replace(Config(), data=given))
    for each in (datasets, datasets.halves_at(3)):
        np.testing.assert_array_equal(each.mean, np.float32(given["mean"]))
        np.testing.assert_array_equal(each.std, np.float32(given["std"]))
    measured = datasets_from_tf_data("mine", pairs(), NAMES, seed=0)
    assert not np.array_equal(measured.halves_at(3).std, measured.std)
    with pytest.raises(ConfigError, match=r"a number for each of the 3 channels of 'tf.data'. Received: data.mean=\(0.1,\)"):
        as_datasets(pairs(), replace(Config(), data={"mean": (0.1,), "std": (0.1,)}))


def test_what_is_in_memory_is_not_streamed():
    datasets, config = as_datasets(pairs(), Config()), replace(Config(), data={"streaming": True})
    for given in (pairs(), datasets):
        with pytest.raises(
            ConfigError, match=r"^data.streaming must be False for \w+, which are not streamed. Received: data.streaming=True$"
        ):
            as_datasets(given, config)
    with pytest.raises(
        ConfigError, match=r"^data.central_crop needs data.resolution, .* Received: data.central_crop=0.5, data.resolution=0$"
    ):
        as_datasets(pairs(), replace(Config(), data={"central_crop": 0.5}))
